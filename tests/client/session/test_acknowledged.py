"""How many acknowledged pushes of a worker a server has lost."""

import pytest

from optd.session.acknowledged import Acknowledged

NOTED = [(1, 5), (3, 1), (3, 4)]
"""Epochs and their last sequences: five pushes, then four more."""


@pytest.mark.parametrize(
    ("kept", "lost"),
    [
        ((3, 4), 0),
        ((3, 1), 3),
        ((3, 9), 0),  # the answers to later ones have not arrived
        ((2, 7), 4),  # an epoch without an acknowledged push
        ((1, 5), 4),
        ((1, 2), 7),
        ((0, 0), 9),
        ((4, 1), 0),
    ],
    ids=str,
)
def test_pushes_after_the_last_that_the_server_has_are_lost(kept, lost):
    pushes = Acknowledged()
    for epoch, sequence in NOTED:
        pushes.note(epoch, sequence)
    assert pushes.lost_after(*kept) == lost
    assert pushes.lost_after(*kept) == 0, "each counts once"


def test_a_server_that_goes_back_again_has_lost_what_came_since():
    pushes = Acknowledged()
    pushes.note(1, 5)
    assert pushes.lost_after(1, 3) == 2
    pushes.note(2, 4)
    assert pushes.lost_after(1, 2) == 5


def test_pushes_to_a_job_that_is_gone_are_forgotten():
    pushes = Acknowledged()
    pushes.note(1, 5)
    pushes.forget()
    assert pushes.lost_after(0, 0) == 0
