"""What is held at the same time stays within its limit; what waits is let in in order, or refused in time."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from optd_server.engine import byte_budget
from optd_server.engine.byte_budget import ByteBudget, ByteBudgets
from optd_wire.errors import TooManyBytes

LONG = 60.0


def on_a_loop(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(scenario)
    def test(*arguments: Any, **more: Any) -> None:
        asyncio.run(asyncio.wait_for(scenario(*arguments, **more), LONG))

    return test


async def waits(task: "asyncio.Task[None]") -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


def begin(budget: ByteBudget, count: int, seconds: float = LONG) -> "asyncio.Task[None]":
    return asyncio.create_task(budget.take(count, seconds))


@on_a_loop
async def test_what_fits_is_taken_and_what_does_not_waits_for_room():
    budget = ByteBudgets(100).server
    assert budget.try_take(60)
    assert not budget.try_take(60)
    second = begin(budget, 60)
    assert await waits(second)
    budget.give_back(60)
    await second
    assert budget.held == 60


@on_a_loop
async def test_a_message_that_is_alone_always_fits():
    budget = ByteBudgets(100).server
    await budget.take(1000, 0)
    assert budget.held == 1000
    assert not budget.try_take(1)


@on_a_loop
async def test_those_that_wait_come_in_their_order_and_nobody_passes_them():
    budget = ByteBudgets(100).server
    assert budget.try_take(90)
    large, small = begin(budget, 80), begin(budget, 5)
    assert await waits(large)
    assert await waits(small)
    assert not budget.try_take(1)
    budget.give_back(90)
    await asyncio.gather(large, small)
    assert budget.held == 85


@on_a_loop
async def test_a_wait_that_is_too_long_is_refused_with_a_delay_and_leaves_its_place():
    budget = ByteBudgets(100).server
    assert budget.try_take(90)
    with pytest.raises(TooManyBytes, match=r"the 100 bytes of the server \(--max-inflight-bytes\)") as caught:
        await budget.take(80, 0.01)
    assert caught.value.retry_after
    await budget.take(5, 0)
    budget.give_back(95)
    assert budget.held == 0


@on_a_loop
async def test_when_the_first_gives_up_those_behind_it_are_let_in():
    budget = ByteBudgets(100).server
    assert budget.try_take(90)
    large, small = begin(budget, 80, 0.05), begin(budget, 10)
    assert await waits(small)
    with pytest.raises(TooManyBytes):
        await large
    await small
    assert budget.held == 100


@on_a_loop
async def test_a_call_that_is_cancelled_holds_nothing():
    budget = ByteBudgets(100).server
    assert budget.try_take(90)
    waiting, granted = begin(budget, 80), begin(budget, 70)
    assert await waits(granted)
    waiting.cancel()
    budget.give_back(90)  # before the cancelled task runs
    granted.cancel()  # before the task runs whose room has come
    await asyncio.gather(waiting, granted, return_exceptions=True)
    assert budget.held == 0
    assert budget.try_take(100)


@on_a_loop
async def test_all_that_wait_have_a_bound_over_all_budgets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(byte_budget, "LEAST_WAITING_BYTES", 0)
    budgets = ByteBudgets(100)
    one, two = budgets.of_job("a"), budgets.of_job("b")
    for each in (budgets.server, one, two):
        assert each.try_take(50)
    tasks = [begin(one, 50), begin(two, 50)]
    assert await waits(tasks[1])
    with pytest.raises(TooManyBytes, match="waited 0 s"):
        await budgets.server.take(60, LONG)
    one.give_back(50)
    two.give_back(50)
    await asyncio.gather(*tasks)
    third = begin(budgets.server, 60)  # nothing waits any more
    assert await waits(third)
    budgets.server.give_back(50)
    await third


@on_a_loop
async def test_a_job_has_half_of_the_server_unless_it_is_told_otherwise():
    assert ByteBudgets(100).of_job("a").limit == 50
    budget = ByteBudgets(100, 30).of_job("a")
    assert budget.try_take(30)
    with pytest.raises(TooManyBytes, match=r"30 bytes of job 'a' \(--max-job-inflight-bytes\)"):
        await budget.take(1, 0)
