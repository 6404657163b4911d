"""Weights on their way to readers: what is encoded once, how much is kept, and who has to hurry."""

import asyncio
import tracemalloc

import numpy as np
import pytest
from tests.server.engine.clock import Clock

from optd_server.engine.catalog import Catalog
from optd_server.engine.memory import Memory
from optd_server.engine.offload import Offload
from optd_server.rpc import weight_messages as module
from optd_server.rpc.callers import ANONYMOUS
from optd_server.rpc.services.training import TrainingService
from optd_server.rpc.weight_messages import KEPT_BYTES, WeightMessages
from optd_wire import frames as wire
from optd_wire.encodings.registry import ENCODINGS
from optd_wire.errors import InvalidRequest, TooSlow, UnknownGroup, UnknownParameter
from optd_wire.frames import Frame
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import Async, GroupSpec, GroupUpdate, JobSpec, ParameterSpec

BIG = (600_000,)
GROUPS = (
    GroupSpec("g", {}, (ParameterSpec("big", BIG, "float32"), ParameterSpec("x", (5,), "float64"))),
    GroupSpec("h", {}, (ParameterSpec("small", (7,), "float32"),)),
)


class Bench:
    """A job, and its readers."""

    def __init__(self, monkeypatch):
        self.offload = Offload(2)
        self.catalog = Catalog(memory=Memory(1 << 30), offload=self.offload, clock=Clock(), lease_seconds=10)
        self.service = TrainingService(self.catalog, 0.01)
        self.encoded = 0
        self.values = {
            (group, parameter.name): np.random.default_rng(index)
            .standard_normal(parameter.shape)
            .astype(parameter.dtype)
            for group, spec in enumerate(GROUPS)
            for index, parameter in enumerate(spec.parameters)
        }
        monkeypatch.setattr(module, "encode", self._encode)

    def _encode(self, message, frames):
        self.encoded += 1
        return wire.encode(message, frames)

    async def create(self, name="job"):
        with self.catalog.upload(JobSpec(name, "sgd", {}, GROUPS, Async())) as upload:
            for (group, parameter), values in self.values.items():
                offset = BIG[0] if parameter == "x" else 0
                upload.sink.write_all([Frame.of(group, offset, values)])
            return await self.catalog.finish(upload)

    async def pull(self, **request):
        """The frames of a pull."""
        return self.frames(
            [message async for message in self.service.pull(pb.PullRequest(job="job", **request), ANONYMOUS)]
        )

    def frames(self, messages):
        return [frame for message in messages for frame in wire.decode(pb.PullResponse, message)[1]]

    async def bumped(self, job):
        """The same weights at another revision."""
        lr = job.state.groups.options[0].options["lr"]
        await job.editor.update_group(GroupUpdate("g", {"lr": lr + 1}))


@pytest.fixture
def play(monkeypatch):
    def run(scenario):
        async def whole():
            bench = Bench(monkeypatch)
            try:
                async with asyncio.timeout(20):
                    await scenario(bench, await bench.create())
            finally:
                await bench.catalog.close()
                bench.offload.close()

        asyncio.run(whole())

    return run


def joined(frames, group, dtype, count, first=0):
    """Exact or lossy frames of one segment, put together."""
    found = np.full(count, np.nan, dtype)
    for frame in frames:
        inside = frame.group == group and first <= frame.offset and frame.offset + frame.count <= first + count
        if inside:
            frame.decode_into(found[frame.offset - first : frame.offset - first + frame.count])
    return found


@pytest.mark.parametrize("at_once", [False, True])
def test_readers_of_one_version_share_what_has_been_encoded(play, at_once):
    async def scenario(bench, job):
        first = await bench.pull()
        once = bench.encoded
        assert once > 1
        await bench.bumped(job)
        bench.encoded = 0
        if at_once:
            answers = await asyncio.gather(*(bench.pull() for _ in range(8)))
        else:
            answers = [await bench.pull() for _ in range(8)]
        assert bench.encoded == once
        for frames in (first, *answers):
            assert joined(frames, 0, "f4", BIG[0]).tobytes() == bench.values[0, "big"].tobytes()
            assert joined(frames, 0, "f8", 5, BIG[0]).tobytes() == bench.values[0, "x"].tobytes()
            assert joined(frames, 1, "f4", 7).tobytes() == bench.values[1, "small"].tobytes()

    play(scenario)


def test_a_new_version_another_encoding_and_another_job_are_encoded_anew(play):
    async def scenario(bench, job):
        counts = []
        for encoding in (0, ENCODINGS["bfloat16"].number, ENCODINGS["int8"].number):
            before = bench.encoded
            await bench.pull(delivery=pb.Delivery(encoding=encoding))
            counts.append(bench.encoded - before)
        assert min(counts) > 0
        before = bench.encoded
        await bench.bumped(job)
        await bench.pull()
        assert bench.encoded > before
        await bench.catalog.delete("job")
        bench.values = {key: values + 1 for key, values in bench.values.items()}
        await bench.create()
        assert joined(await bench.pull(), 1, "f4", 7).tobytes() == bench.values[1, "small"].tobytes()

    play(scenario)


def test_a_reader_that_goes_away_while_it_encodes_leaves_the_others_theirs(play):
    async def scenario(bench, job):
        pulls = [asyncio.create_task(bench.pull()) for _ in range(3)]
        while not bench.encoded:  # noqa: ASYNC110 - it is a count
            await asyncio.sleep(0)
        pulls[0].cancel()
        for frames in await asyncio.gather(*pulls[1:]):
            assert joined(frames, 0, "f4", BIG[0]).tobytes() == bench.values[0, "big"].tobytes()
        await asyncio.wait(pulls)
        assert job.snapshots.current.weights.holders == 0

    play(scenario)


