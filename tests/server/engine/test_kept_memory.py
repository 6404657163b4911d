"""What the frames of a push that waits for its round keep in memory is what the job counts for them."""

import logging
from collections.abc import Sequence

import numpy as np
import pytest
from tests.server.engine.rounds import Rounds, Upload, play, random_arrays, same, settle, stepped, until

from optd_server.engine.memory import FRAME_BYTES
from optd_server.engine.readers.rounds import open_rounds
from optd_server.engine.rounds import holding
from optd_server.engine.rounds.digest import Digest
from optd_server.engine.rounds.spool import Spool
from optd_wire import errors
from optd_wire.encodings.registry import exact_for
from optd_wire.frames import Frame, Received, decode_received, encode
from optd_wire.row_frames import RowFrame
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import Async, GroupSpec, ParameterSpec, Policy, Sync

FLOAT32 = exact_for(np.dtype("f4"))
GROUPS = (GroupSpec("g", {}, (ParameterSpec("w", (64,), "float32"), ParameterSpec("t", (8, 1), "float32"))),)
EMPTY = np.empty(0, "f4")


def rows(rounds: Rounds, *ids: int) -> RowFrame:
    names = [parameter.name for parameter in rounds.job.state.groups.layouts[0].parameters]
    values = np.ones(len(ids), "f4").tobytes()
    return RowFrame(0, names.index("t"), len(ids), FLOAT32, np.array(ids, np.uint64), values)


def offset_of_w(rounds: Rounds) -> int:
    return rounds.frames({"w": EMPTY})[0][1].offset


def received(frames: Sequence[Received], unknown: bytes = b"") -> list[Received]:
    """Frames as they come from the wire: views into a message, here perhaps one with an unknown field."""
    message = pb.PushRequest.FromString(unknown)
    return decode_received(pb.PushRequest, encode(message, frames))[1]


async def spool_of(rounds: Rounds, *frames: Received) -> tuple[Upload, Spool]:
    """What a push of worker a keeps that has sent these frames, in a round that waits for worker b."""
    upload = rounds.upload("a")
    upload.send(frames)
    await until(upload._given.empty)
    await settle()
    spool = rounds.job.pushes._under_way["a"].spool
    assert isinstance(spool, Spool)
    return upload, spool


def test_frames_without_numbers_are_not_kept():
    async def scenario(rounds):
        await rounds.join("a", "b")
        upload, spool = await spool_of(rounds, *received([Frame.of(0, 3, EMPTY)] * 100 + [rows(rounds)] * 100))
        assert (spool.placed, spool.rows) == ([], [])
        assert [table.name for table in spool.tables] == ["t"], "the push has rows of it, if none"
        upload.break_off()
        await upload.error()

    play(scenario, 2, groups=GROUPS)


def test_frames_without_numbers_make_no_difference_to_the_step_and_belong_to_the_content():
    async def scenario(rounds):
        await rounds.join("a", "b")
        gradients = [{"w": random_arrays(seed, GROUPS)["w"]} for seed in (1, 2)]
        header = rounds.header("a")
        sent = [Frame.of(0, 3, EMPTY), *rounds.messages(gradients[0])[0], rows(rounds)]
        upload, _ = await spool_of(rounds, *sent)
        digest = Digest(header)
        digest.add(sent)
        assert rounds.job.pushes._under_way["a"].digest.checksum == digest.checksum
        upload.send(last=True)
        other = rounds.upload("b", rounds.messages(gradients[1])[0], last=True)
        await upload
        await other
        assert same(rounds.weights, stepped(rounds.first, gradients))

    play(scenario, 2, groups=GROUPS)


def test_an_empty_frame_that_addresses_nothing_is_still_refused():
    async def scenario(rounds):
        await rounds.join("a", "b")
        upload = rounds.upload("a")
        upload.send([Frame.of(9, 0, EMPTY)])
        assert type(await upload.error()) is errors.InvalidRequest

    play(scenario, 2, groups=GROUPS)


def test_row_ids_and_the_frames_themselves_count():
    async def scenario(rounds):
        await rounds.join("a", "b")
        single = [Frame.of(0, offset_of_w(rounds) + 2 * n, np.ones(1, "f4")) for n in range(30)]
        upload, spool = await spool_of(rounds, *single, rows(rounds, 1, 2, 3))
        assert spool._used == 31 * FRAME_BYTES + 30 * 4 + 3 * (8 + 4)
        upload.break_off()
        await upload.error()
        assert spool._held == 0

    play(scenario, 2, groups=GROUPS)


def test_a_message_counts_whole_because_its_frames_keep_all_of_it():
    async def scenario(rounds):
        await rounds.join("a", "b")
        offset = offset_of_w(rounds)
        unknown = b"\xfa\x01\xff\x7f" + bytes(0x3FFF)
        upload, spool = await spool_of(rounds, *received([Frame.of(0, offset, np.ones(1, "f4"))], unknown))
        assert spool._held > len(unknown)
        upload.break_off()
        await upload.error()

    play(scenario, 2, groups=GROUPS)


@pytest.mark.parametrize("kind", ["empty", "no rows", "one row"])
def test_39_a_push_of_countless_small_frames_is_refused_before_it_fills_the_server(kind, monkeypatch):
    monkeypatch.setattr(holding, "PATIENCE_SECONDS", 0.01)

    async def scenario(rounds):
        await rounds.join("a", "b")
        memory = rounds.catalog.memory
        memory.limit = memory.planned + 1000 * FRAME_BYTES
        frame = {"empty": Frame.of(0, 0, EMPTY), "no rows": rows(rounds), "one row": rows(rounds, 1)}[kind]
        upload = rounds.upload("a")
        for _ in range(30):
            upload.send(received([frame] * 100))
        assert type(await upload.error()) is errors.TooManyBytes

    play(scenario, 2, groups=GROUPS)


