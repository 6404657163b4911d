"""Spare memory for the weights of a followed job: a thread pulls into it while the model computes."""

import logging
import threading
from collections.abc import Callable

import numpy as np
import torch

from optd.params.flat_view import Array, ArraysByGroup
from optd.registration.buffers import has_buffers
from optd.session.session import Session
from optd.torch.followed import Layout, NamesOf, Target, layout_of, match
from optd.torch.module_buffers import buffers_of
from optd.transport.requests import Delivery, PullRequest
from optd_wire.dtypes import DTYPES
from optd_wire.values import JobInfo

logger = logging.getLogger("optd")


class Spare:
    """One set of arrays: those of the followed parameters by group and place; others have no elements."""

    def __init__(self, layout: Layout, targets: list[Target]) -> None:
        self.layout = layout
        self.targets = targets
        self.version = -1
        self.arrays: list[list[Array]] = [[np.empty(0)] * len(parameters) for parameters in layout]
        for target in targets:
            info = layout[target.group][target.place]
            self.arrays[target.group][target.place] = np.empty(info.shape, DTYPES[info.dtype])


class _Changed(Exception):
    """The job has other parameters than those that were matched."""

    def __init__(self, job: JobInfo) -> None:
        super().__init__()
        self.job = job


class Spares:
    """Up to two sets: one that is complete until the model takes it, and one that is being pulled into.

    One thread calls `pull`; `take` and all others may be called from any.
    """

    def __init__(
        self,
        session: Session,
        model: torch.nn.Module,
        names: NamesOf | None,
        *,
        strict: bool,
        cast: bool,
        weights: str,
    ) -> None:
        self.version = 0
        """The version whose weights the model has."""
        self._session = session
        self._model = model
        self._names = names
        self._strict = strict
        self._cast = cast
        self._weights = weights
        self._layout: Layout | None = None
        self._targets: list[Target] = []
        self._changed = threading.Condition()
        self._ready: Spare | None = None
        self._free: list[Spare] = []

    @property
    def are_ready(self) -> bool:
        """Whether there are weights that the model has not taken."""
        return self._ready is not None

    def pull(self) -> None:
        """Pulls the job's current weights. Raises what the session raises, or what differs between model and job."""
        spare = self._pulled()
        with self._changed:
            if self._ready is not None and self._ready.layout is self._layout:
                self._free.append(self._ready)
            self._ready = spare
            self._changed.notify_all()

    def _pulled(self) -> Spare:
        job = self._session.info() if self._layout is None else None
        while True:
            if job is not None:
                self._match(job)
            spare = self._a_free_one()

            def into(found: JobInfo, spare: Spare = spare) -> ArraysByGroup:
                if layout_of(found.groups) != spare.layout:
                    raise _Changed(found)
                return spare.arrays

            try:
                pulled = self._session.pull_arrays(self._request(spare.layout), into)
            except _Changed as change:
                job = change.job
                continue
            spare.version = pulled.version.version
            return spare

    def _request(self, layout: Layout) -> PullRequest:
        followed = [layout[target.group][target.place].name for target in self._targets]
        everything = len(followed) == sum(map(len, layout))
        return PullRequest(
            self._session.job,
            delivery=Delivery(encoding=self._session.wire.weights),
            parameters=() if everything else tuple(followed),
            weights=self._weights,
        )

    def _match(self, job: JobInfo) -> None:
        targets = match(self._model, job.groups, self._names, strict=self._strict, cast=self._cast)
        own = buffers_of(self._model)
        if own and not has_buffers(job.groups) and self._layout is None:
            logger.warning(
                "job %s has no buffers: those of the model (%s, …) stay as they are; its optimizer takes buffers=",
                job.name,
                next(iter(own)),
            )
        with self._changed:
            self._layout, self._targets, self._free = layout_of(job.groups), targets, []

    def _a_free_one(self) -> Spare:
        assert self._layout is not None
        with self._changed:
            if self._free:
                return self._free.pop()
        return Spare(self._layout, self._targets)

    def take(self) -> None:
        """Writes the weights that are ready into the model, if there are any."""
        with self._changed:
            ready, self._ready = self._ready, None
            if ready is None:
                return
            pairs = [(target, ready.arrays[target.group][target.place]) for target in ready.targets]
            for target, array in pairs:  # all of them, before anything changes
                target.check(array)
            devices = {target.get().device for target in ready.targets}
            _synchronize(devices)
            for target, array in pairs:
                target.write(array)
            _synchronize(devices)
            self.version = ready.version
            if ready.layout is self._layout:
                self._free.append(ready)
            self._changed.notify_all()

    def wait_for(self, version: int, is_over: Callable[[], bool], seconds: float) -> None:
        """Blocks until weights of a version or a later one are ready or taken, it is over, or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest() >= version or is_over(), seconds)

    def _newest(self) -> int:
        return self.version if self._ready is None else max(self.version, self._ready.version)

    def wake(self) -> None:
        """Has each `wait_for` look whether it is over."""
        with self._changed:
            self._changed.notify_all()


def _synchronize(devices: set[torch.device]) -> None:
    """Waits for the passes that run on accelerators, which may be on other streams than the copies."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type != "cpu":
            getattr(torch, device.type).synchronize()
