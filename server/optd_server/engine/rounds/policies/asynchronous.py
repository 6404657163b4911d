"""`async`: every push is a step of its own, in order of arrival."""

from optd_server.engine.rounds.policies.base import Decisions, Indifferent, MakeStep, Offer

SLOTS = 4
"""One gradient is in a step while up to three others arrive."""


class AsyncPolicy(Indifferent):
    """Takes a step for every push. How its staleness counts is in `engine/step/staleness.py`."""

    slots = SLOTS
    most = planned = 1

    def offered(self, offer: Offer, now: float) -> Decisions:
        """Make a step of the push."""
        return (MakeStep((offer.id,)),)
