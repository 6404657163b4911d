"""A process of its own that folds events, without an event loop. The other end is `Folding`, for tests.

It serves many requests one after the other, over its standard input and output.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from tests.server.engine.folding.comparing import Frozen, difference, frozen

from optd_server.durability.records import decoded, encoded
from optd_server.durability.snapshots.folder import write_snapshot
from optd_server.engine.apply import apply, create
from optd_server.engine.compute import Compute
from optd_server.engine.events import Deleted
from optd_server.engine.options.groups import Groups
from optd_server.engine.state import JobState
from optd_server.engine.step import arithmetic
from optd_server.optim.backends.registry import choose
from optd_server.store.versions import WeightSet

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class Request:
    """Events to fold, and what is to be told of it."""

    events: Sequence[bytes]
    tell: frozenset[int]
    """Before which events the state is told; the number of events: after the last one."""
    copies: frozenset[int] = frozenset()
    """Before which events the state is copied, in memory and through a snapshot on disk; the copies take the later
    events too."""
    kernels: str = "numpy"
    threads: int = 1
    inline: int = arithmetic.INLINE_ELEMENTS
    """How many elements a step takes whole even if few of them have a gradient: norms are added up in other parts."""


@dataclass
class Answer:
    """What came of it."""

    states: dict[int, Frozen] = field(default_factory=dict)
    copies: list[tuple[int, Frozen]] = field(default_factory=list)
    """Each copy at the end, with the place where it was made."""
    replies: dict[tuple[str, int, int], Any] = field(default_factory=dict)
    """By worker, epoch and sequence."""
    uneven: list[int] = field(default_factory=list)
    """The events whose bytes were others when they were encoded again."""


def fold(request: Request) -> Answer:
    """Does what is asked for."""
    arithmetic.INLINE_ELEMENTS = request.inline
    answer, compute = Answer(), Compute(choose(request.kernels), request.threads)  # type: ignore[arg-type]
    state: JobState | None = None
    copies: list[tuple[int, JobState]] = []
    spare: Groups | None = None
    for number, data in enumerate(request.events):
        if state is not None and number in request.tell:
            answer.states[number] = frozen(state)
        event = decoded(data, state)
        if encoded(event, state) != data:
            answer.uneven.append(number)
        if state is None:
            state = create(event)  # type: ignore[arg-type]
            continue
        if isinstance(event, Deleted):
            answer.states[number] = frozen(state)
            answer.copies = [(place, frozen(copy)) for place, copy in copies]
        if number in request.copies:
            copies += [(number, copied(state, spare)), (number, stored_and_loaded(state, number))]
            spare = state.copy().groups
        for _, copy in copies:
            apply(copy, decoded(data, copy), compute)
        applied = apply(state, event, compute)
        for mark, reply in zip(getattr(event, "pushes", ()), applied.replies, strict=True):
            answer.replies[mark.worker, mark.epoch, mark.sequence] = reply
    assert state is not None
    if not isinstance(event, Deleted):
        answer.states[len(request.events)] = frozen(state)
        answer.copies = [(place, frozen(copy)) for place, copy in copies]
    return answer


def copied(state: JobState, spare: Groups | None) -> JobState:
    """A copy as that of a snapshot, which uses the memory of an earlier one."""
    return replace(state.captured(spare), weights=WeightSet.holding(state.weights.buffers.copy()))


def stored_and_loaded(state: JobState, event: int) -> JobState:
    """The state that a snapshot on disk gives."""
    with tempfile.TemporaryDirectory() as folder:
        made, _, _ = write_snapshot(Path(folder), state, event, None)
        loaded, _ = made.load()
    wrong = difference(frozen(state), frozen(loaded))
    assert not wrong, f"a snapshot before event {event}: {wrong}"
    return loaded


class Folding:
    """The process, as its parent has it."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            cwd=ROOT,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._into, self._out = self._process.stdin, self._process.stdout
        self.modules: set[str] = _read(self._out)
        """What the process has imported."""

    def fold(self, request: Request) -> Answer:
        """As the function, over there."""
        try:
            _write(self._into, request)
            answer = _read(self._out)
        except BaseException:
            # Such as a test's timeout: the next answer would be that of this request, and both would wait for ever.
            self._process.kill()
            self.close()
            self._begin()
            raise
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Answer)
        return answer

    def close(self) -> None:
        """Ends the process."""
        with suppress(BrokenPipeError):
            self._into.close()
        self._process.wait(10)
        self._out.close()


def _read(stream: BinaryIO) -> Any:
    return pickle.load(stream)


def _write(stream: BinaryIO, value: Any) -> None:
    pickle.dump(value, stream)
    stream.flush()


def _serve() -> None:
    _write(sys.stdout.buffer, set(sys.modules))
    while True:
        try:
            request = _read(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: Any = fold(request)
        except Exception as problem:  # noqa: BLE001 - for the one who asks
            problem.add_note(f"in the process that folds, of {len(request.events)} events")
            answer = problem
        _write(sys.stdout.buffer, answer)


if __name__ == "__main__":
    # Pickles name this module as its importers know it.
    from tests.server.engine.folding import process

    process._serve()