def test_what_is_kept_is_bounded(play):
    async def scenario(bench, job):
        messages: WeightMessages = bench.service._messages
        for _ in range(12):
            await bench.bumped(job)
            await bench.pull()
            assert sum(map(len, messages._kept.values())) <= messages._kept_bytes <= KEPT_BYTES
        assert messages._kept_bytes > KEPT_BYTES // 2
        assert not messages._under_way

    play(scenario)


def test_small_pieces_count_with_what_it_takes_to_keep_them(play):
    async def scenario(bench, job):
        messages: WeightMessages = bench.service._messages
        await bench.pull(parameters=["x"])
        tracemalloc.start()
        try:
            before, counted = tracemalloc.get_traced_memory()[0], messages._kept_bytes
            for _ in range(300):
                await bench.bumped(job)
                await bench.pull(parameters=["x"])
                await bench.pull(parameters=["x", "small"])
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert len(messages._kept) >= 600
        assert used <= messages._kept_bytes - counted

    play(scenario)


def test_what_is_kept_makes_room_for_what_comes(play, monkeypatch):
    async def scenario(bench, job):
        messages: WeightMessages = bench.service._messages
        monkeypatch.setattr(module, "KEPT_BYTES", 10_000)
        for _ in range(50):
            await bench.bumped(job)
            await bench.pull(parameters=["x"])
        assert 5 < len(messages._kept) < 20
        await bench.bumped(job)
        await bench.pull()  # larger than all that may be kept
        assert messages._kept_bytes == sum(piece.bytes_with(body) for piece, body in messages._kept.items()) <= 10_000

    play(scenario)


@pytest.mark.parametrize(
    ("wanted", "error", "name"),
    [
        ({"groups": ["h", "nobody"]}, UnknownGroup, "nobody"),
        ({"parameters": ["x", "nothing"]}, UnknownParameter, "nothing"),
        ({"groups": ["g"], "parameters": ["big", "what"]}, UnknownParameter, "what"),
    ],
)
def test_what_is_asked_for_and_not_there_is_named(play, wanted, error, name):
    async def scenario(bench, job):
        with pytest.raises(error, match=name):
            await bench.pull(**wanted)
        assert bench.encoded == 0
        assert job.snapshots.current.weights.holders == 0

    play(scenario)


def test_who_has_the_weights_already_gets_none(play):
    async def scenario(bench, job):
        version = job.version
        for selected in ({}, {"groups": ["h"]}, {"parameters": ["x"]}):
            known = {"known_version": version.version, "known_revision": version.revision}
            assert await bench.pull(**known, **selected) == []
            assert await bench.pull(**known | {"known_revision": version.revision + 1}, **selected)
            assert await bench.pull(known_version=version.version, **selected)
        await bench.bumped(job)
        assert await bench.pull(known_version=version.version, known_revision=version.revision)

    play(scenario)


def test_groups_and_parameters_can_be_read_alone(play):
    async def scenario(bench, job):
        frames = await bench.pull(groups=["h"])
        assert {frame.group for frame in frames} == {1}
        assert joined(frames, 1, "f4", 7).tobytes() == bench.values[1, "small"].tobytes()
        frames = await bench.pull(parameters=["x"])
        assert [(frame.group, frame.offset, frame.count) for frame in frames] == [(0, BIG[0], 5)]
        assert joined(frames, 0, "f8", 5, BIG[0]).tobytes() == bench.values[0, "x"].tobytes()
        before = bench.encoded
        await bench.pull(parameters=["x"])
        assert bench.encoded == before

    play(scenario)


@pytest.mark.parametrize(("name", "error"), [("bfloat16", 2**-8), ("float16", 2**-10), ("int8", 2**-4)])
def test_weights_can_be_read_in_fewer_bytes(play, name, error):
    async def scenario(bench, job):
        frames = await bench.pull(delivery=pb.Delivery(encoding=ENCODINGS[name].number))
        assert {frame.encoding.name for frame in frames} == {name}
        found = joined(frames, 0, "f4", BIG[0])
        assert np.abs(found - bench.values[0, "big"]).max() < error * 6
        assert found.tobytes() != bench.values[0, "big"].tobytes()

    play(scenario)


@pytest.mark.parametrize("number", [ENCODINGS["topk"].number, 77])
def test_weights_do_not_travel_in_every_encoding(play, number):
    async def scenario(bench, job):
        with pytest.raises(InvalidRequest, match="weights cannot travel in"):
            await bench.pull(delivery=pb.Delivery(encoding=number))
        assert job.snapshots.current.weights.holders == 0

    play(scenario)


@pytest.mark.parametrize("wanted", [False, True])
def test_a_slow_reader_is_cut_off_only_while_a_step_waits(play, wanted):
    async def scenario(bench, job):
        answer = bench.service.pull(pb.PullRequest(job="job"), ANONYMOUS)
        await anext(answer)
        await asyncio.sleep(0.03)
        job.snapshots.wanted = wanted
        if wanted:
            with pytest.raises(TooSlow):
                [message async for message in answer]
        else:
            [message async for message in answer]
        assert job.snapshots.current.weights.holders == 0

    play(scenario)
