"""A job's state is the fold of its events: a process without an event loop comes to the same bits as the live job."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.server.engine.folding import specs
from tests.server.engine.folding.comparing import as_text, bare, difference
from tests.server.engine.folding.process import Folding, Request
from tests.server.engine.folding.specs import one
from tests.server.engine.folding.traffic import KINDS, Traffic

from optd_server.engine import offload
from optd_server.engine.step import arithmetic
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.backends.registry import choose
from optd_wire.errors import OptdError

SEEDS = st.integers(0, 1 << 30)
ACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), SEEDS), min_size=8, max_size=40)
# Shared memory is not part of the state: who has some must open it anew.
PLAIN_ACTIONS = st.lists(
    st.tuples(st.sampled_from([kind for kind in KINDS if kind not in ("share", "delete")]), SEEDS), max_size=15
)
QUICK = settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(QUICK, max_examples=3)
MANY = settings(QUICK, max_examples=500)
EACH = pytest.mark.parametrize("algorithm", [*ALGORITHMS, specs.MIXED])
# Two in the default suite, and all others among the slow tests.
TWO_AND_SLOW = pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(each, marks=() if each in ("adam", specs.MIXED) else pytest.mark.slow)
        for each in (*ALGORITHMS, specs.MIXED)
    ],
)
COMPILED, NUMPY = choose("auto"), choose("numpy")
seen: Counter[str] = Counter()


@pytest.fixture(scope="module")
def folding() -> Iterator[Folding]:
    made = Folding()
    yield made
    made.close()


def check(folding: Folding, algorithm: str, seed: int, actions: list[tuple[str, int]], *, large: bool = False) -> None:
    """Has a job of an algorithm go through some actions, and folds its events."""
    rng = np.random.default_rng(seed)
    compiled, threads = bool(rng.integers(2)), int(rng.integers(1, 4))
    kernels = COMPILED if compiled else NUMPY
    # Steps of the live job take few elements apart, too, and may go through other threads.
    inline = one(rng, (0, arithmetic.INLINE_ELEMENTS))
    in_part = mock.patch.object(arithmetic, "INLINE_ELEMENTS", inline)
    at_once = mock.patch.object(offload, "INLINE_ELEMENTS", one(rng, (-1, *3 * (offload.INLINE_ELEMENTS,))))
    with in_part, at_once:
        for _ in range(50):  # options are made up, and some do not go together
            spec = specs.job(rng, algorithm, large=large)
            every, calm = one(rng, (1, 5)), bool(rng.integers(2))
            traffic = Traffic(spec, rng, kernels=kernels, threads=threads, every=every, calm=calm)
            if asyncio.run(play(traffic, actions)):
                break
        else:
            raise AssertionError("no job came to be")
    for recorder, replies in zip(traffic.recorders, traffic.replies, strict=True):
        seen.update(recorder.kinds)
        count = len(recorder.events)
        request = Request(
            recorder.events,
            frozenset(recorder.states),
            frozenset(rng.integers(1, count + 1, 2).tolist()),
            kernels="numpy" if compiled else "auto",
            threads=4 - threads,
            inline=inline,
        )
        answer = folding.fold(request)
        assert not answer.uneven
        for number, state in recorder.states.items():
            wrong = difference(state, answer.states[number])
            assert not wrong, f"before event {number} of {recorder.kinds[:number]}:\n{wrong}"
        for place, state in answer.copies:
            wrong = difference(answer.states[max(answer.states)], state)
            assert not wrong, f"a copy before event {place} of {recorder.kinds}:\n{wrong}"
        for mark, given_ in replies.items():
            for reply in given_:
                assert as_text(bare(reply)) == as_text(bare(answer.replies[mark])), mark


async def play(traffic: Traffic, actions: list[tuple[str, int]]) -> bool:
    """Returns False if there cannot be such a job."""
    try:
        async with asyncio.timeout(60):
            try:
                await traffic.create()
            except OptdError:
                return False
            for kind, seed in actions:
                await traffic.happen(kind, np.random.default_rng(seed))
            await traffic.end()
            return True
    finally:
        await traffic.close()


def check_twin(algorithm: str, seed: int, before: list[tuple[str, int]], after: list[tuple[str, int]]) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(50):
        spec = specs.job(rng, algorithm)
        traffic = Traffic(spec, rng, kernels=NUMPY, threads=1, every=1, calm=bool(rng.integers(2)))
        if asyncio.run(play_with_twin(traffic, before, after)):
            return
    raise AssertionError("no job came to be")


async def play_with_twin(traffic: Traffic, before: list[tuple[str, int]], after: list[tuple[str, int]]) -> bool:
    """Has a job and one that goes on from a copy of its state do the same; False: there cannot be such a job."""
    twin = None
    try:
        try:
            await traffic.create()
        except OptdError:
            return False
        for kind, seed in before:
            await traffic.happen(kind, np.random.default_rng(seed))
        twin = await traffic.twin()
        recorder, other = traffic.recorders[-1], twin.recorders[-1]
        start = len(recorder.events)
        for kind, seed in after:
            for each in (traffic, twin):
                await each.happen(kind, np.random.default_rng(seed))
            told = list(zip(recorder.kinds[start:], recorder.events[start:], strict=True))
            assert told == list(zip(other.kinds, other.events, strict=True)), kind
        for each in (traffic, twin):
            await each.end()
        for number, state in other.states.items():
            wrong = difference(recorder.states[start + number], state)
            assert not wrong, f"before event {number} of {other.kinds}:\n{wrong}"
        return True
    finally:
        for each in filter(None, (traffic, twin)):
            await each.close()


@TWO_AND_SLOW
@given(SEEDS, ACTIONS)
@QUICK
def test_events_give_the_same_state_in_another_process(folding, algorithm, seed, actions):
    check(folding, algorithm, seed, actions)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad", specs.MIXED])
@given(SEEDS, ACTIONS)
@FEW
def test_events_of_a_large_job_give_the_same_state_in_another_process(folding, algorithm, seed, actions):
    check(folding, algorithm, seed, actions, large=True)


@TWO_AND_SLOW
@given(SEEDS, PLAIN_ACTIONS, PLAIN_ACTIONS)
@QUICK
def test_a_job_that_goes_on_from_a_copy_of_the_state_has_the_same_events(algorithm, seed, before, after):
    check_twin(algorithm, seed, before, after)


@pytest.mark.soak
@pytest.mark.parametrize("large", [False, True])
@EACH
@given(SEEDS, ACTIONS)
@MANY
def test_events_give_the_same_state_many_times(folding, algorithm, large, seed, actions):
    check(folding, algorithm, seed, actions, large=large)


@pytest.mark.soak
@EACH
@given(SEEDS, PLAIN_ACTIONS, PLAIN_ACTIONS)
@MANY
def test_a_job_that_goes_on_from_a_copy_has_the_same_events_many_times(algorithm, seed, before, after):
    check_twin(algorithm, seed, before, after)


def test_shared_memory_older_than_a_group_meets_rows_of_that_group(folding):
    rounds = [("round", 0)] * 4
    check(folding, "sgd", 343042, [*rounds, ("share", 0), ("add_group", 159), *rounds[:2]], large=True)


def test_the_process_that_folds_knows_no_event_loop(folding):
    assert "optd_server.engine.apply" in folding.modules
    assert "asyncio" not in folding.modules
