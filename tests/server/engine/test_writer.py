import asyncio

import pytest

from optd_server.engine.writer import Writer
from optd_wire.errors import UnknownJob

GONE = UnknownJob(job="job")
FAILURES = []


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def run(scenario):
    async def whole():
        async with asyncio.timeout(10):
            await scenario(Writer(FAILURES.append))

    asyncio.run(whole())


def eager(done, name):
    async def action():
        done.append(name)
        return name

    return action


def waiting(done, name, gate):
    async def action():
        done.append(f"{name} begins")
        await gate.wait()
        done.append(f"{name} ends")
        return name

    return action


def test_what_need_not_wait_is_done_at_once():
    async def scenario(writer):
        done = []
        futures = [writer.submit(eager(done, name)) for name in "ab"]
        assert done == ["a", "b"]
        assert [future.result() for future in futures] == ["a", "b"]

    run(scenario)


def test_actions_follow_one_another_in_the_order_of_asking():
    async def scenario(writer):
        done, gate = [], asyncio.Event()
        first = writer.submit(waiting(done, "a", gate))
        others = [writer.submit(eager(done, "b")), writer.submit(waiting(done, "c", gate))]
        others.append(writer.submit(eager(done, "d")))
        await settle()
        assert done == ["a begins"]
        gate.set()
        assert await asyncio.gather(first, *others) == ["a", "b", "c", "d"]
        assert done == ["a begins", "a ends", "b", "c begins", "c ends", "d"]
        writer.submit(eager(done, "e"))
        assert done[-1] == "e"

    run(scenario)


def test_an_action_that_asks_for_another_does_not_have_it_run_within_itself():
    async def scenario(writer):
        done = []

        async def outer():
            writer.submit(eager(done, "inner"))
            done.append("outer")

        writer.submit(outer)
        assert done == ["outer", "inner"]

    run(scenario)


@pytest.mark.parametrize("late", [False, True])
def test_an_exception_is_the_callers_and_the_next_action_runs(late):
    async def scenario(writer):
        async def fails():
            if late:
                await asyncio.sleep(0)
            raise ValueError("no")

        done = []
        failing = asyncio.create_task(writer.run(fails))
        await asyncio.sleep(0)
        assert await writer.run(eager(done, "a")) == "a"
        with pytest.raises(ValueError, match="no"):
            await failing

    run(scenario)


def test_an_action_sees_the_exception_of_what_it_waits_for():
    async def scenario(writer):
        wrong = asyncio.get_running_loop().create_future()

        async def action():
            try:
                await wrong
            except KeyError:
                await asyncio.sleep(0)
                return "seen"

        future = writer.submit(action)
        await settle()
        wrong.set_exception(KeyError())
        assert await future == "seen"

    run(scenario)


def test_an_action_runs_to_its_end_when_its_caller_is_cancelled():
    async def scenario(writer):
        done, gate = [], asyncio.Event()
        running = asyncio.create_task(writer.run(waiting(done, "a", gate)))
        queued = asyncio.create_task(writer.run(waiting(done, "b", gate)))
        await settle()
        running.cancel()
        queued.cancel()
        await settle()
        assert running.cancelled()
        assert queued.cancelled()
        gate.set()
        await writer.run(eager(done, "c"))
        assert done == ["a begins", "a ends", "b begins", "b ends", "c"]

    run(scenario)


def test_close_lets_the_running_action_end_and_refuses_all_others():
    async def scenario(writer):
        done, gate = [], asyncio.Event()
        running = writer.submit(waiting(done, "a", gate))
        queued = writer.submit(eager(done, "b"))
        closing = asyncio.create_task(writer.close(GONE))
        await settle()
        assert not closing.done()
        meanwhile = writer.submit(eager(done, "c"))
        gate.set()
        await closing
        assert await running == "a"
        assert done == ["a begins", "a ends"]
        for future in (queued, meanwhile, writer.submit(eager(done, "d"))):
            with pytest.raises(UnknownJob):
                await future
        with pytest.raises(UnknownJob):
            await writer.run(eager(done, "e"))
        await settle()
        assert done == ["a begins", "a ends"]

    run(scenario)


def test_close_of_an_idle_writer_returns():
    async def scenario(writer):
        done = []
        await writer.run(eager(done, "a"))
        await writer.close(GONE)

    run(scenario)
