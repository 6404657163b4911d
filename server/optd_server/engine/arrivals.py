"""Jobs that are still arriving: their name and memory are reserved, and nobody sees them yet."""

import asyncio

from optd_server.engine.job import Job
from optd_server.engine.memory import Reservation
from optd_server.engine.options.groups import extent_of_groups
from optd_server.store.flat import FlatBuffers, FrameSink
from optd_wire.values import WEIGHTS, JobSpec


class Arrival:
    """A job that is still arriving. Nobody sees it until it is finished."""

    def __init__(self, spec: JobSpec, reservation: Reservation, creation_id: str) -> None:
        self.spec = spec
        self.creation_id = creation_id
        self.reservation = reservation
        self.settled = asyncio.Event()
        self.job: Job | None = None

    def release(self) -> None:
        """Free the memory of a job that does not come to be."""


class WeightsUpload(Arrival):
    """A new job, of which the weights are still arriving."""

    def __init__(self, spec: JobSpec, reservation: Reservation, creation_id: str) -> None:
        super().__init__(spec, reservation, creation_id)
        self.weights = FlatBuffers([extent_of_groups(spec.groups, spec.algorithm)])
        self.sink = FrameSink(self.weights, WEIGHTS, [group.name for group in spec.groups])

    def release(self) -> None:
        """Free the weights of a job that does not come to be."""
        self.weights.release()
