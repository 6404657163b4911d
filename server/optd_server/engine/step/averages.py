"""The averages of its weights that a job keeps: which ones, and how they move with each step."""

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
    """The names of the averages that options of a job ask for."""
    wanted = {EMA: options[EMA_DECAY], SWA: options[SWA_START]}
    return tuple(name for name in AVERAGES if wanted[name] is not None)


@dataclass(slots=True)
class Average:
    """One average, in the dtypes of the parameters."""

    updates: int = 0
    """How many versions of the weights have entered it."""
    buffers: FlatBuffers = field(default_factory=lambda: FlatBuffers(()))
    """What is in them means nothing before the first update."""

    def enter(self, weights: FlatBuffers, share: float, threads: int) -> None:
        """Moves towards weights, and counts that; of values it has the newest."""
        slabs = [slab for extent in weights.extents for slab in extent.slabs]
        for slab, average, current in zip(slabs, self.buffers.all_slabs(), weights.all_slabs(), strict=True):
            move(average, current, 1.0 if takes_values(slab.kind) else share, threads)
        self.updates += 1

    def restore(self, updates: int, averages: FlatBuffers, weights: FlatBuffers) -> None:
        """Becomes what was written of it. Of groups that this knows nothing of, it is what the weights are."""
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
        """Equal averages that share no memory with these."""
        return Averages({name: Average(each.updates, each.buffers.copy()) for name, each in self.kept.items()})

    def configure(self, options: Options) -> None:
        """Keeps what options of the job ask for from now on, and drops the others."""
        self.kept = {name: self.kept.get(name) or Average() for name in averages_of(options)}

    def release_all(self) -> None:
        """Lets go of the memory of a job that is closed."""
        for average in self.kept.values():
            average.buffers.release()

    def infos(self) -> tuple[AverageInfo, ...]:
        """What there is."""
        return tuple(AverageInfo(name, average.updates) for name, average in self.kept.items())

    def find(self, name: str, job: str) -> Average:
        """An average; raises `UnknownAverage`."""
        if name not in self.kept:
            raise UnknownAverage(job=job, average=name[:200], averages=", ".join(self.kept) or "none")
        return self.kept[name]

    def find_filled(self, name: str, job: str) -> Average:
        """An average that something has entered; raises `UnknownAverage` or `EmptyAverage`."""
        average = self.find(name, job)
        if not average.updates:
            raise EmptyAverage(job=job, average=name)
        return average

    def due(self, version: int, options: Options) -> list[tuple[Average, float]]:
        """The averages that the weights of a version enter under options of the job, and their share in them."""
        return [
            (average, _share(name, average, options))
            for name, average in self.kept.items()
            if _is_due(name, version, options)
        ]

    def copies(self, weights: FlatBuffers) -> list[FlatBuffers]:
        """What averages have of groups that are to be added with these weights; raises OSError.

        Each average is then as if these groups had been there from its beginning.
        """
        copied = [FlatBuffers(weights.extents) for _ in self.kept]
        for each in copied:
            for target, source in zip(each.all_slabs(), weights.all_slabs(), strict=True):
                target[:] = source
        return copied

    def adopt(self, copies: Sequence[FlatBuffers]) -> None:
        """Takes these over into averages that have been updated; the others make room when they need it."""
        for average, copied in zip(self.kept.values(), copies, strict=True):
            if average.updates:
                average.buffers.adopt(copied)

    def fit(self, extents: Sequence[Extent]) -> None:
        """Makes room for all of `extents`; raises OSError."""
        for average in self.kept.values():
            average.buffers.extend(extents)

    def update(self, due: Iterable[tuple[Average, float]], weights: FlatBuffers, threads: int) -> None:
        """Has weights enter the averages that they are due in."""
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
