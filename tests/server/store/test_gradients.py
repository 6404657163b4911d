import numpy as np

from optd_server.store.extents import extent_of
from optd_server.store.gradients import Gradient, Slots
from optd_wire.layout import lay_out
from optd_wire.values import ParameterSpec

EXTENT = extent_of([lay_out([ParameterSpec("w", (4,), "float32")])])


def test_slots_are_bounded_and_handed_out_in_the_order_of_asking():
    slots = Slots(most=2)
    taken = []
    for name in "abcd":
        slots.take(lambda slot, name=name: taken.append((name, slot)))
    assert [name for name, _ in taken] == ["a", "b"]
    first = taken[0][1]
    slots.give_back(first)
    assert taken[2:] == [("c", first)]
    slots.give_back(first)
    assert taken[3:] == [("d", first)]


def test_the_last_gradient_stays_readable_until_its_slot_is_needed():
    slots = Slots(most=1)
    taken = []
    slots.take(taken.append)
    slot = taken[0]
    slot.fit([EXTENT])
    kept = slot.holding([[np.ones(1, np.bool_)]])
    slots.keep(slot, kept)
    assert slots.last is kept
    assert kept.has(0, 0, 0)
    with slots.reading():
        slots.take(taken.append)
        assert (len(taken), slots.last) == (1, kept)
    assert (taken[1], slots.last) == (slot, None)


def test_a_gradient_has_nothing_for_groups_that_came_later():
    gradient = Gradient([[np.ones(4, "f4")]], [[np.ones(1, np.bool_)]])
    gradient.cover([EXTENT, EXTENT])
    assert (gradient.has(0, 0, 0), gradient.has(1, 0, 0), gradient.has(2, 0, 0)) == (True, False, False)


def test_slots_that_are_too_many_go_as_they_come_back():
    slots, taken = Slots(most=4), []
    for _ in range(4):
        slots.take(taken.append)
    for slot in taken:
        slot.fit([EXTENT])
    slots.allow(2)
    slots.keep(taken[0], taken[0].holding([[np.ones(1, np.bool_)]]))
    slots.keep(taken[1], taken[1].holding([[np.ones(1, np.bool_)]]))
    assert [bool(slot.buffers.slabs) for slot in taken] == [False, True, True, True]
    slots.give_back(taken[2])
    assert [bool(slot.buffers.slabs) for slot in taken] == [False, True, False, True]
    slots.allow(1)
    slots.forget()
    assert [bool(slot.buffers.slabs) for slot in taken] == [False, False, False, True]
    waiting = []
    slots.take(waiting.append)
    assert not waiting
    slots.give_back(taken[3])
    assert waiting == [taken[3]]
    slots.allow(2)
    slots.take(waiting.append)
    assert len(waiting) == 2
