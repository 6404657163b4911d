"""What a group of torch's parameters looks like under each algorithm: its options, and the form of its state."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from optd.options.group_options import GROUP_OPTIONS
from optd.session.inquiry import find_algorithm
from optd.torch.options import UNSERVED, Fixed, OptionRules
from optd_wire.errors import UnknownOption
from optd_wire.values import AlgorithmInfo


@dataclass(frozen=True, slots=True)
class StateForm:
    """How torch's class keeps the count of steps: whether it has "step" at all, and whether as an int."""

    keeps_step: bool = True
    counts_in_int: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class GroupForm:
    """The form of all groups that have one algorithm."""

    rules: OptionRules
    state: StateForm
    defaults: Mapping[str, Any] | None = None
    """The options of its groups with their defaults; None: those that torch's class has resolved."""

    @property
    def algorithm(self) -> str:
        """The name of the algorithm."""
        return self.rules.algorithm


NO_FORM = GroupForm(OptionRules("", {}), StateForm())

_of_classes: dict[str, tuple[Fixed, StateForm]] = {}
"""By algorithm, what differs in torch's class for it."""


def form_of_class(algorithm: str, fixed: Fixed, state: StateForm) -> GroupForm:
    """The form of groups of a class of torch; groups in optimizers of other classes get it by the algorithm's name."""
    _of_classes.setdefault(algorithm, (fixed, state))
    return GroupForm(OptionRules(algorithm, {**UNSERVED, **fixed}), state)


def form_by_name(algorithm: str) -> GroupForm:
    """The form of groups without a class of torch, whose options the server alone checks."""
    _, state = _of_classes.get(algorithm, ({}, StateForm()))
    return GroupForm(OptionRules(algorithm, {}), state)


class NamedForms:
    """The forms of algorithms that groups name; each has one. `algorithms` are those of the server."""

    def __init__(self, algorithms: Sequence[AlgorithmInfo]) -> None:
        self._algorithms = algorithms
        self._options = frozenset(option.name for algorithm in algorithms for option in algorithm.options)
        self._found: dict[str, GroupForm] = {}

    def of(self, algorithm: str) -> GroupForm:
        """The form of groups that name this algorithm; raises `UnknownAlgorithm`."""
        if algorithm not in self._found:
            fixed, state = _of_classes.get(algorithm, ({}, StateForm()))
            declared = find_algorithm(self._algorithms, algorithm).options
            defaults = {option.name: option.default_value for option in declared}
            self._found[algorithm] = GroupForm(OptionRules(algorithm, {**UNSERVED, **fixed}), state, defaults)
        return self._found[algorithm]

    def check_entries(self, form: GroupForm, own: Collection[str], group: Mapping[str, Any]) -> None:
        """Raises `UnknownOption` for an entry of a group that only other algorithms have as an option.

        `own` are the options of the group's algorithm. Entries that are no options are the script's own, as in torch.
        """
        # A dict that another optimizer has completed may have an entry that is fixed in the class for its algorithm.
        fixed, _ = _of_classes.get(form.algorithm, ({}, None))
        for name in group:
            if name in self._options and name not in own and name not in fixed:
                served = [*form.rules.served(own), *GROUP_OPTIONS]
                close = get_close_matches(name, served, n=1)
                advice = f"did you mean {close[0]!r}? The" if close else "the"
                raise UnknownOption(algorithm=form.algorithm, option=name, advice=advice, options=", ".join(served))