def test_a_gradient_in_a_frame_for_each_parameter_fits_into_what_is_planned():
    async def scenario(rounds):
        await rounds.join("a", "b")
        rounds.catalog.memory.limit = rounds.catalog.memory.planned
        await rounds.step({name: random_arrays(ord(name), GROUPS) for name in "ab"})

    play(scenario, 2, groups=GROUPS)


def test_where_no_number_of_workers_is_known_nothing_is_planned_for_frames():
    async def scenario(rounds):
        await rounds.join("a", "b")
        await rounds.job.editor.set_policy(Sync("live"))
        memory = rounds.catalog.memory
        before = memory.planned
        upload, spool = await spool_of(rounds, *rounds.messages(random_arrays(1, GROUPS))[0])
        assert memory.planned - before == spool._held
        upload.break_off()
        await upload.error()
        assert memory.planned == before

    play(scenario, 2, groups=GROUPS)


# Another policy


async def waiting_in(rounds: Rounds, policy: Policy) -> tuple[int, Upload]:
    """What is reserved for the job and a push that waits, under a policy that the push finds."""
    if policy != rounds.job.state.policy:
        await rounds.job.editor.set_policy(policy)
    upload, _ = await spool_of(rounds, *rounds.messages(random_arrays(1, GROUPS))[0])
    return rounds.catalog.memory.planned, upload


@pytest.mark.parametrize(("one", "other"), [(Sync(2), Sync("live")), (Sync("live"), Sync(2)), (Sync(2), Sync(3))])
def test_another_policy_reserves_what_pushes_hold_as_if_they_had_found_it(one, other):
    async def scenario(rounds):
        await rounds.join("a", "b")
        expected, upload = await waiting_in(rounds, other)
        upload.break_off()
        await upload.error()
        _, upload = await waiting_in(rounds, one)
        await rounds.job.editor.set_policy(other)
        assert rounds.catalog.memory.planned == expected
        upload.break_off()
        await upload.error()

    play(scenario, 2, groups=GROUPS)


def test_a_policy_beside_which_what_pushes_hold_does_not_fit_leaves_the_old_one():
    large = (GroupSpec("g", {}, (ParameterSpec("w", (10_000,), "float32"),)),)

    async def scenario(rounds):
        await rounds.join("a", "b")
        memory = rounds.catalog.memory
        await rounds.job.editor.set_policy(Async())
        alone = memory.planned
        await rounds.job.editor.set_policy(Sync(2))
        upload, spool = await spool_of(rounds, *rounds.messages(random_arrays(1, large))[0])
        before = memory.planned
        memory.limit = alone + spool._held - 1
        with pytest.raises(errors.MemoryExceeded):
            await rounds.job.editor.set_policy(Async())
        assert (memory.planned, rounds.job.state.policy) == (before, Sync(2))
        memory.limit += 1
        await rounds.job.editor.set_policy(Async())
        assert memory.planned == memory.limit
        upload.break_off()
        await upload.error()
        assert memory.planned == alone

    play(scenario, 2, groups=large)


def test_parts_of_gradients_do_not_take_the_memory_that_each_of_them_needs(caplog):
    """With room for one and a half gradients, one comes through whole. People see who waits, and why."""
    caplog.set_level(logging.INFO, "optd.jobs")

    async def scenario(rounds):
        await rounds.join("a", "b")
        await rounds.job.editor.set_policy(Sync("live", quorum=1, grace=0.0))
        memory = rounds.catalog.memory
        before = memory.planned
        part = 1 << 14
        messages = [[Frame.of(0, part * n, np.ones(part, "f4"))] for n in range(4)]
        upload, first = await spool_of(rounds, *messages[0])
        assert first._held == FRAME_BYTES + 4 * 4 * part, "memory for all that it may send"
        memory.limit = before + 4 * 6 * part
        second = rounds.upload("b", messages[0])
        await settle()
        assert rounds.job.pushes._under_way["b"].spool._held == 0, "it waits"
        (found,) = open_rounds(rounds.job, rounds.clock)
        assert "no memory is left for the gradient of b (--max-memory-bytes)" in found.release
        assert [record.getMessage() for record in caplog.records].count("pushes wait for memory") == 1
        for message in messages[1:]:
            upload.send(message)
        upload.send(last=True)
        assert (await upload).result.pushes == 1
        assert type(await second.error()) is errors.RoundClosed
        assert memory.planned == before

    play(scenario, 2, groups=(GroupSpec("g", {}, (ParameterSpec("w", (1 << 16,), "float32"),)),))


def test_memory_beyond_what_a_gradient_took_is_given_back_when_it_is_there():
    async def scenario(rounds):
        await rounds.join("a", "b")
        await rounds.job.editor.set_policy(Sync("live"))
        whole = rounds.messages(random_arrays(1, GROUPS))
        upload, spool = await spool_of(rounds, *whole[0])
        assert spool._held > spool._used
        upload.send(last=True)
        await settle()
        assert spool._held == spool._used == FRAME_BYTES + whole[0][0].count * 4
        await rounds.leave("b")
        await upload

    play(scenario, 2, groups=GROUPS)
