"""Steps that touch few elements, among all else that happens to a job's weights, against arithmetic on plain arrays."""

import asyncio

import numpy as np
import pytest
from tests.server.engine.clock import Clock

from optd_server.engine.catalog import Catalog
from optd_server.engine.memory import Memory
from optd_server.engine.offload import Offload
from optd_server.engine.readers.delta import delta_since
from optd_server.engine.state_upload import StateUpload
from optd_server.store import recent_changes
from optd_server.store.extents import extent_of
from optd_server.store.flat import FlatBuffers
from optd_wire.encodings.registry import exact_for
from optd_wire.errors import MemoryExceeded
from optd_wire.frames import Frame
from optd_wire.layout import lay_out
from optd_wire.row_frames import RowFrame
from optd_wire.values import Async, GroupSpec, JobSpec, ParameterSpec, PushHeader, Sync, WriteStateHeader

# The first two lie in one slab, whose other parameters are few elements of it; the last comes later, as another group.
SHAPES = {"small": (30,), "table": (20_000, 3), "bias": (2000,), "cube": (50, 2, 2), "later": (15_000, 3)}
GROUPS = (("small", "table"), ("bias", "cube"), ("later",))
DTYPE = np.dtype("f4")
FLOAT32 = exact_for(DTYPE)


def spec(group: int) -> GroupSpec:
    return GroupSpec(f"g{group}", {}, tuple(ParameterSpec(name, SHAPES[name], "float32") for name in GROUPS[group]))


class Upload:
    """Frames that are at hand."""

    def __init__(self, frames):
        self._frames = frames

    async def receive(self, write):
        for frame in self._frames:
            await write([frame])

    def park(self):
        pass


