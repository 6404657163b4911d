"""The averages of its weights that a job keeps: which ones, and how they move with each step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

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
    """What nothing has entered yet means nothing."""
    filled: int = 0
    """How many extents have something in them; groups that were added later have none until the next update."""

    def enter(self, weights: FlatBuffers, share: float, threads: int) -> None:
        """Moves towards weights. What has nothing in it yet becomes what they are."""
        for number, (averages, currents) in enumerate(zip(self.buffers.slabs, weights.slabs, strict=True)):
            for average, current in zip(averages, currents, strict=True):
                move(average, current, share if number < self.filled else 1.0, threads)
        self.filled = len(self.buffers.slabs)
        self.updates += 1


class Averages:
    """All averages of one job. Changed by the job's writer alone."""

    def __init__(self, options: Options) -> None:
        self._kept: dict[str, Average] = {}
        self.configure(options)

    def configure(self, options: Options) -> None:
        """Keeps what options ask for from now on, and drops the others."""
        self._options = options
        self._kept = {name: self._kept.get(name) or Average() for name in averages_of(options)}

    def infos(self) -> tuple[AverageInfo, ...]:
        """What there is."""
        return tuple(AverageInfo(name, average.updates) for name, average in self._kept.items())

    def find(self, name: str, job: str) -> Average:
        """An average; raises `UnknownAverage`."""
        if name not in self._kept:
            raise UnknownAverage(job=job, average=name[:200], averages=", ".join(self._kept) or "none")
        return self._kept[name]

    def find_filled(self, name: str, job: str) -> Average:
        """An average that something has entered; raises `UnknownAverage` or `EmptyAverage`."""
        average = self.find(name, job)
        if not average.updates:
            raise EmptyAverage(job=job, average=name)
        return average

    def due(self, version: int) -> list[tuple[Average, float]]:
        """The averages that the weights of a version enter, and their share in them."""
        return [
            (average, self._share(name, average)) for name, average in self._kept.items() if self._is_due(name, version)
        ]

    def _is_due(self, name: str, version: int) -> bool:
        if name == EMA:
            return True
        start = option.integer(self._options, SWA_START)
        return version >= start and (version - start) % option.integer(self._options, SWA_EVERY) == 0

    def _share(self, name: str, average: Average) -> float:
        if not average.updates:
            return 1.0
        return 1 - option.number(self._options, EMA_DECAY) if name == EMA else 1 / (average.updates + 1)

    def fit(self, extents: Sequence[Extent]) -> None:
        """Makes room for all of `extents`; raises OSError."""
        for average in self._kept.values():
            average.buffers.extend(extents)

    def update(self, due: Iterable[tuple[Average, float]], weights: FlatBuffers, threads: int) -> None:
        """Has weights enter the averages that they are due in; `fit` comes before."""
        for average, share in due:
            average.enter(weights, share, threads)
