"""A read with the gradient of a step gets it however it travels, and steps do not change for it."""

import asyncio

import numpy as np
import pytest
from tests.server.engine.rounds import play, random_arrays, same, settle
from tests.server.engine.test_sharing import shares

from optd_server.engine.readers.inspection import inspect_group
from optd_server.engine.readers.last_gradient import read_with_gradient
from optd_server.engine.readers.state import read_state, select
from optd_wire import errors


async def forever():
    await asyncio.Event().wait()


async def not_at_all():
    pass


def inspect(rounds, patience, group="g"):
    return asyncio.create_task(inspect_group(rounds.job, group, "", with_statistics=True, bins=0, patience=patience))


def read(rounds, patience):
    return asyncio.create_task(read_state(rounds.job, select(rounds.job, ["gradient"], "", ""), patience))


def norms(report):
    """Of the gradients in a report, by parameter."""
    return {
        each.parameter.name: field.statistics.norm
        for each in report.parameters
        for field in each.fields
        if field.field == "gradient"
    }


def expected(gradient, names=("a", "b")):
    return {name: pytest.approx(float(np.linalg.norm(gradient[name].astype("f8")))) for name in names}


async def shared_step(rounds, seed):
    gradient = random_arrays(seed)
    await rounds.share("a", gradient)
    return gradient


def test_who_looks_gets_the_gradient_of_the_next_step_though_its_worker_writes_on():
    async def scenario(rounds):
        await rounds.join("a")
        share = await shares(rounds, "a")
        await shared_step(rounds, 1)
        looking, reading = inspect(rounds, forever), read(rounds, forever)
        await settle()
        assert not looking.done()
        gradient = await shared_step(rounds, 2)
        for slab in share.buffers.all_slabs():
            slab[:] = 7  # the next gradient
        report, provenance = await looking
        assert (norms(report), report.version.version, provenance.version) == (expected(gradient), 2, 2)
        assert provenance.note == ""
        sent = {(frame.group, frame.offset): frame.values for frame in (await reading).frames}
        assert np.array_equal(sent[0, 0], gradient["a"])
        assert not rounds.job.gradient_reads.waiting

    play(scenario, 0)


def test_where_no_step_comes_the_workers_memory_is_shown_with_a_note_and_never_read_as_state():
    async def scenario(rounds):
        await rounds.join("a")
        await shares(rounds, "a")
        gradient = await shared_step(rounds, 1)
        report, provenance = await inspect(rounds, not_at_all)
        assert (norms(report), provenance.version) == (expected(gradient), 1)
        assert "worker 'a' has now" in provenance.note
        reading = await read(rounds, not_at_all)
        assert reading.frames == []
        assert not any(any(entry.present) for group in reading.result.groups for entry in group.entries)

    play(scenario, 0)


@pytest.mark.parametrize("end", ["leaves", "pushes"])
def test_memory_that_is_gone_or_written_anew_is_not_shown(end):
    async def scenario(rounds):
        await rounds.join("a", "b")
        await shares(rounds, "a")
        await shared_step(rounds, 1)
        if end == "leaves":
            await rounds.leave("a")
        else:
            rounds.job.gradient_reads.forget("a")  # as an announced push does
        report, provenance = await inspect(rounds, not_at_all)
        assert (norms(report), provenance.version) == ({}, None)
        assert "is not kept" in provenance.note

    play(scenario, 0)


def test_a_push_that_is_announced_takes_the_place_of_what_was_there():
    async def scenario(rounds):
        await rounds.join("a")
        await shares(rounds, "a")
        await shared_step(rounds, 1)
        assert rounds.job.gradient_reads.borrowed is not None
        with pytest.raises(errors.OptdError):
            # Refused after it was announced: what the worker has written by then is another gradient.
            await rounds.share("a", {name: np.full_like(array, np.nan) for name, array in random_arrays(2).items()})
        assert rounds.job.gradient_reads.borrowed is None

    play(scenario, 0)


def test_a_gradient_that_lies_in_a_slot_is_shown_at_once():
    async def scenario(rounds):
        await rounds.join("a")
        assert (await inspect(rounds, forever))[1].note == "no step has been made yet"
        gradient = random_arrays(1)
        await rounds.step({"a": gradient})
        report, provenance = await inspect(rounds, forever)
        assert (norms(report), provenance.version, provenance.note) == (expected(gradient), 1, "")

    play(scenario, 0)


def test_while_a_slot_is_taken_by_the_next_push_that_one_is_shown():
    async def scenario(rounds):
        await rounds.join("a")
        await rounds.step({"a": random_arrays(1)})
        slots, taken = rounds.job.slots, []
        while slots.last is not None:
            slots.take(taken.append)
        gradient = random_arrays(2)
        first, *others = rounds.messages(gradient)
        upload = rounds.upload("a", first)
        slots.give_back(taken.pop())
        await settle()
        looking = inspect(rounds, forever)
        await settle()
        assert not looking.done()
        upload.send_all(others)
        await upload
        report, provenance = await looking
        assert (norms(report), provenance.version) == (expected(gradient), 2)
        for slot in taken:
            slots.give_back(slot)

    play(scenario, 0)


def test_steps_are_as_without_those_who_look_whatever_becomes_of_these():
    async def scenario(rounds):
        await rounds.join("a")
        await shares(rounds, "a")
        await shared_step(rounds, 1)

        def fails():
            raise KeyError("mine")

        failing = asyncio.create_task(read_with_gradient(rounds.job, 1, fails, forever, borrowed=True))
        cancelled = inspect(rounds, forever)
        await settle()
        cancelled.cancel()
        await settle()
        before = rounds.weights
        gradient = await shared_step(rounds, 2)
        assert same(rounds.weights, {name: before[name] - gradient[name] for name in before})
        with pytest.raises(KeyError, match="mine"):
            await failing
        assert rounds.job.fold.failure == ""

    play(scenario, 0)


def test_who_looks_at_a_job_that_is_deleted_is_told():
    async def scenario(rounds):
        await rounds.join("a")
        await shares(rounds, "a")
        await shared_step(rounds, 1)
        looking = inspect(rounds, forever)
        await settle()
        await rounds.catalog.delete("job")
        with pytest.raises(errors.UnknownJob):
            await looking

    play(scenario, 0)
