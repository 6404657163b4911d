"""The averages of its weights that a job keeps, and their updates after each step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from optd_server.engine.step.values import takes_values
from optd_server.optim import option
from optd_server.optim.averages import move
from optd_server.optim.job_options import EMA_DECAY, SWA_EVERY, SWA_START
from optd_server.store.extents import Extent
from optd_server.store.flat import FlatBuffers
from optd_wire.errors import EmptyAverage, UnknownAverage
from optd_wire.values import AverageInfo, Options

EMA, SWA = "ema", "swa"
AVERAGES = (EMA, SWA)


def averages_of(options: Options) -> tuple[str, ...]:
    """Return the names of the averages that a job's options ask for."""
    wanted = {EMA: options[EMA_DECAY], SWA: options[SWA_START]}
    return tuple(name for name in AVERAGES if wanted[name] is not None)


@dataclass(slots=True)
class Average:
    """One average, in the dtypes of the parameters."""

    updates: int = 0
    """How many versions of the weights have entered it."""
    buffers: FlatBuffers = field(default_factory=lambda: FlatBuffers(()))
    """Its numbers, which mean nothing before the first update."""

    def enter(self, weights: FlatBuffers, share: float, threads: int) -> None:
        """Move the average towards weights by their `share` in it, and count the update; copy values."""
        slabs = [slab for extent in weights.extents for slab in extent.slabs]
        for slab, average, current in zip(slabs, self.buffers.all_slabs(), weights.all_slabs(), strict=True):
            move(average, current, 1.0 if takes_values(slab.kind) else share, threads)
        self.updates += 1

    def restore(
        self, updates: int, written: FlatBuffers, ranges: Iterable[tuple[int, int, int, int]], weights: FlatBuffers
    ) -> None:
        """Replace the average by the written ranges; what was not written gets the weights as its average.

        A range is an extent, a slab, its first element, and its end, which is exclusive.
        """
        self.buffers.extend(weights.extents)
        self.updates = updates
        for target, numbers in zip(self.buffers.all_slabs(), weights.all_slabs(), strict=True):
            target[:] = numbers
        for extent, slab, start, stop in ranges:
            self.buffers.slabs[extent][slab][start:stop] = written.slabs[extent][slab][start:stop]


@dataclass(slots=True)
class Averages:
    """All averages of one job."""

    kept: dict[str, Average] = field(default_factory=dict)

    def copy(self) -> "Averages":
        """Return equal averages that share no memory with these."""
        return Averages({name: Average(each.updates, each.buffers.copy()) for name, each in self.kept.items()})

    def configure(self, options: Options) -> None:
        """Start the averages that the job's options ask for, and drop all others."""
        self.kept = {name: self.kept.get(name) or Average() for name in averages_of(options)}

    def release_all(self) -> None:
        """Release the memory of a closed job."""
        for average in self.kept.values():
            average.buffers.release()

    def infos(self) -> tuple[AverageInfo, ...]:
        """Describe each average."""
        return tuple(AverageInfo(name, average.updates) for name, average in self.kept.items())

    def find(self, name: str, job: str) -> Average:
        """Return an average; raise `UnknownAverage`."""
        if name not in self.kept:
            raise UnknownAverage(job=job, average=name[:200], averages=", ".join(self.kept) or "none")
        return self.kept[name]

    def find_filled(self, name: str, job: str) -> Average:
        """Return an average that has been updated; raise `UnknownAverage` or `EmptyAverage`."""
        average = self.find(name, job)
        if not average.updates:
            raise EmptyAverage(job=job, average=name)
        return average

    def due(self, version: int, options: Options) -> list[tuple[Average, float]]:
        """Return the averages that the weights of `version` enter, each with the share of the weights in it."""
        return [
            (average, _share(name, average, options))
            for name, average in self.kept.items()
            if _is_due(name, version, options)
        ]

    def copies(self, weights: FlatBuffers) -> list[FlatBuffers]:
        """Return a copy of new groups' weights for each average; raise OSError.

        With that, each average is as if the groups had existed with these weights from its beginning.
        """
        copied = [FlatBuffers(weights.extents) for _ in self.kept]
        for each in copied:
            for target, source in zip(each.all_slabs(), weights.all_slabs(), strict=True):
                target[:] = source
        return copied

    def adopt(self, copies: Sequence[FlatBuffers]) -> None:
        """Add `copies` to the averages that have been updated. The others allocate memory at their first update."""
        for average, copied in zip(self.kept.values(), copies, strict=True):
            if average.updates:
                average.buffers.adopt(copied)

    def fit(self, extents: Sequence[Extent]) -> None:
        """Allocate the averages of all `extents`; raise OSError."""
        for average in self.kept.values():
            average.buffers.extend(extents)

    def update(self, due: Iterable[tuple[Average, float]], weights: FlatBuffers, threads: int) -> None:
        """Update the averages that are due, as `due` returned them."""
        for average, share in due:
            average.buffers.extend(weights.extents)
            average.enter(weights, share, threads)


def _is_due(name: str, version: int, options: Options) -> bool:
    if name == EMA:
        return True
    start = option.integer(options, SWA_START)
    return version >= start and (version - start) % option.integer(options, SWA_EVERY) == 0


def _share(name: str, average: Average, options: Options) -> float:
    if not average.updates:
        return 1.0
    return 1 - option.number(options, EMA_DECAY) if name == EMA else 1 / (average.updates + 1)
