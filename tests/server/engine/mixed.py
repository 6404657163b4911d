"""A job whose groups name their own algorithms, driven without a server, and optimizers of torch beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tests.server.engine.conftest import Engine, Upload

from optd_server.engine.membership.members import Member
from optd_server.engine.readers.state import read_state, select
from optd_server.engine.state_upload import StateUpload
from optd_server.store.extents import extent_of
from optd_server.store.flat import FlatBuffers, FrameSink
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.encodings.registry import exact_for
from optd_wire.frames import Frame
from optd_wire.layout import lay_out
from optd_wire.row_frames import RowFrame
from optd_wire.values import (
    WEIGHTS,
    Async,
    GroupSpec,
    GroupUpdate,
    JobSpec,
    ParameterSpec,
    PushHeader,
    PushResult,
    WriteStateHeader,
)

Arrays = dict[str, np.ndarray]
"""By the names of parameters, which no two groups share here."""
MUON_SLACK = 5e-4
"""How far weights of Muon may lie apart after some steps of about 0.01: see `tests/server/optim/test_torch.py`.

Its state has no such slack, nor have the weights of the other groups."""
OTHER_SHAPES = {"step", "row_var", "col_var", "variance"}
"""State that is not laid out as the weights are."""
TORCH = {
    "adafactor": torch.optim.Adafactor,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": torch.optim.Muon,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def group(
    name: str, algorithm: str, parameters: Mapping[str, tuple[int, ...]], dtype: str = "float64", **options: Any
) -> GroupSpec:
    made = tuple(ParameterSpec(parameter, shape, dtype) for parameter, shape in parameters.items())
    return GroupSpec(name, options, made, algorithm)


def random_arrays(groups: Sequence[GroupSpec], rng: np.random.Generator, *, computed: bool = False) -> Arrays:
    """Weights of all parameters, or gradients: in the dtype of the arithmetic."""
    return {
        parameter.name: rng.standard_normal(parameter.shape).astype(
            DTYPES[COMPUTED[parameter.dtype] if computed else parameter.dtype]
        )
        for group in groups
        for parameter in group.parameters
    }


def frames_of(groups: Sequence[GroupSpec], arrays: Arrays, field: str = "") -> list[Frame]:
    """A frame for each parameter that there are numbers of."""
    return [
        Frame.of(index, parameter.offset, np.ascontiguousarray(arrays[parameter.name]).reshape(-1), field)
        for index, group in enumerate(groups)
        for parameter in lay_out(group.parameters).parameters
        if parameter.name in arrays
    ]


def row_frame(group: int, parameter: int, ids: Sequence[int], values: np.ndarray) -> RowFrame:
    return RowFrame(group, parameter, len(ids), exact_for(values.dtype), np.array(ids, "<u8"), values.reshape(-1))


class Mixed:
    """A job with one worker."""

    def __init__(
        self,
        engine: Engine,
        groups: Sequence[GroupSpec],
        first: Arrays,
        *,
        name: str = "job",
        algorithm: str = "sgd",
        defaults: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.engine, self.groups, self.name = engine, list(groups), name
        self._spec, self._first = JobSpec(name, algorithm, defaults or {}, tuple(groups), Async(), options), first

    async def _create(self) -> "Mixed":
        with self.engine.catalog.upload(self._spec) as upload:
            upload.sink.write_all(frames_of(self.groups, self._first))
            self.job = await self.engine.catalog.finish(upload)
        return self

    def __await__(self) -> Any:
        """The job, once it is created."""
        return self._create().__await__()

    async def push(self, gradient: Arrays, rows: Sequence[RowFrame] = (), **header: Any) -> PushResult:
        """Pushes gradients of whole parameters, and rows of others."""
        worker = await self._worker()
        version = self.job.state.version
        known = PushHeader(self.name, "w", worker.epoch, worker.sequence + 1, version, **header)
        frames = [*frames_of(self.groups, gradient), *rows]
        return await self.job.push(known, Upload(frames))

    async def _worker(self) -> Member:
        if self.job.state.members.find("w") is None:
            await self.job.join("w", None)
        return self.job.state.members.by_name["w"]

    async def add(self, spec: GroupSpec, first: Arrays) -> None:
        index, layout = len(self.groups), lay_out(spec.parameters)
        self.job.editor.check_new_group(spec)
        weights = FlatBuffers([extent_of([layout], index)])
        sink = FrameSink(weights, WEIGHTS, [spec.name], first_group=index)
        self.groups.append(spec)
        sink.write_all(each for each in frames_of(self.groups, first) if each.group == index)
        await self.job.editor.add_group(spec, weights, index)

    @property
    def weights(self) -> Arrays:
        return self._named(self.job.snapshots.current.arrays)

    def _named(self, arrays: Any) -> Arrays:
        found = {}
        for index, spec in enumerate(self.groups):
            layout = lay_out(spec.parameters)
            for segment, array in zip(layout.segments, arrays(index), strict=True):
                for member in segment.members:
                    parameter = layout.parameters[member]
                    start = parameter.offset - segment.offset
                    found[parameter.name] = array[start : start + parameter.size].reshape(parameter.shape).copy()
        return found

    async def average(self, name: str) -> Arrays:
        return self._named(lambda index: self.job.state.averages.find(name, self.name).buffers.arrays[index])

    async def state(self) -> dict[str, Arrays]:
        """By parameter, its state and its steps; of elementwise fields only."""
        reading = await self._read()
        found: dict[str, Arrays] = {}
        for read in reading.result.groups:
            layout = lay_out(self.groups[read.group].parameters)
            for place, parameter in enumerate(layout.parameters):
                found[parameter.name] = {"step": np.asarray(read.steps[place])}
                for entry in read.entries:
                    if not entry.present[place] or entry.shapes:
                        continue
                    for frame in reading.frames:
                        start = parameter.offset - frame.offset
                        if (frame.group, frame.field) == (read.group, entry.field) and 0 <= start < frame.count:
                            values = frame.values[start : start + parameter.size].reshape(parameter.shape)
                            found[parameter.name][entry.field] = values
        return found

    async def _read(self) -> Any:
        return await read_state(self.job, select(self.job, (), "", ""), no_patience)

    async def copy_state_to(self, other: "Mixed") -> None:
        """Has another job of the same groups go on from here."""
        reading = await self._read()
        epoch = (await other._worker()).epoch
        upload = StateUpload(other.job, WriteStateHeader(other.name, "w", epoch, reading.result.groups), 0.0)
        with upload.room(self.engine.catalog.memory):
            upload.write([*frames_of(self.groups, self.weights, WEIGHTS), *reading.frames])
            await upload.put_in_force()


async def no_patience() -> None:
    pass


class Beside:
    """An optimizer of torch for each group."""

    def __init__(self, algorithm: str = "sgd") -> None:
        self.parameters: dict[str, torch.Tensor] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._algorithm = algorithm
        self._rounded: set[str] = set()

    def add(self, spec: GroupSpec, first: Arrays, **defaults: Any) -> None:
        mine = {parameter.name: torch.tensor(first[parameter.name]) for parameter in spec.parameters}
        self.parameters |= mine
        self._rounded.update(mine if spec.algorithm == "muon" else ())
        options = {name: value for name, value in {**defaults, **spec.options}.items() if name != "clip_norm"}
        self.optimizers[spec.name] = TORCH[spec.algorithm or self._algorithm](list(mine.values()), **options)

    def step(self, gradient: Arrays, clip_norm: float | None = None) -> None:
        for name, parameter in self.parameters.items():
            parameter.grad = torch.tensor(gradient[name]) if name in gradient else None
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), clip_norm, foreach=False)
        for optimizer in self.optimizers.values():
            optimizer.step()

    def set(self, update: GroupUpdate) -> None:
        self.optimizers[update.group].param_groups[0].update(update.options)

    def assert_weights(self, found: Arrays, tolerance: float) -> None:
        assert found.keys() == self.parameters.keys()
        for name, parameter in self.parameters.items():
            slack = MUON_SLACK if name in self._rounded else 0.0
            np.testing.assert_allclose(found[name], parameter.numpy(), rtol=0, atol=tolerance + slack, err_msg=name)

    def assert_state(self, found: dict[str, Arrays], tolerance: float) -> None:
        for name, parameter in self.parameters.items():
            (state,) = [o.state[parameter] for o in self.optimizers.values() if parameter in o.state] or [{}]
            for field, value in state.items():
                if value is not None and field not in OTHER_SHAPES:
                    np.testing.assert_allclose(found[name][field], value.numpy(), rtol=0, atol=tolerance, err_msg=name)


def same_bits(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)
