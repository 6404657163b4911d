"""The server's declarations as plain data, as `client/declarations.json` has them."""

from collections.abc import Mapping
from typing import Any

from optd_server.optim.algorithm import Algorithm, Iterative
from optd_server.optim.algorithms import registry
from optd_server.optim.group_options import GROUP_OPTIONS, unusable
from optd_server.optim.job_options import JOB
from optd_server.optim.option import Option, Range


def exported(algorithms: Mapping[str, Algorithm] | None = None) -> dict[str, Any]:
    """Return the algorithms of this package by name, the options of every group, and those of a job.

    An algorithm that takes values for buffers, not gradients, is left out: it has no class, a group names it.
    `algorithms` replaces the server's own, for tests.
    """
    given = algorithms or {algorithm.name: algorithm for algorithm in registry.BUILT_IN}
    return {
        "algorithms": {name: _algorithm(each) for name, each in given.items() if not each.takes_values},
        "group_options": [_option(option) for option in GROUP_OPTIONS],
        "job_options": [_option(option) for option in JOB.options],
    }


def _algorithm(algorithm: Algorithm) -> dict[str, Any]:
    return {
        "title": algorithm.title,
        "doc": algorithm.doc,
        "needs_closure": isinstance(algorithm, Iterative),
        "options": [_option(option) for option in algorithm.options],
        "rules": [f"{rule.option} must be {rule.text}" for rule in (*algorithm.constraints, *unusable(algorithm))],
        "state": [field.name for field in algorithm.state],
    }


def _option(option: Option) -> dict[str, Any]:
    exported: dict[str, Any] = {
        "name": option.name,
        "kind": option.kind,
        "default": list(option.default) if isinstance(option.default, tuple) else option.default,
        "nullable": option.nullable,
        "doc": option.doc,
    }
    if option.kind in ("float", "int"):
        exported["range"] = str(option.range)
    if option.kind == "floats":
        exported["entries"] = [_entry(entry) for entry in option.entries]
    if option.choices:
        exported["choices"] = list(option.choices)
    if option.fixed:
        exported["fixed"] = True
    return exported


def _entry(entry: Range) -> dict[str, Any]:
    return {"range": str(entry), "nullable": entry.nullable}
