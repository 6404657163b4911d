import asyncio

import pytest

from optd_server.store.gradients import GradientSlots
from optd_wire.layout import lay_out
from optd_wire.values import ParameterSpec

LAYOUTS = (lay_out([ParameterSpec("w", (4,), "float32")]),)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_slots_are_bounded_and_handed_out_in_the_order_of_asking():
    async def scenario():
        slots = GradientSlots(most=2)
        first = await slots.take(LAYOUTS, ["g"])
        await slots.take(LAYOUTS, ["g"])
        order = []

        async def wait(name):
            order.append((name, await slots.take(LAYOUTS, ["g"])))

        waiting = [asyncio.create_task(wait(name)) for name in "ab"]
        await settle()
        assert order == []
        slots.give_back(first)
        await settle()
        assert order == [("a", first)]
        slots.give_back(first)
        await asyncio.gather(*waiting)
        assert order == [("a", first), ("b", first)]

    asyncio.run(scenario())


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_cancelled_wait_loses_no_slot(handed_over):
    async def scenario():
        slots = GradientSlots(most=1)
        slot = await slots.take(LAYOUTS, ["g"])
        waiting = asyncio.create_task(slots.take(LAYOUTS, ["g"]))
        await settle()
        if handed_over:
            slots.give_back(slot)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if not handed_over:
            slots.give_back(slot)
        async with asyncio.timeout(5):
            assert await slots.take(LAYOUTS, ["g"]) is slot

    asyncio.run(scenario())
