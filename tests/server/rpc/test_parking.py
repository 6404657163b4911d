"""The first messages of pushes whose turn has not come: counted, bounded, and in nobody's way."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.server.engine.rounds import Rounds, play, settle, until

from optd_server.engine import byte_budget
from optd_server.engine.byte_budget import ByteBudgets
from optd_server.rpc.callers import ANONYMOUS
from optd_server.rpc.calls import RequestStream
from optd_server.rpc.held_bytes import SMALL_BYTES
from optd_wire import errors
from optd_wire.frames import Frame, decode_received, encode
from optd_wire.messages import to_message
from optd_wire.v1 import training_service_pb2 as pb
from optd_wire.values import Async, Bounded, GroupSpec, ParameterSpec

COUNT = 50_000
"""Numbers of a message: 200 kB."""
SIZE = 4 * COUNT
GROUPS = (GroupSpec("g", {}, (ParameterSpec("w", (2 * COUNT,), "float32"),)),)
SLOTS = 4
PARKED = 3
"""How many messages a job may park in these tests."""


class Call:
    """A push over a real stream of requests, whose messages a test sends one by one."""

    def __init__(self, rounds: Rounds, worker: str, frames: tuple[Frame, ...] = ()) -> None:
        self._sent: asyncio.Queue[bytes] = asyncio.Queue()
        self.header = rounds.header(worker)
        self._send(pb.PushRequest(header=to_message(self.header)), frames)
        budget = rounds.catalog.budgets.server
        calls: Any = SimpleNamespace(budget=budget, idle_seconds=5.0, patience=lambda _: 5.0)
        self._requests = RequestStream(self, lambda data: decode_received(pb.PushRequest, data), calls)  # type: ignore
        self.task = asyncio.create_task(self._run(rounds))

    async def _run(self, rounds: Rounds) -> Any:
        try:
            return await rounds.service.push(self._requests, ANONYMOUS)
        finally:
            self._requests.give_back()

    async def read(self) -> bytes:
        return await self._sent.get()

    def _send(self, message: pb.PushRequest, frames: tuple[Frame, ...]) -> None:
        self._sent.put_nowait(encode(message, frames))

    def send(self, *frames: Frame, last: bool = False) -> None:
        self._send(pb.PushRequest(last=last), frames)

    async def error(self) -> BaseException | None:
        await asyncio.wait([self.task])
        return self.task.exception()


def half(number: int) -> Frame:
    return Frame.of(0, number * COUNT, np.ones(COUNT, "f4"))


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> ByteBudgets:
    """Those of a server that may hold two messages, and of which a job may park `PARKED`."""
    monkeypatch.setattr(byte_budget, "LEAST_WAITING_BYTES", 4 * PARKED * (SIZE + 1000))
    return ByteBudgets(2 * (SIZE + 1000), 2 * (SIZE + 1000))


async def started(rounds: Rounds, budgets: ByteBudgets) -> list[Call]:
    """Uploads that have all slots, and wait for their senders."""
    rounds.catalog.budgets = budgets
    rounds.job.inflight = budgets.of_job("job")
    await rounds.join(*[f"slow{n}" for n in range(SLOTS)], *[f"w{n}" for n in range(PARKED + 1)])
    slow = [Call(rounds, f"slow{n}") for n in range(SLOTS)]
    await until(lambda: len(rounds.job.pushes._due._of) == SLOTS)
    return slow


def at_rest(budgets: ByteBudgets, job: Any) -> bool:
    waiting = budgets._waiting
    return (budgets.server.held, job.inflight.held, waiting.bytes, waiting.parked, job.inflight._parked) == (0,) * 5


@pytest.mark.parametrize("policy", [Async(), Bounded(100)])
def test_39_messages_whose_turn_has_not_come_are_bounded_and_delay_no_upload(budgets, policy):
    async def scenario(rounds):
        await rounds.job.editor.set_policy(policy)
        slow = await started(rounds, budgets)
        parked = [Call(rounds, f"w{n}", (half(0),)) for n in range(PARKED)]
        await until(lambda: budgets._waiting.parked >= PARKED * SIZE)
        assert budgets.server.held < SMALL_BYTES
        late = Call(rounds, f"w{PARKED}", (half(0),))
        error = await late.error()
        assert isinstance(error, errors.TooManyBytes)
        assert "job 'job' for pushes whose turn has not come (--max-inflight-bytes)" in str(error)
        assert error.retry_after
        for call in slow:  # each larger than what is left of the budgets beside those that wait
            call.send(half(0))
            call.send(half(1), last=True)
        for call in slow:
            await call.task
        again = Call(rounds, f"w{PARKED}", (half(0),))
        for call in [*parked, again]:
            call.send(half(1), last=True)
        for call in [*parked, again]:
            await call.task
        assert rounds.version == SLOTS + PARKED + 1
        assert at_rest(budgets, rounds.job)

    play(scenario, 0, groups=GROUPS)


def test_a_message_whose_turn_has_come_counts_for_the_budgets_again(budgets):
    async def scenario(rounds):
        slow = await started(rounds, budgets)
        call = Call(rounds, "w0", (half(0),))
        await until(lambda: budgets._waiting.parked >= SIZE)
        held = []
        charge = budgets.server.take_at_once
        budgets.server.take_at_once = lambda count: (held.append(count), charge(count))
        slow[0].task.cancel()
        await until(lambda: bool(held))
        assert budgets._waiting.parked == 0
        call.send(half(1), last=True)
        await call.task
        for each in slow:
            each.task.cancel()
            await asyncio.wait([each.task])
        assert at_rest(budgets, rounds.job)

    play(scenario, 0, groups=GROUPS)


def test_a_call_that_ends_while_its_message_is_parked_leaves_nothing(budgets):
    async def scenario(rounds):
        slow = await started(rounds, budgets)
        calls = [Call(rounds, f"w{n}", (half(0),)) for n in range(PARKED)]
        await until(lambda: budgets._waiting.parked >= PARKED * SIZE)
        for call in [*calls, *slow]:
            call.task.cancel()
            await asyncio.wait([call.task])
        await settle()
        assert at_rest(budgets, rounds.job)

    play(scenario, 0, groups=GROUPS)


def test_a_small_message_whose_turn_has_not_come_is_never_refused(budgets):
    async def scenario(rounds):
        slow = await started(rounds, budgets)
        large = [Call(rounds, f"w{n}", (half(0),)) for n in range(PARKED)]
        await until(lambda: budgets._waiting.parked >= PARKED * SIZE)
        small = Call(rounds, f"w{PARKED}")
        for call in slow:
            call.send(half(0))
            call.send(half(1), last=True)
        small.send(half(0))
        for call in [*large, small]:
            call.send(half(1), last=True)
        for call in [*slow, *large, small]:
            await call.task
        assert at_rest(budgets, rounds.job)

    play(scenario, 0, groups=GROUPS)


def test_one_job_does_not_park_all_that_may_be_parked(budgets):
    one, other, third = budgets.of_job("one"), budgets.of_job("other"), budgets.of_job("third")
    for budget in (one, other):
        for _ in range(PARKED):
            budget.park(SIZE)
        with pytest.raises(errors.TooManyBytes, match="for pushes whose turn has not come"):
            budget.park(SIZE)
    with pytest.raises(errors.TooManyBytes, match="of the server for pushes whose turn has not come"):
        third.park(SIZE)
    one.unpark(SIZE)
    third.park(SIZE)


def test_what_is_parked_alone_fits_whatever_its_size(budgets):
    budget = budgets.of_job("one")
    budget.park(1 << 40)
    budget.unpark(1 << 40)
    budget.park(SIZE)
