"""Checkpoints as files of torch, for `optctl checkpoint export` and `import`.

    python -m optd.torch.checkpoint_file export CHECKPOINT FILE
    python -m optd.torch.checkpoint_file import FILE CHECKPOINT --algorithm adamw

A file of torch has `{"model": {name: tensor}, "optimizer": state dict}`, which `torch.load(weights_only=True)` and
torch's own optimizers accept. A server of its own brings the numbers from one form to the other, so they are those that
a worker would get.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from optd.local import local
from optd.session.connect import connect
from optd.session.session import Session
from optd.state.restore import restore
from optd.torch import algorithms
from optd.torch.optimizer import Served
from optd_wire.errors import InvalidRequest, OptdError, UnknownField
from optd_wire.values import JobInfo

_MODEL, _OPTIMIZER = "model", "optimizer"
_NOT_GIVEN = ("params", "param_names", "optd")
"""Keys of torch's param_groups that are no options."""


def export_file(checkpoint: str, file: Path) -> str:
    """Writes a file of torch from a checkpoint; returns what to tell.

    Raises `InvalidRequest` for a job whose groups have several algorithms, which no optimizer of torch has.
    """
    with local() as server:
        job = restore(checkpoint, server=server.address)
        with connect(server.address, job=job.name, worker="export", progress=False) as session:
            optimizer = _attached(job, session)
            optimizer.pull()
            named = [(name, tensor) for group in optimizer.param_groups for name, tensor in _named(group)]
            model = {name: tensor.detach().clone() for name, tensor in named}
            torch.save({_MODEL: model, _OPTIMIZER: _plain(optimizer.state_dict())}, file)
    made = type(optimizer).__name__
    return f"wrote {file}: {len(model)} tensors and the state of {made}, at version {job.version.version}"


def import_file(file: Path, checkpoint: str, algorithm: str, *, job: str, overwrite: bool) -> str:
    """Writes a checkpoint from a file of torch; returns what to tell.

    The optimizer's state dict has no names unless it was made with named parameters: then its parameters are those of
    the model in order.
    """
    try:
        found = torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InvalidRequest(problem=f"there is no file {file}") from None
    except Exception:  # noqa: BLE001 - of all the ways in which it fails, none says more to people
        raise InvalidRequest(problem=f"{file} is no file of torch.save() that weights_only=True accepts") from None
    if not isinstance(found, dict) or not {_MODEL, _OPTIMIZER} <= found.keys():
        raise InvalidRequest(problem=f"{file} must hold a dict with {_MODEL!r} and {_OPTIMIZER!r}")
    model, saved = found[_MODEL], found[_OPTIMIZER]
    groups = _groups(model, saved)
    with local() as server, connect(server.address, job=job, worker="import", progress=False) as session:
        made = _class_of(algorithm)
        optimizer = made(groups, session=session)
        try:
            optimizer.load_state_dict(saved)
        except UnknownField as problem:
            field = problem.values["field"]
            raise InvalidRequest(
                problem=f"{file} has the state of another optimizer than {algorithm}: {field}"
            ) from None
        info = session.save(checkpoint, overwrite=overwrite)
    return f"wrote {checkpoint}: {sum(len(group.parameters) for group in info.groups)} parameters with {algorithm}"


def _groups(model: dict[str, torch.Tensor], saved: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups of an optimizer with this state dict, with the options that it has."""
    order = list(model)
    groups = []
    for number, group in enumerate(saved["param_groups"]):
        names = group.get("param_names") or [_name(order, index, number) for index in group["params"]]
        missing = [name for name in names if name not in model]
        if missing:
            raise InvalidRequest(problem=f"the optimizer has parameters that the model lacks: {', '.join(missing)}")
        tensors = [(name, torch.nn.Parameter(model[name].clone(), requires_grad=True)) for name in names]
        options = {name: value for name, value in group.items() if name not in _NOT_GIVEN}
        groups.append({"params": tensors, **{name: value for name, value in options.items() if value is not None}})
    return groups


def _name(order: Sequence[str], index: int, group: int) -> str:
    if not 0 <= index < len(order):
        raise InvalidRequest(
            problem=f"group {group} of the optimizer has parameter {index}, and the model has {len(order)} tensors; "
            "save a state dict of named parameters, or a model with the optimizer's parameters only"
        )
    return order[index]


def _class_of(algorithm: str) -> type[Any]:
    for name in algorithms.__all__:
        found: type[Any] = getattr(algorithms, name)
        if name.lower() == algorithm.replace("_", "").lower():
            return found
    known = ", ".join(sorted(algorithms.__all__))
    raise InvalidRequest(problem=f"torch has no optimizer {algorithm!r}; there are {known}")


def _attached(job: JobInfo, session: Session) -> Served:
    others = {group.options.algorithm for group in job.groups} - {job.algorithm, ""}
    if others:
        several = ", ".join(sorted({job.algorithm, *others}))
        raise InvalidRequest(
            problem=f"groups of this job have several algorithms ({several}); no optimizer of torch has"
        )
    groups = [
        {
            "params": [
                (each.name, torch.nn.Parameter(torch.zeros(each.shape, dtype=getattr(torch, each.dtype))))
                for each in group.parameters
            ],
            "name": group.options.group,
        }
        for group in job.groups
    ]
    made: Served = _class_of(job.algorithm)(groups, session=session)
    return made


def _named(group: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    return list(zip(group["param_names"], group["params"], strict=True))


def _plain(saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict without what only optd reads."""
    return {name: value for name, value in saved.items() if name in ("state", "param_groups")}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="optd.torch.checkpoint_file", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export")
    out.add_argument("checkpoint")
    out.add_argument("file", type=Path)
    into = commands.add_parser("import")
    into.add_argument("file", type=Path)
    into.add_argument("checkpoint")
    into.add_argument("--algorithm", required=True)
    into.add_argument("--job", required=True)
    into.add_argument("--overwrite", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if given.command == "export":
            told = export_file(given.checkpoint, given.file)
        else:
            told = import_file(given.file, given.checkpoint, given.algorithm, job=given.job, overwrite=given.overwrite)
    except (OptdError, OSError, KeyError, ValueError, TypeError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    sys.stdout.write(f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
