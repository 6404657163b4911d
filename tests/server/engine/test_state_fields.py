"""All that a job's state consists of, listed: who adds a field says here that it survives, or what it follows from.

That nothing else changes the results of later steps is what `test_fold` finds out.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.server.engine.folding.comparing import difference, frozen

from optd_server.engine.enumeration import enumerated
from optd_server.engine.membership.members import Member, Members
from optd_server.engine.options.groups import GroupKept, Groups
from optd_server.engine.options.history import OptionHistory
from optd_server.engine.state import JobState
from optd_server.engine.step.accumulation import Accumulation
from optd_server.engine.step.averages import Average, Averages
from optd_server.engine.step.staleness import FragmentSteps
from optd_server.optim.algorithms.lbfgs import History, Search
from optd_server.optim.algorithms.sgd import SGD
from optd_server.optim.iterative import Searches, SearchState
from optd_server.optim.segment import SegmentState
from optd_server.store.flat import FlatBuffers
from optd_server.store.versions import WeightSet
from optd_wire.frames import Frame
from optd_wire.values import (
    Async,
    Bounded,
    Exponential,
    GradientSummary,
    GroupOptions,
    GroupUpdate,
    JobOptions,
    JobUpdate,
    PushResult,
    Sync,
)

SURVIVES: dict[type[Any], str] = {
    JobState: (
        "name id created_wall created_with ephemeral policy first_policy version revision stepped_wall "
        "written_revision applied_pushes groups weights averages accumulation search fragments options history "
        "gradients members"
    ),
    GroupKept: "algorithm layout options last_changed extent",
    SegmentState: "sizes weights_dtype shapes groups steps state started",
    Averages: "kept",
    Average: "updates buffers",
    Accumulation: "count sums totals rows",
    SearchState: "search has_ended are_written",
    OptionHistory: "recent last counts",
    Members: "by_name forgotten_epoch",
    Member: (
        "name epoch active fenced_by sequence reply checksum write_id written pushes staleness previous_epoch "
        "previous_sequence session_id joined last_rounds"
    ),
    Search: "settings history weights evaluations iterations evaluations_before iterations_before line_search",
    History: "direction distance gradient loss of_gradient of_weights inverses scale",
    # Values of the contract that a state holds.
    PushResult: (
        "version applied_version staleness repeat options accumulated skipped unfinished clipped norms effective pushes"
    ),
    GroupOptions: "group options revision since_version algorithm",
    JobOptions: "options revision since_version",
    GradientSummary: (
        "nonfinite nonfinite_unix_ms nonfinite_version nonfinite_worker nonfinite_parameter skipped_steps "
        "clipped_steps norm accumulated"
    ),
    Async: "staleness max_staleness",
    Sync: "workers quorum grace round_seconds on_death",
    Bounded: "staleness",
    Exponential: "alpha cutoff",
    FragmentSteps: "versions",
}
"""The fields of the dataclasses that a state is made of. All of them are told by `enumerated`."""

ATTRIBUTES: dict[type[Any], tuple[str, str]] = {
    Groups: (
        "algorithm defaults algorithms layouts options _last_changed _states _extent_of",
        "distinct_algorithms iterative rows_only extents names elements parameters state_fields _fields_of _index_of "
        "in_force",
    ),
    FlatBuffers: ("slabs", "extents regions arrays _allocate"),
    WeightSet: ("buffers", "holders in_place publications shared"),
    Searches: ("state", ""),
    SegmentState: (SURVIVES[SegmentState], "offsets count dtype _own_layout _first _all_filled _layouts _prepared"),
}
"""The attributes of the other parts: what survives, and what follows from it or only says who uses the memory."""

MADE = {
    Groups: lambda: Groups(SGD, {}),
    FlatBuffers: lambda: FlatBuffers(()),
    WeightSet: lambda: WeightSet(()),
    Searches: Searches,
    SegmentState: lambda: SegmentState([1], np.dtype("f4")),
}


@pytest.mark.parametrize("part", SURVIVES, ids=lambda part: part.__name__)
def test_the_fields_of_a_state_are_these(part):
    assert [field.name for field in dataclasses.fields(part)] == SURVIVES[part].split()


@pytest.mark.parametrize("part", ATTRIBUTES, ids=lambda part: part.__name__)
def test_the_attributes_of_a_part_of_a_state_are_these(part):
    survives, follows = ATTRIBUTES[part]
    assert sorted(vars(MADE[part]())) == sorted([*survives.split(), *follows.split()])


async def set_job(job, **options):
    await job.editor.update_job(JobUpdate("job", options))


async def eventful(engine):
    """A job whose state has something in each of its fields."""
    job = await engine.create(Async(), momentum=0.9)
    for worker in ("a", "b"):
        await job.join(worker, None)
    await engine.push(job, "a", 1, norms=True, updates=(GroupUpdate("g", {"lr": 0.5}),))
    await set_job(job, ema_decay=0.9, accumulate=3, clip_norm=0.1)
    for sequence in (1, 2, 3, 4):
        frames = [Frame.of(0, 0, np.full(4, 2.0, "f4")), Frame.of(1, 0, np.ones(2))]
        await engine.push(job, "b", sequence, frames=frames)
    return job


def test_each_field_is_told(play):
    async def scenario(engine):
        job = await eventful(engine)
        told = {path.split(".")[0] for path in enumerated(job.state)}
        assert told == {"type", *SURVIVES[JobState].split()}

    play(scenario)


def test_a_part_that_nobody_knows_is_an_error(play):
    async def scenario(engine):
        job = await eventful(engine)
        job.state.history = object()
        with pytest.raises(TypeError, match="nothing says what it consists of"):
            enumerated(job.state)

    play(scenario)


def test_a_copy_is_equal_and_shares_no_memory(play):
    async def scenario(engine):
        job = await eventful(engine)
        copy = job.state.copy()
        assert not difference(frozen(job.state), frozen(copy))
        mine, theirs = enumerated(job.state), enumerated(copy)
        arrays = [path for path, leaf in mine.items() if isinstance(leaf, np.ndarray) and leaf.size]
        assert {path.split(".")[0] for path in arrays} == {"groups", "weights", "averages", "accumulation"}
        for path in arrays:
            if not path.startswith("groups.groups."):  # layouts are values
                assert not np.shares_memory(mine[path], theirs[path]), path

    play(scenario)


def test_a_copy_stays_as_it_is_when_the_job_goes_on(play):
    async def scenario(engine):
        job = await eventful(engine)
        copy = job.state.copy()
        before = frozen(copy)
        await engine.push(job, "a", 2, value=5.0)
        await set_job(job, swa_start=0)
        await engine.push(job, "a", 3, updates=(GroupUpdate("h", {"lr": 0.25}),))
        await job.workers.leave("a", 1)
        assert job.state.version > copy.version
        assert not difference(before, frozen(copy))

    play(scenario)
