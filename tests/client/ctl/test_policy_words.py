"""What a policy does, in plain words."""

import pytest

from optd.ctl.policy_words import meaning
from optd_wire.values import Async, Bounded, Exponential, Policy, Sync

AT_ONCE = "each push makes a step at once, in order of arrival"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Async(), AT_ONCE),
        (
            Async(staleness="inverse", max_staleness=8),
            f"{AT_ONCE}; a gradient that is t versions old counts 1 / (1 + t); one of more than 8 versions is refused",
        ),
        (
            Async(staleness=Exponential(0.1)),
            f"{AT_ONCE}; old gradients count less, by exp(-0.1) for each version",
        ),
        (Bounded(1), "each push makes a step, but a worker more than 1 step ahead of the slowest one waits"),
        (
            Sync(workers=4),
            "a step takes one push of each of 4 workers; a place that is empty waits for a worker that takes it",
        ),
        (
            Sync(workers=4, quorum=3, on_death="fail"),
            "a step takes one push of each of 4 workers, or of 3 of them, as soon as they are there; it fails when a "
            "worker is gone",
        ),
        (
            Sync(workers=4, quorum=3, grace=2.5, round_seconds=60, on_death="continue"),
            "a step takes one push of each of 4 workers, or of 3 of them, after a grace window of 2.5 s, or of a "
            "quorum 60 s after its first gradient; it goes on without workers that are gone",
        ),
        (
            Sync(workers="live", quorum=2, grace="auto"),
            "a step takes one push of each worker that holds a lease, or of 2 of them, after a grace window that "
            "follows how far apart pushes arrive; it goes on without workers that are gone",
        ),
        (
            Sync(workers=2, round_seconds=5),
            "a step takes one push of each of 2 workers, or of those that are there 5 s after its first gradient; a "
            "place that is empty waits for a worker that takes it",
        ),
    ],
)
def test_what_a_policy_means(policy: Policy, words: str):
    assert meaning(policy) == words