class Play:
    """A job, the weights that it should have, and readers that keep up by what has changed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.weights = {name: self.rng.standard_normal(shape).astype(DTYPE) for name, shape in SHAPES.items()}
        self.groups = 2
        self.sequence = 0
        self.held = []
        self.copies = {0: self.copy()}

    @classmethod
    async def begin(cls, catalog, policy, seed, workers=("w",)):
        play = cls(seed)
        with catalog.upload(JobSpec("job", "sgd", {"lr": 0.5}, (spec(0), spec(1)), policy)) as upload:
            upload.sink.write_all([Frame.of(group, 0, play.flat(group)) for group in range(2)])
            play.job = await catalog.finish(upload)
        for worker in workers:
            await play.job.join(worker, None)
        return play

    def names(self):
        return [name for group in GROUPS[: self.groups] for name in group]

    def flat(self, group):
        return np.concatenate([self.weights[name].reshape(-1) for name in GROUPS[group]])

    def copy(self):
        return {name: self.weights[name].copy() for name in self.names()}

    async def push(self, frames, worker="w"):
        header = PushHeader("job", worker, 1, self.sequence, 0)
        await self.job.push(header, Upload(frames))

    def frame(self, name, values):
        group = next(number for number, names in enumerate(GROUPS) if name in names)
        before = GROUPS[group][: GROUPS[group].index(name)]
        return Frame.of(group, sum(int(np.prod(SHAPES[each])) for each in before), values.reshape(-1))

    def rows(self, name, ids, values):
        group = next(number for number, names in enumerate(GROUPS) if name in names)
        place = GROUPS[group].index(name)
        return RowFrame(group, place, len(ids), FLOAT32, ids.astype("<u8"), values.reshape(-1))

    # What happens

    async def step(self):
        """Rows of some parameters, and whole gradients of others."""
        kinds = self.rng.choice(["absent", "rows", "rows", "whole"], len(self.names()))
        if self.rng.random() < 0.5:
            kinds[kinds == "whole"] = "absent"
        frames = []
        for name, kind in zip(self.names(), kinds, strict=True):
            shape = SHAPES[name]
            if kind == "whole":
                gradient = self.rng.standard_normal(shape).astype(DTYPE)
                frames.append(self.frame(name, gradient))
                self.weights[name] += gradient * np.float32(-0.5)
            elif kind == "rows":
                ids = self.rng.permutation(shape[0])[: self.rng.choice([0, 5, shape[0] // 2])]
                gradient = self.rng.standard_normal((len(ids), *shape[1:])).astype(DTYPE)
                frames.append(self.rows(name, ids, gradient))
                self.weights[name][ids] += gradient * np.float32(-0.5)
        self.sequence += 1
        await self.push(frames)

    async def replace(self):
        """All weights are written, which makes no version."""
        for name in self.names():
            self.weights[name] = self.rng.standard_normal(SHAPES[name]).astype(DTYPE)
        upload = StateUpload(self.job, WriteStateHeader("job", "w", 1, (), ()), 0.0)
        upload.write([Frame.of(group, 0, self.flat(group)) for group in range(self.groups)])
        await upload.put_in_force()

    async def add_group(self):
        """The last group comes."""
        if self.groups == len(GROUPS):
            return
        given = spec(2)
        buffers = FlatBuffers([extent_of([lay_out(given.parameters)], 2)])
        buffers.arrays[0][0][:] = self.flat(2)
        await self.job.editor.add_group(given, buffers, 2)
        self.groups = 3
        # Who has the group has pulled since.
        self.copies = {self.job.version.version: self.copy()}

    async def share(self):
        """Weights go to memory that workers can map."""
        await self.job.open_shared_memory("w", 1)

    async def read(self):
        """A reader comes, or goes. With two, no set would be left for a step."""
        snapshots = self.job.snapshots
        if not self.held:
            held = snapshots.hold()
            self.held.append((held, self.copy()))
        else:
            snapshots.release(self.held.pop(0)[0])

    def check(self):
        snapshots = self.job.snapshots
        for snapshot, expected in [(snapshots.current, self.weights), *self.held]:
            for group, layout in enumerate(snapshot.layouts):
                for parameter in layout.parameters:
                    found = snapshot.arrays(group)[0][parameter.offset : parameter.offset + parameter.size]
                    np.testing.assert_array_equal(found, expected[parameter.name].reshape(-1), parameter.name)
        for version, copied in self.copies.items():
            self.bring_up_to_date(version, {name: array.copy() for name, array in copied.items()})
        version = snapshots.current.version.version
        # Several versions of one number differ where weights were replaced: any of them must do.
        if version not in self.copies or self.rng.random() < 0.5:
            self.copies[version] = self.copy()

    def bring_up_to_date(self, version, copied):
        current = self.job.snapshots.current
        changed = delta_since(self.job, version)
        for part in changed.ranges:
            flat = np.concatenate([copied[name].reshape(-1) for name in GROUPS[part.group]])
            here = slice(part.offset, part.offset + part.count)
            flat[here] = current.arrays(part.group)[0][here]
            ends = np.cumsum([copied[name].size for name in GROUPS[part.group]])[:-1]
            for name, numbers in zip(GROUPS[part.group], np.split(flat, ends), strict=True):
                copied[name] = numbers.reshape(SHAPES[name])
        for rows in changed.rows:
            table = copied[GROUPS[rows.place.group][rows.place.member]]
            table[rows.ids] = rows.of(current, rows.ids).reshape(-1, *table.shape[1:])
        for name, array in copied.items():
            np.testing.assert_array_equal(array, self.weights[name], f"{name} since {version}")


def run(scenario, limit=1 << 24):
    async def whole():
        offload = Offload(1)
        catalog = Catalog(memory=Memory(limit), offload=offload, clock=Clock(), lease_seconds=10)
        try:
            async with asyncio.timeout(10):
                await scenario(catalog)
        finally:
            await catalog.close()
            offload.close()

    asyncio.run(whole())


@pytest.mark.parametrize("entries", [1, 3, 64])
@pytest.mark.parametrize("seed", range(2))
def test_weights_are_what_they_should_be_whatever_happens_between_steps(monkeypatch, entries, seed):
    monkeypatch.setattr(recent_changes, "MOST_ENTRIES", entries)

    async def scenario(catalog):
        play = await Play.begin(catalog, Async(), seed)
        actions = [play.step] * 12 + [play.replace, play.add_group, play.share, play.read, play.read, play.read]
        for _ in range(40):
            await actions[play.rng.integers(len(actions))]()
            play.check()

    run(scenario)


def test_a_step_of_few_rows_says_what_it_changes():
    async def scenario(catalog):
        play = await Play.begin(catalog, Async(), 0)
        snapshots = play.job.snapshots
        for sequence in (1, 2, 3):
            play.sequence = sequence
            await play.push([play.rows("table", np.array([7, sequence]), np.ones((2, 3), DTYPE))])
        since_first = delta_since(play.job, 1)
        assert since_first.ranges == ()
        assert [(rows.place.name, rows.ids.tolist()) for rows in since_first.rows] == [("table", [2, 3, 7])]
        assert snapshots.lacks(await snapshots.spare(), 0, 0)[-1].elements == 6

    run(scenario)


def test_rows_of_a_round_take_no_time_by_the_table():
    """A slot that only rows are sent to is not even cleared."""

    async def scenario(catalog):
        play = await Play.begin(catalog, Sync(workers=2), 0, ("a", "b"))
        play.sequence = 1
        ids = np.array([3, 5])
        sent = [play.rows("table", ids, np.full((2, 3), value, DTYPE)) for value in (1, 3)]
        await asyncio.gather(*(play.push([rows], worker) for rows, worker in zip(sent, ("a", "b"), strict=True)))
        play.weights["table"][ids] += np.float32(-1)
        play.check()
        slabs = play.job.slots.last.slabs
        assert all(not slab.any() and not np.signbit(slab).any() for row in slabs for slab in row)

    run(scenario)


def test_rows_that_do_not_fit_into_the_servers_memory_are_refused():
    """Few of them fit into what is planned for a whole gradient."""

    async def scenario(catalog):
        play = await Play.begin(catalog, Async(), 0)
        play.sequence = 1
        ids = np.arange(20_000)
        many = play.rows("table", ids, np.ones((20_000, 3), DTYPE))
        with pytest.raises(MemoryExceeded, match="job 'job'"):
            await play.push([many, many, many])
        play.check()
        few = np.array([5])
        await play.push([play.rows("table", few, np.ones((1, 3), DTYPE))])
        play.weights["table"][few] -= np.float32(0.5)
        play.check()

    run(scenario, limit=2_100_000)
