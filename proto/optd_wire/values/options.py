"""Options: their values, their changes, and how algorithms declare them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OptionValue = bool | int | float | str | None | tuple[float | None, ...]
Options = Mapping[str, OptionValue]


class Single(float):
    """A float32 number: torch computes so with a learning rate that is a tensor of float32.

    It equals the float of the same value. `is_single` tells the algorithms, which do not know this class.
    """

    __slots__ = ()
    is_single = True


@dataclass(frozen=True, slots=True)
class GroupUpdate:
    """A change of some options of one group; with `expected_revision`, only if nobody has changed them since."""

    group: str
    options: Options
    expected_revision: int | None = None


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """The resolved options of one group, its algorithm, and the version of the job at which they took effect."""

    group: str
    options: Options
    revision: int = 0
    since_version: int = 0
    algorithm: str = ""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The resolved options of a job as a whole, and the version of the job at which they took effect."""

    options: Options = field(default_factory=dict)
    revision: int = 0
    since_version: int = 0


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """A change of options of a job as a whole; with `expected_revision`, only if nobody has changed them since."""

    job: str
    options: Options
    expected_revision: int | None = None


@dataclass(frozen=True, slots=True)
class EffectiveOptions:
    """The options of a group that schedules set, with their values in the next step."""

    group: str
    options: Options


@dataclass(frozen=True, slots=True)
class OptionChange:
    """A new value of one option from `version` on; an empty `group` means an option of the job as a whole.

    `worker` names the worker whose push carried the change. It is empty if the change was a call of its own.
    """

    unix_ms: int
    version: int
    group: str
    option: str
    before: OptionValue
    after: OptionValue
    worker: str


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """The declaration of one option."""

    name: str
    kind: str
    default_value: OptionValue
    range: str
    doc: str
    nullable: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AlgorithmInfo:
    """An algorithm of the server: its options, state and rules."""

    name: str
    title: str
    options: tuple[OptionInfo, ...]
    state: tuple[str, ...]
    rules: tuple[str, ...]
    doc: str = ""
    needs_closure: bool = False
    shaped_state: tuple[str, ...] = ()
    package: str = ""
