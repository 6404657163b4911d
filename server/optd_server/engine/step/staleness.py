"""The staleness of gradients: how it is counted, how far it may go, and how much a stale gradient counts."""

import math
from bisect import bisect_right
from dataclasses import dataclass, field

from optd_wire.errors import InvalidPolicy, StaleGradient
from optd_wire.values import Async, Exponential, Policy, PushHeader

REMEMBERED = 64
"""How many versions are remembered for each fragment."""


@dataclass(slots=True)
class FragmentSteps:
    """The versions of the last steps of each fragment. A job whose model is pushed whole remembers none."""

    versions: dict[int, list[int]] = field(default_factory=dict)

    def copy(self) -> "FragmentSteps":
        """Return an equal record that shares nothing with this one."""
        return FragmentSteps({fragment: list(versions) for fragment, versions in self.versions.items()})

    def last_of(self, fragment: int) -> int:
        """The version of the last step of a fragment; 0 before its first one."""
        versions = self.versions.get(fragment)
        return versions[-1] if versions else 0

    def note(self, fragment: int, version: int) -> None:
        """Note that the step to `version` was one of the fragment."""
        if fragment not in self.versions:
            # In the order of their numbers: equal records are then equal in all they show.
            self.versions = dict(sorted([*self.versions.items(), (fragment, [])]))
        versions = self.versions[fragment]
        versions.append(version)
        del versions[:-REMEMBERED]

    def since(self, fragment: int, base: int, version: int) -> int:
        """Return how many steps a fragment has had since version `base`, at most as many as the whole job has had.

        Of a fragment that has had more steps than are remembered, it is the least number that is possible.
        """
        if not fragment:
            return max(0, version - base)
        versions = self.versions.get(fragment, [])
        return len(versions) - bisect_right(versions, base)


def check_scale(policy: Async) -> None:
    """Raise `InvalidPolicy` for a scale whose parameters are out of range."""
    scale = policy.staleness
    if not isinstance(scale, Exponential):
        return
    if not 0 <= scale.alpha < math.inf:
        raise InvalidPolicy(policy="async", problem=f"alpha of staleness must be in [0, inf), got {scale.alpha:g}")
    if scale.cutoff is not None and not 0 < scale.cutoff < math.inf:
        raise InvalidPolicy(policy="async", problem=f"cutoff of staleness must be in (0, inf), got {scale.cutoff:g}")


def scales(policy: Policy) -> bool:
    """Whether a policy scales stale gradients."""
    return isinstance(policy, Async) and policy.staleness is not None


def factor_of(policy: Policy, staleness: int) -> float:
    """Return the factor of a gradient of this staleness; see `optd_wire.values.policies` for the formulas."""
    if not isinstance(policy, Async):
        return 1.0
    match policy.staleness:
        case "inverse":
            return 1 / (1 + staleness)
        case Exponential(alpha, cutoff):
            return _gate(staleness, cutoff) * math.exp(-alpha * staleness)
        case _:
            return 1.0


def _gate(staleness: int, cutoff: float | None) -> float:
    if cutoff is None:
        return 1.0
    return 0.0 if staleness >= cutoff else (1 + math.cos(math.pi * staleness / cutoff)) / 2


def check_staleness(policy: Policy, header: PushHeader, staleness: int, version: int) -> None:
    """Raise `StaleGradient` if a gradient is staler than the policy allows."""
    if isinstance(policy, Async) and policy.max_staleness is not None and staleness > policy.max_staleness:
        raise StaleGradient(
            worker=header.worker,
            base_version=header.base_version,
            job=header.job,
            version=version,
            staleness=staleness,
            most=policy.max_staleness,
        )
