from optd.options.mirror import OptionMirror
from optd_wire.values import GroupOptions, GroupUpdate


def mirror(group, **options):
    mirrored = OptionMirror()
    mirrored.add(GroupOptions("g", options), group)
    return mirrored


def test_resolved_options_come_in_and_what_is_equal_stays_what_it_was():
    betas = [0.9, 0.99]
    group = {"betas": betas}
    mirror(group, lr=0.1, betas=(0.9, 0.99))
    assert group == {"betas": betas, "lr": 0.1}
    assert group["betas"] is betas


def test_a_change_here_goes_out_on_the_revision_that_was_seen():
    group = {"initial_lr": 5}
    mirrored = mirror(group, lr=0.1, momentum=0.9)
    assert mirrored.changes([group]) == ()
    group["lr"] = 0.01
    assert mirrored.changes([group]) == (GroupUpdate("g", {"lr": 0.01}, 0),)


def test_a_change_of_others_comes_in_unless_the_value_was_changed_here():
    group = {}
    mirrored = mirror(group, lr=0.1, momentum=0.9)
    group["lr"] = 0.01
    mirrored.absorb([GroupOptions("g", {"lr": 0.5, "momentum": 0.5}, revision=1)], [group])
    assert group == {"lr": 0.01, "momentum": 0.5}
    assert mirrored.changes([group]) == (GroupUpdate("g", {"lr": 0.01}, 1),)


def test_old_news_and_groups_of_others_are_none_of_ours():
    group = {}
    mirrored = mirror(group, lr=0.1)
    mirrored.absorb([GroupOptions("g", {"lr": 0.5}, revision=2)], [group])
    mirrored.absorb([GroupOptions("g", {"lr": 0.1}, revision=1), GroupOptions("x", {"lr": 9}, revision=9)], [group])
    assert group == {"lr": 0.5}


def test_what_was_in_force_before_its_push_was_known_of_is_the_workers_own():
    group = {}
    mirrored = mirror(group, lr=0.1, momentum=0.9)
    group["lr"] = 0.2
    sent = mirrored.changes([group])
    group["lr"] = 0.1  # put back, before anybody knew
    mirrored.absorb_own(sent, [GroupOptions("g", {"lr": 0.2, "momentum": 0.5}, revision=2)], [group])
    assert group == {"lr": 0.1, "momentum": 0.5}
    assert mirrored.changes([group]) == (GroupUpdate("g", {"lr": 0.1}, 2),)


def test_what_somebody_else_has_made_of_it_since_is_left_to_be_a_conflict():
    group = {}
    mirrored = mirror(group, lr=0.1, momentum=0.9)
    group["lr"] = 0.2
    sent = mirrored.changes([group])
    group["lr"] = 0.3
    mirrored.absorb_own(sent, [GroupOptions("g", {"lr": 0.7, "momentum": 0.9}, revision=2)], [group])
    assert mirrored.changes([group]) == (GroupUpdate("g", {"lr": 0.3}, 0),)


def test_everything_is_sent_where_everything_is_to_be_replaced():
    group = {"initial_lr": 5}
    mirrored = mirror(group, lr=0.1, momentum=0.9)
    assert mirrored.everything([group]) == (GroupUpdate("g", {"lr": 0.1, "momentum": 0.9}, 0),)
