"""Local steps of a sync job: a worker that was in the last round loses nothing when it does not learn of it."""

import numpy as np
import pytest
from tests.client.local_steps.problem import Inner, initial

import optd
from optd import errors
from optd.local import LocalServer

EVERY = 3
STEPS = 4 * EVERY
FAILURE = errors.DeadlineExceeded(rpc="Step", address="there", seconds="1", hint="")


def alone() -> dict[str, np.ndarray]:
    """The weights after the same steps without a server."""
    weights, inner = initial(), Inner(0)
    for _ in range(STEPS):
        inner.step(weights)
    return weights


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("lost", ["PushResult", "PullResult"])
@pytest.mark.parametrize("joins", [False, True], ids=["stays", "joins again"])
def test_no_local_step_is_lost_with_an_answer(server: LocalServer, name: str, fragments, lost, joins):
    weights, inner = initial(), Inner(0)
    outer = {"algorithm": "sgd", "lr": 1.0}
    with (
        optd.connect(server.address, job=name, worker="w0", lane="grpc", policy=optd.Sync(workers=1)) as session,
        optd.LocalSteps(weights, every=EVERY, fragments=fragments, outer=outer, session=session) as local,
    ):
        whole, due = session._on_lane, [lost]

        def loses(send):
            answer = whole(send)
            if type(answer).__name__ in due:
                due.clear()
                raise FAILURE
            return answer

        failures = 0
        for step in range(STEPS):
            if step == EVERY - 1:
                session._on_lane = loses
            inner.step(weights)
            try:
                local.step()
            except errors.DeadlineExceeded:
                failures += 1
                if joins:
                    session.rejoin("a test says so")
        local.sync()
        assert (failures, due) == (1, [])
        found = session.pull()
    expected = alone()
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-12)
