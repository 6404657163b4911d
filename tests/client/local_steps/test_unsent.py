"""`unsent`: the local steps that are not known to count, and what closing says of them. No sockets."""

import logging

import pytest
from tests.client.local_steps.problem import initial

import optd
from optd import errors
from optd.session.session import Session
from optd.transport import rpcs
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.server_calls import ServerCalls

LATE = errors.DeadlineExceeded(rpc="Step", address="fake:1", seconds=1, hint="")


def opened(server: FakeServer) -> Session:
    return Session(ServerCalls(FakeConnection(server)), job="job", worker="w0", timeout=5.0)


@pytest.mark.parametrize("fragments", [1, 2])
def test_steps_that_stay_unsent_are_said_unless_they_are_saved(caplog, fragments):
    for end, says in (("close", True), ("sync", False), ("state_dict", False)):
        caplog.clear()
        with opened(FakeServer()) as session, caplog.at_level(logging.WARNING, "optd"):
            local = optd.LocalSteps(initial(), every=4, fragments=fragments, session=session)
            for _ in range(7):
                local.step()
            getattr(local, end)()
            local.close()
        assert ("worker w0 ends with 3 local steps that are not sent" in caplog.text) == says


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("is_handled", [True, False])
def test_steps_whose_sync_has_failed_are_unsent_until_it_is_known_that_they_count(caplog, delay, is_handled):
    server = FakeServer()
    with opened(server) as session:
        local = optd.LocalSteps(initial(), every=2, delay=delay, session=session)
        local.step()
        server.fail(rpcs.STEP, LATE, is_handled=is_handled)
        for _ in range(delay):
            local.step()
            assert local.unsent == 2, "it is under way"
        with pytest.raises(errors.DeadlineExceeded):
            local.step()
        assert local.unsent == 2 + delay
        with caplog.at_level(logging.WARNING, "optd"):
            local.close()
        assert f"ends with {2 + delay} local steps that are not sent, not whole, or not known to count" in caplog.text
        local.sync()
        assert local.unsent == 0


@pytest.mark.parametrize("counts", [True, False])
def test_closing_says_what_is_unsent_also_if_it_fails(caplog, counts):
    """What is under way fails while it is closed: the push, or just the pull after it."""
    server = FakeServer()
    with opened(server) as session:
        local = optd.LocalSteps(initial(), every=2, delay=1, session=session)
        local.step()
        server.fail(rpcs.PULL if counts else rpcs.STEP, LATE, is_handled=False)
        local.step()
        with pytest.raises(errors.DeadlineExceeded), caplog.at_level(logging.WARNING, "optd"):
            local.close()
        assert local.unsent == (0 if counts else 2)
    assert ("worker w0 ends with 2 local steps" in caplog.text) != counts
