"""The classes of the torch face: one module for each algorithm, in `client/optd/torch/algorithms/`.

At run time torch's own constructor counts, in whichever release of torch is installed. The signature that is written
here, of the release that the tests pin, is for type checkers and editors.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from generation.docstrings import WIDTH, docstring
from generation.modules import module
from generation.optimizer_classes import paragraphs, positional_and_keyword, raises
from generation.options import Argument, argument
from generation.session_arguments import params, session_arguments

_INDENT = " " * 12
_BASES = {"adagrad": "ServedAdagrad", "lbfgs": "ServedLBFGS"}
_TORCHS = {"lion": "lion.Lion", "delayed_nesterov": "delayed_nesterov.DelayedNesterov"}
_KEYWORDS = {
    "sgd": "keeps_step=False",
    "adamw": 'fixed={"decoupled_weight_decay": (True, "it is AdamW")}',
    "sparse_adam": "counts_in_int=True",
    "muon": "keeps_step=False",
    "lbfgs": "keeps_step=False",
    "lion": "keeps_step=False",
}
_CLOSURE = (
    "The closure computes gradients and returns the loss; what it writes to the parameters counts as it does in torch."
)
_IGNORED = "Accepted and ignored: it says how torch computes, not what."
_IMPLEMENTATION = {
    each.name: each
    for each in (
        Argument("foreach", "bool | None", "None", _IGNORED),
        Argument("fused", "bool | None", "None", _IGNORED),
        Argument("capturable", "bool", "False", "Must be False: no graph captures a step on a server."),
        Argument("differentiable", "bool", "False", "Must be False: autograd does not reach into a server."),
    )
}
"""Torch's arguments that are not options of the algorithm."""


def torch_module(name: str, algorithm: Mapping[str, Any], group_options: Sequence[Mapping[str, Any]]) -> str:
    """Return the module of one algorithm."""
    own = [_argument(option) for option in algorithm["options"]]
    shared = [argument(option) for option in group_options]
    return module(f"`optd.torch.{algorithm['title']}`.", _class(name, algorithm, own, shared))


def init_module(algorithms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the `__init__` of the folder."""
    titles = {algorithm["title"]: name for name, algorithm in algorithms.items()}
    names = sorted(titles, key=titles.__getitem__)
    imports = [f"from optd.torch.algorithms.{titles[title]} import {title}" for title in names]
    exports = [f'    "{title}",' for title in sorted(titles, key=lambda title: (not title.isupper(), title))]
    about = (
        '"""A class for each algorithm: torch\'s own with `Served` in front of it; one module each.\n\n'
        "`make classes` generates them, and this file, from the server's declarations (`client/generation`). What\n"
        "they all do is in `Served`: open `optd/torch/optimizer.py` first.\n"
        '"""'
    )
    return "\n".join([about, "", *imports, "", "__all__ = [", *exports, "]", ""])


def _argument(option: Mapping[str, Any]) -> Argument:
    """Return an option whose numbers may be tensors, unless its line gets too long for that."""
    found = argument(option, "float | torch.Tensor")
    return found if len(found.line) <= WIDTH - len(_INDENT) else argument(option)


def _class(name: str, algorithm: Mapping[str, Any], own: Sequence[Argument], shared: Sequence[Argument]) -> str:
    first, rest = _in_torchs_order(name, algorithm["title"], own)
    bases = [_BASES.get(name, "Served"), _TORCHS.get(name, f"torch.optim.{algorithm['title']}")]
    keywords = [f'algorithm="{name}"', *([_KEYWORDS[name]] if name in _KEYWORDS else [])]
    of_session = session_arguments(torch=True)
    documented = [params(torch=True, alone=algorithm["needs_closure"]), *first, *rest, *shared, *of_session]
    torchs = "ValueError: As torch's class raises it."
    lines = [
        f"class {algorithm['title']}({', '.join([*bases, *keywords])}):",
        docstring(algorithm["doc"], paragraphs(name, algorithm, _CLOSURE), documented, [torchs, *raises(algorithm)]),
        "",
        "    if TYPE_CHECKING:",
        "",
        "        def __init__(",
        f"{_INDENT}self,",
        f"{_INDENT}params: ParamsT,",
        *(f"{_INDENT}{each.line}" for each in first),
        f"{_INDENT}*,",
        *(f"{_INDENT}{each.line}" for each in (*rest, *shared, *session_arguments(torch=True))),
        "        ) -> None: ...",
    ]
    return "\n".join([*lines, ""])


def _in_torchs_order(name: str, title: str, own: Sequence[Argument]) -> tuple[Sequence[Argument], Sequence[Argument]]:
    """Return torch's arguments but for `params`: those that may be passed by position, and the others."""
    torchs = getattr(torch.optim, title, None)
    if torchs is None:
        return positional_and_keyword(name, own)
    known = {**_IMPLEMENTATION, **{each.name: each for each in own}}
    parameters = list(inspect.signature(torchs).parameters.values())[1:]
    stray = [each.name for each in parameters if each.name not in known]
    if stray:
        raise ValueError(f"torch.optim.{title} takes {stray[0]}, which the server's {name!r} does not declare")
    keyword = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    return (
        [known[each.name] for each in parameters if each not in keyword],
        [known[each.name] for each in keyword],
    )
