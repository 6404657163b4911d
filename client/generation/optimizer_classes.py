"""The classes of the numpy face: one module for each algorithm, in `client/optd/algorithms/`."""

from collections.abc import Mapping, Sequence
from typing import Any

from generation.docstrings import docstring
from generation.modules import module
from generation.options import Argument, argument
from generation.session_arguments import params, session_arguments

_POSITIONAL_MAXIMIZE = ("sparse_adam",)
"""Elsewhere `maximize`, and what comes after it, is passed by keyword alone, as in torch."""
_CLOSURE = "The closure returns (loss, gradients) at the weights that the arrays then hold."
_BASES = {"lbfgs": "LBFGSBase"}
NOT_IN_TORCH = {
    "lion": "Lion (https://arxiv.org/abs/2302.06675) has no class in torch; its arguments follow torch's manner.",
    "delayed_nesterov": "Algorithm 3 of https://arxiv.org/abs/2401.09135, which has no class in torch; its arguments "
    "follow torch's manner.",
}
NOTES: Mapping[str, Sequence[str]] = {
    "sparse_adam": ("Takes gradients of some rows only.",),
    "muon": (
        'Takes matrices only. A group of the other parameters can name another algorithm, such as `"adamw"`, and then '
        "trains in the same steps.",
    ),
    "lbfgs": (
        "Takes one group of parameters of one dtype, and steps through `step(closure)` alone, which calls the closure "
        "as often as the server asks. {closure} Each call is a push and a version of the job; until the step is done, "
        "the weights of the job are points that the search tries. Under `optd.Sync` several workers share a step, "
        "which uses the mean of their losses and gradients.",
    ),
}


def optimizer_module(name: str, algorithm: Mapping[str, Any], group_options: Sequence[Mapping[str, Any]]) -> str:
    """Return the module of one algorithm."""
    own = [argument(option) for option in algorithm["options"]]
    shared = [argument(option) for option in group_options]
    return module(f"`optd.{algorithm['title']}`.", _class(name, algorithm, own, shared))


def init_module(algorithms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the `__init__` of the folder."""
    titles = {algorithm["title"]: name for name, algorithm in algorithms.items()}
    names = sorted(titles, key=titles.__getitem__)
    imports = [f"from optd.algorithms.{titles[title]} import {title}" for title in names]
    exports = [f'    "{title}",' for title in sorted(titles, key=lambda title: (not title.isupper(), title))]
    about = (
        '"""A class for each algorithm, with torch\'s arguments in torch\'s order; one module each.\n\n'
        "`make classes` generates them, and this file, from the server's declarations (`client/generation`). Only\n"
        "`lbfgs_base.py` and `unknown_options.py` are written by hand. All classes derive from `optd.Optimizer`: open\n"
        "`optd/numpy/optimizer.py` first.\n"
        '"""'
    )
    return "\n".join([about, "", *imports, "", "__all__ = [", *exports, "]", ""])


def positional_and_keyword(name: str, own: Sequence[Argument]) -> tuple[Sequence[Argument], Sequence[Argument]]:
    """Split an algorithm's options into those that may be passed by position, and the others."""
    names = [each.name for each in own]
    cut = len(own)
    if "maximize" in names and name not in _POSITIONAL_MAXIMIZE:
        cut = names.index("maximize")
    return own[:cut], own[cut:]


def paragraphs(name: str, algorithm: Mapping[str, Any], closure: str) -> list[str]:
    """Return what a class's docstring says between its first line and its arguments.

    `closure` says what a closure does, for an algorithm that needs one.
    """
    served = f"`torch.optim.{algorithm['title']}` as a service: a server holds the weights and the state."
    return [NOT_IN_TORCH.get(name, served), *(note.format(closure=closure) for note in NOTES.get(name, ()))]


def raises(algorithm: Mapping[str, Any]) -> list[str]:
    """Return what the constructor raises."""
    rules = [f"InvalidOption: {rule}." for rule in algorithm["rules"]]
    unknown = "UnknownOption: No option has this name; the message names the nearest one."
    return ["OptdError: `params` or an option is wrong; nothing has changed then. See `optd.errors`.", *rules, unknown]


def _class(name: str, algorithm: Mapping[str, Any], own: Sequence[Argument], shared: Sequence[Argument]) -> str:
    first, rest = positional_and_keyword(name, own)
    arguments = [*first, *rest, *shared, *session_arguments(torch=False)]
    documented = [params(torch=False, alone=algorithm["needs_closure"]), *arguments]
    lines = [
        f"class {algorithm['title']}({_BASES.get(name, 'Optimizer')}):",
        docstring(algorithm["doc"], paragraphs(name, algorithm, _CLOSURE), documented, raises(algorithm)),
        "",
        "    def __init__(",
        "        self,",
        "        params: Any,",
        *(f"        {each.line}" for each in first),
        "        *,",
        *(f"        {each.line}" for each in (*rest, *shared, *session_arguments(torch=False))),
        "        **others: Unpack[UnknownOptions],",
        "    ) -> None:",
        "        super().__init__(",
        f'            "{name}",',
        "            params,",
        *(f"            {each.name}={each.name}," for each in (*own, *session_arguments(torch=False))),
        "            **given(",
        *(f"                {each.name}={each.name}," for each in shared),
        "            ),",
        "            **others,",
        "        )",
    ]
    return "\n".join([*lines, ""])
