"""What is remembered of changes, and for how long."""

import numpy as np
import pytest

from optd_server.store import recent_changes
from optd_server.store.recent_changes import ChangedElements, RecentChanges
from optd_server.store.rows import RowPlace

PLACE = RowPlace(0, 0, 0, 0, 0, "t", "float32", 2, 10, 3, (10, 3))


def rows(*ids):
    return [[ChangedElements(rows=((PLACE, np.array(ids)),))]]


def ids_of(changes):
    return None if changes is None else [ids.tolist() for change in changes for _, ids in change.rows]


def test_changes_are_told_as_far_back_as_they_are_kept(monkeypatch):
    monkeypatch.setattr(recent_changes, "MOST_ENTRIES", 3)
    kept = RecentChanges()
    for version in range(1, 6):
        kept.note(version, rows(version), elements=lambda: 32)
    assert kept.publication == 5
    assert [ids_of(kept.since(number, 0, 0)) for number in (5, 3, 2, 1)] == [[], [[4], [5]], [[3], [4], [5]], None]
    # Of version 2 nobody knows whether its weights were replaced before the next step.
    assert [ids_of(kept.since_version(version, 0, 0)) for version in (5, 3, 2)] == [[], [[4], [5]], None]


def test_weights_that_are_replaced_are_all_new():
    kept = RecentChanges()
    kept.note(1, rows(1), elements=lambda: 32)
    assert ids_of(kept.since_version(0, 0, 0)) == [[1]]
    kept.note(1, None, elements=lambda: 32)
    assert kept.since_version(1, 0, 0) is None
    assert kept.since_version(0, 0, 0) is None
    assert kept.since(1, 0, 0) is None
    kept.note(2, rows(2), elements=lambda: 32)
    assert kept.since_version(1, 0, 0) is None
    assert ids_of(kept.since_version(2, 0, 0)) == []
    kept.note(3, [[None]], elements=lambda: 32)
    assert kept.since_version(2, 0, 0) is None
    assert ids_of(kept.since_version(3, 0, 0)) == []


@pytest.mark.parametrize(("elements", "oldest"), [(8, 3), (24, 1), (32, 0)])
def test_ids_that_are_kept_take_no_more_than_a_part_of_the_weights(monkeypatch, elements, oldest):
    monkeypatch.setattr(recent_changes, "FEW_IDS", 1)
    kept = RecentChanges()
    for version in range(1, 5):
        kept.note(version, rows(version), lambda: elements)
    assert [kept.since(number, 0, 0) is not None for number in range(5)] == [number >= oldest for number in range(5)]
    kept.note(5, rows(*range(9)), lambda: elements)
    assert kept.since(4, 0, 0) is None
    assert ids_of(kept.since(5, 0, 0)) == []


def test_a_group_that_came_later_was_not_changed_before():
    kept = RecentChanges()
    kept.note(1, rows(1), elements=lambda: 32)
    assert kept.since(0, 1, 0) == [ChangedElements()]


def test_what_has_changed_is_copied_and_nothing_else():
    change = ChangedElements(ranges=((0, 1),), rows=((PLACE, np.array([0, 9])),))
    target, source = np.zeros(32, "f4"), np.arange(1, 33, dtype="f4")
    change.copy(target, source)
    assert change.elements == 7
    assert np.flatnonzero(target).tolist() == [0, 2, 3, 4, 29, 30, 31]
    assert target[29] == 30
