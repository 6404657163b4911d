"""A log that keeps the events of a job as bytes, and looks at the job at each of them."""

import traceback

import numpy as np
from tests.server.engine.folding.comparing import Frozen, frozen

from optd_server.durability.records import decoded, encoded
from optd_server.engine.events import Created, Deleted, Event, Stepped
from optd_server.engine.job import Job
from optd_server.engine.state import JobState


class Recorder:
    """The log of one job. What it finds wrong is in `problems`: an exception would only end the job."""

    keeps_events = True
    durable_version = 0

    def __init__(self, every: int = 1) -> None:
        self.events: list[bytes] = []
        self.kinds: list[str] = []
        self.states: dict[int, Frozen] = {}
        """The state before some events: one of `every`."""
        self.problems: list[str] = []
        self.job: Job | None = None
        """To be set once there is one."""
        self._every = every
        self._version = 0

    async def append(self, event: Event, version: int, before: JobState | None) -> int:
        number = len(self.events)
        try:
            assert before is (None if self.job is None else self.job.state)
            self._look(event, version, number)
        except Exception:  # noqa: BLE001 - the test tells it at the end
            self.problems.append(traceback.format_exc())
        return number + 1

    def _look(self, event: Event, version: int, number: int) -> None:
        state = None if self.job is None else self.job.state
        assert (state is None) == isinstance(event, Created)
        data = encoded(event, state)
        self.events.append(data)
        self.kinds.append(type(event).__name__)
        assert encoded(decoded(data, state), state) == data, "the same event has other bytes"
        if self.job is None or state is None:
            return
        assert version == state.version + isinstance(event, Stepped)
        check_published(self.job)
        if number % self._every == 0 or isinstance(event, Deleted):
            self.states[number] = frozen(state)

    def take_back(self, version: int) -> None:
        self.events.pop()
        self.kinds.pop()

    async def wait(self, position: int) -> None:
        assert position <= len(self.events)

    def end(self) -> None:
        """Looks at the job a last time, unless its end has been seen."""
        assert self.job is not None
        if self.kinds[-1:] != ["Deleted"]:
            check_published(self.job)
            self.states[len(self.events)] = frozen(self.job.state)
        assert not self.problems, "\n".join(self.problems)
        assert not self.job.fold.failure, self.job.fold.failure


def check_published(job: Job) -> None:
    """Asserts that readers see what the state is."""
    state, seen = job.state, job.snapshots.current
    assert seen.version == state.job_version
    assert seen.weights is state.weights
    assert seen.layouts == tuple(state.groups.layouts)
    assert seen.options == tuple(state.groups.options)
    assert seen.effective == tuple(state.groups.in_force.effective(state.version))
    for shown, true in zip(seen.steps, state.groups.step_ranges(), strict=True):
        assert np.array_equal(shown, true)
