"""The result of a round's reduction: one gradient, and the contribution of each push to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optd_server.engine.step.intake import Nonfinite
from optd_server.store.extents import Extent
from optd_server.store.gradients import Gradient, Totals
from optd_server.store.ledger import Presence
from optd_server.store.rows import RowPlace


@dataclass(slots=True)
class Contribution:
    """The contribution of one push to a round."""

    weight: float
    presence: Presence
    """The parameters that it has whole."""
    tables: frozenset[RowPlace]
    """The parameters that it has rows of, perhaps no rows, by their `whole` place."""
    nonfinite: Nonfinite | None
    """Its entries that are not finite, if there are any and the push was accepted."""


@dataclass(slots=True)
class Reduced:
    """The gradient of a round: the mean of its pushes' gradients, or their sum, as `reduction` says."""

    gradient: Gradient
    reduction: str
    contributions: tuple[Contribution, ...]
    """The contributions in the order of the pushes."""

    @property
    def is_finite(self) -> bool:
        """Whether all pushed entries were finite. Those that were not may have been replaced by zeros."""
        return all(each.nonfinite is None for each in self.contributions)

    def weights(self, extents: Sequence[Extent]) -> Totals:
        """Returns, for each parameter, the sum of the weights of the pushes that have it whole."""
        totals = [[np.zeros(len(slab.sizes)) for slab in extent.slabs] for extent in extents]
        for each in self.contributions:
            for row, flags in zip(totals, each.presence, strict=False):
                for index, present in enumerate(flags):
                    row[index] += each.weight * present
        return totals

    def row_weight(self, place: RowPlace) -> float:
        """Returns the sum of the weights of the pushes that have rows of a parameter."""
        return sum([each.weight for each in self.contributions if place.whole in each.tables], 0.0)
