"""Pushes that find no memory wait for it in their order, and leave nothing behind when they give up."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from optd_server.engine.rounds import holding
from optd_server.engine.rounds.holding import Holding
from optd_wire.errors import MemoryExceeded, TooManyBytes


class Plan:
    """The memory of a job that may have `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def hold(self, size: int) -> None:
        if size > self.limit:
            raise MemoryExceeded(what="it", needed=size, free=0, limit=self.limit)

    def let_go(self, size: int) -> None:
        pass

    def tell_short(self, size: int) -> None:
        assert size <= self.limit


def on_a_loop(scenario: Callable[[Holding, Any], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a scenario with room for 100 bytes, of which 90 are held."""

    @functools.wraps(scenario)
    def test() -> None:
        async def whole() -> None:
            plan: Any = Plan(100)
            room = Holding(plan)
            await room.take(90)
            async with asyncio.timeout(10):
                await scenario(room, plan)
            assert len(asyncio.all_tasks()) == 1, "nothing goes on"

        asyncio.run(whole())

    del test.__wrapped__  # type: ignore[attr-defined]  # its arguments are no fixtures
    return test


async def waiting(room: Holding, count: int, *, has_begun: bool = False) -> "asyncio.Task[None]":
    task = asyncio.create_task(room.take(count, has_begun=has_begun))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


@on_a_loop
async def test_a_wait_that_is_cancelled_leaves_neither_a_task_nor_its_place(room, plan):
    for _ in range(3):
        task = await waiting(room, 20)
        task.cancel()
        await asyncio.wait([task])
    await room.take(10)


@on_a_loop
async def test_39_a_large_message_is_not_passed_by_small_ones(room, plan):
    large = await waiting(room, 80)
    small = await waiting(room, 5)
    room.give_back(80)
    await large
    await small
    room.give_back(85)


@on_a_loop
async def test_a_push_that_holds_something_comes_before_those_that_do_not(room, plan):
    new = await waiting(room, 20)
    begun = await waiting(room, 15, has_begun=True)
    room.give_back(10)
    await begun
    assert not new.done()
    room.give_back(15)
    await new


@on_a_loop
async def test_a_push_that_holds_something_does_not_wait_for_those_that_do_not(room, plan):
    new = await waiting(room, 20)
    await room.take(10, has_begun=True)
    room.give_back(10)
    assert not new.done()
    room.give_back(10)
    await new


@on_a_loop
async def test_memory_that_somebody_else_frees_is_found(room, plan):
    task = await waiting(room, 20)
    plan.limit = 110
    await task


@on_a_loop
async def test_who_waits_too_long_is_refused_and_lets_those_behind_pass(room, plan):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding, "PATIENCE_SECONDS", 0.05)
        large = await waiting(room, 80)
    small = await waiting(room, 10)
    with pytest.raises(TooManyBytes, match="--max-memory-bytes") as caught:
        await large
    assert caught.value.retry_after
    await small


@on_a_loop
async def test_room_that_comes_to_a_call_that_has_ended_is_given_back(room, plan):
    task = await waiting(room, 20)
    room.give_back(90)
    task.cancel()
    await asyncio.wait([task])
    await room.take(100)
