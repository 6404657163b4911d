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
    """Returns the names of the averages that a job's options ask for."""
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
        """Moves the average towards weights by their `share` in it, and counts the update; copies values."""
        slabs = [slab for extent in weights.extents for slab in extent.slabs]
        for slab, average, current in zip(slabs, self.buffers.all_slabs(), weights.all_slabs(), strict=True):
            move(average, current, 1.0 if takes_values(slab.kind) else share, threads)
        self.updates += 1

    def restore(self, updates: int, averages: FlatBuffers, weights: FlatBuffers) -> None:
        """Replaces the average by written numbers. Groups that were not written get the weights as their average."""
        self.buffers.extend(weights.extents)
        self.updates = updates
        for number, targets in enumerate(self.buffers.slabs):
            source = averages if number < len(averages.slabs) else weights
            for target, numbers in zip(targets, source.slabs[number], strict=True):
                target[:] = numbers


@dataclass(slots=True)
class Averages:
    """All averages of one job."""

    kept: dict[str, Average] = field(default_factory=dict)

    def copy(self) -> "Averages":
        """Returns equal averages that share no memory with these."""
        return Averages({name: Average(each.updates, each.buffers.copy()) for name, each in self.kept.items()})

    def configure(self, options: Options) -> None:
        """Starts the averages that the job's options ask for, and drops all others."""
        self.kept = {name: self.kept.get(name) or Average() for name in averages_of(options)}

    def release_all(self) -> None:
        """Releases the memory of a closed job."""
        for average in self.kept.values():
            average.buffers.release()

    def infos(self) -> tuple[AverageInfo, ...]:
        """Describes each average."""
        return tuple(AverageInfo(name, average.updates) for name, average in self.kept.items())

    def find(self, name: str, job: str) -> Average:
        """Returns an average; raises `UnknownAverage`."""
        if name not in self.kept:
            raise UnknownAverage(job=job, average=name[:200], averages=", ".join(self.kept) or "none")
        return self.kept[name]

    def find_filled(self, name: str, job: str) -> Average:
        """Returns an average that has been updated; raises `UnknownAverage` or `EmptyAverage`."""
        average = self.find(name, job)
        if not average.updates:
            raise EmptyAverage(job=job, average=name)
        return average

    def due(self, version: int, options: Options) -> list[tuple[Average, float]]:
        """Returns the averages that the weights of `version` enter, each with the share of the weights in it."""
        return [
            (average, _share(name, average, options))
            for name, average in self.kept.items()
            if _is_due(name, version, options)
        ]

    def copies(self, weights: FlatBuffers) -> list[FlatBuffers]:
        """Returns a copy of new groups' weights for each average; raises OSError.

        With that, each average is as if the groups had existed with these weights from its beginning.
        """
        copied = [FlatBuffers(weights.extents) for _ in self.kept]
        for each in copied:
            for target, source in zip(each.all_slabs(), weights.all_slabs(), strict=True):
                target[:] = source
        return copied

    def adopt(self, copies: Sequence[FlatBuffers]) -> None:
        """Adds `copies` to the averages that have been updated. The others allocate memory at their first update."""
        for average, copied in zip(self.kept.values(), copies, strict=True):
            if average.updates:
                average.buffers.adopt(copied)

    def fit(self, extents: Sequence[Extent]) -> None:
        """Allocates the averages of all `extents`; raises OSError."""
        for average in self.kept.values():
            average.buffers.extend(extents)

    def update(self, due: Iterable[tuple[Average, float]], weights: FlatBuffers, threads: int) -> None:
        """Updates the averages that are due, as `due` returned them."""
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
