"""Which fragment of a model is sent after which local step, and when its answer is applied. No arrays, no clock.

Each fragment is sent every H steps, and the fragments one after the other, H / P steps apart (Douillard et al.,
"Streaming DiLoCo with overlapping communication", https://arxiv.org/abs/2501.18512, algorithm 2). With one fragment and
no delay this is DiLoCo (https://arxiv.org/abs/2311.08105).
"""

from dataclasses import dataclass
from typing import Any

from optd_wire.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Due:
    """What follows a local step: first answers are applied, then a fragment is sent."""

    lands: tuple[int, ...] = ()
    """The fragments whose answers are applied."""
    send: int | None = None
    """The fragment that is sent. Without a delay its answer is applied at once, and is not in `lands`."""


class Schedule:
    """The syncs of one worker; `after_step` is called once after each of its steps.

    `every` is H, the steps between two syncs of a fragment; `fragments` is P; an answer is applied `delay` steps after
    its fragment was sent. Raises `InvalidRequest` for numbers that do not fit together.
    """

    def __init__(self, every: int, fragments: int = 1, delay: int = 0) -> None:
        if fragments < 1:
            raise InvalidRequest(problem=f"fragments must be at least 1, got {fragments}")
        if delay < 0:
            raise InvalidRequest(problem=f"delay must be at least 0 steps, got {delay}")
        least = max(fragments, delay + 1)
        if every < least:
            why = f"{fragments} fragments are sent one after the other, and each is back after {delay} steps"
            raise InvalidRequest(problem=f"every must be at least {least} steps, as {why}; got {every}")
        self.fragments = fragments
        self.delay = delay
        self.least = least
        """The smallest H that goes with these fragments and this delay."""
        self._every = self._next_every = every
        self._position = 0
        """Steps since the cycle began."""
        self._sent = 0
        """Fragments that were sent in this cycle."""
        self._first = 0
        """The fragment that a cycle begins with."""
        self._skips = 0
        """Steps of the cycle that are still to be left out, so that later syncs come earlier."""
        self._landing: list[tuple[int, int]] = []
        """Fragments under way, with the steps after which their answers are applied."""

    @property
    def every(self) -> int:
        """The steps from one sync of a fragment to its next in the cycle that runs."""
        return self._every

    @property
    def next_fragment(self) -> int:
        """The fragment that is sent next."""
        return (self._first + self._sent) % self.fragments

    @property
    def under_way(self) -> tuple[int, ...]:
        """The fragments whose answers are to be applied, in the order in which they were sent."""
        return tuple(fragment for fragment, _ in self._landing)

    def landed(self) -> None:
        """All answers have been applied before they were due."""
        self._landing.clear()

    def postpone(self, fragment: int) -> None:
        """The answer to a fragment could not be applied when it was due: that is due after the next step."""
        self._landing.insert(0, (fragment, 1))

    @property
    def begins(self) -> bool:
        """Whether a cycle, in which each fragment is sent once, is about to begin."""
        return self._position == 0

    @property
    def sends_next(self) -> bool:
        """Whether a fragment is sent after the next step."""
        return self._position + self._stride >= self._due_at

    @property
    def _due_at(self) -> int:
        """The position after which a fragment is sent."""
        return (self._sent + 1) * self._every // self.fragments

    @property
    def _stride(self) -> int:
        """How many steps of the cycle the next step makes: 2 to come forward, but never past a sync."""
        return 2 if self._skips and self._position + 1 < self._due_at else 1

    def after_step(self) -> Due:
        """Counts a step and returns what follows it."""
        self._landing = [(fragment, left - 1) for fragment, left in self._landing]
        lands = tuple(fragment for fragment, left in self._landing if not left)
        self._landing = [(fragment, left) for fragment, left in self._landing if left]
        is_due, stride = self.sends_next, self._stride
        self._position += stride
        self._skips -= stride - 1
        if not is_due:
            return Due(lands)
        fragment = self.next_fragment
        self._sent += 1
        if self.delay:
            # After `align` it may be under way still; its sender then waits for the earlier answer first.
            self._landing = [each for each in self._landing if each[0] != fragment]
            self._landing.append((fragment, self.delay))
        if self._sent == self.fragments:
            self._begin_cycle()
        return Due(lands, fragment)

    def _begin_cycle(self) -> None:
        self._position = self._sent = 0
        self._every = self._next_every

    def resize(self, every: int) -> None:
        """Changes H from the next cycle on, or at once if one is about to begin; at least `least`."""
        self._next_every = max(every, self.least)
        if self.begins:
            self._every = self._next_every

    def align(self, fragment: int) -> None:
        """Makes a fragment the next one that is sent; the steps at which fragments are sent stay."""
        self._first = (fragment - self._sent) % self.fragments

    def hasten(self) -> None:
        """Brings the syncs that follow forward, by half the steps from one to the next: steps count double until then.

        A worker whose answers are applied late has nothing to wait for in a step, so it would stay as far behind the
        others as it is. Ahead of them it waits for its answer, so that it never gets far ahead.
        """
        self._skips = (self._every // self.fragments + 1) // 2

    def restart(self) -> None:
        """Begins a cycle anew with the fragment that comes next: everything was sent just now, and has landed."""
        self._first = self.next_fragment
        self._skips = 0
        self._landing.clear()
        self._begin_cycle()

    def state(self) -> dict[str, Any]:
        """Everything that changes, as plain numbers and lists."""
        return {
            "every": self._every,
            "next_every": self._next_every,
            "position": self._position,
            "sent": self._sent,
            "first": self._first,
            "skips": self._skips,
            "landing": [list(each) for each in self._landing],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on where a `state` of the same fragments and delay was taken."""
        self._every, self._next_every = int(state["every"]), int(state["next_every"])
        self._position, self._sent, self._first = int(state["position"]), int(state["sent"]), int(state["first"])
        self._skips = int(state.get("skips", 0))  # states of before had none
        self._landing = [(int(fragment), int(left)) for fragment, left in state["landing"]]
