"""One behaviour suite for all policies, and what each does on its own."""

from types import SimpleNamespace

import pytest

from optd_server.engine.rounds.policies.registry import rule_of
from optd_wire.values import Async, Sync

POLICIES = [Async(), Sync(1), Sync(2), Sync(5)]


def push(worker, sequence=1):
    return SimpleNamespace(header=SimpleNamespace(worker=worker, sequence=sequence))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_push_comes_out_exactly_once(policy):
    rule = rule_of(policy)
    pushes = [push(f"w{n % 5}", n // 5) for n in range(50)]
    out = [stepped for offered in pushes for stepped in rule.offer(offered)]
    assert sorted(map(id, out)) == sorted(map(id, pushes))
    assert not rule.waiting


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_no_more_pushes_wait_than_one_less_than_make_a_step(policy):
    rule = rule_of(policy)
    for n in range(20):
        rule.offer(push(f"w{n % 5}", n // 5))
        assert len(rule.waiting) < rule.most


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_what_is_withdrawn_does_not_come_out(policy):
    rule = rule_of(policy)
    rule.offer(push("w0"))
    withdrawn = rule.withdraw("w0")
    assert rule.withdraw("w0") is None
    assert all(waiting is not withdrawn for waiting in rule.waiting)


def test_sync_reduces_in_the_order_of_names_whatever_the_order_of_arrival():
    for order in (["b", "a", "c"], ["c", "b", "a"]):
        rule = rule_of(Sync(3))
        rounds = [rule.offer(push(worker)) for worker in order]
        assert rounds[:2] == [(), ()]
        assert [stepped.header.worker for stepped in rounds[2]] == ["a", "b", "c"]


def test_a_worker_that_was_withdrawn_counts_again():
    rule = rule_of(Sync(2))
    rule.offer(push("a"))
    rule.withdraw("a")
    assert rule.offer(push("b")) == ()
    assert len(rule.offer(push("a", 2))) == 2
