"""A worker whose server goes back to an older version of its job, or comes back without it, against the fake server."""

import logging

import numpy as np
import pytest

import optd
from optd import errors
from optd.registration.recovery import UndonePush
from optd.session.session import Session
from optd.transport import rpcs
from optd.transport.encoding import MessageEncoding
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.server_calls import ServerCalls
from optd_wire.messages import to_message
from optd_wire.v1 import inspection_service_pb2
from optd_wire.values import AlgorithmInfo

LOST = errors.ConnectionLost(address="fake:1", rpc="Step", problem="cut")
ONES = {"w": np.ones(3, "f4")}


@pytest.fixture
def server():
    made = FakeServer()
    sgd = AlgorithmInfo("sgd", "", (), (), ())
    listed = inspection_service_pb2.ListAlgorithmsResponse(algorithms=[to_message(sgd)])
    made.handlers[rpcs.LIST_ALGORITHMS.path] = lambda *_: (listed, ())
    return made


def opened(server, worker="w0", **how):
    how = {"timeout": 5.0, **how}
    return Session(ServerCalls(FakeConnection(server)), job="job", worker=worker, **how)


def training(session, start=0.0):
    arrays = {"w": np.full(3, start, "f4")}
    return optd.SGD(arrays, lr=1.0, session=session), arrays["w"]


def warnings_of(caplog):
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


# Back to an older version


def test_a_step_after_the_server_went_back_is_given_up_and_the_next_ones_count(server, caplog):
    with opened(server) as session:
        optimizer, weights = training(session)
        optimizer.step(ONES)
        saved = server.jobs["job"].saved()
        for _ in range(3):
            optimizer.step(ONES)
        server.jobs["job"].go_back(saved)
        result = optimizer.step(ONES)
        assert isinstance(result, UndonePush)
        assert optimizer.last is result
        assert (result.version.version, result.applied_version) == (1, 0)
        assert (weights.tolist(), optimizer.version, session.epoch) == ([-1.0] * 3, 1, 2)
        lost, dropped = warnings_of(caplog)
        assert "the server went back to version 1, and has lost 3 acknowledged pushes of worker w0" in lost
        assert "worker w0 drops a gradient" in dropped
        optimizer.step(ONES)
        assert (weights.tolist(), optimizer.version) == ([-2.0] * 3, 2)


def test_a_push_after_the_server_went_back_brings_its_weights(server):
    with opened(server) as session:
        optimizer, weights = training(session)
        saved = server.jobs["job"].saved()
        optimizer.step(ONES)
        server.jobs["job"].go_back(saved)
        assert isinstance(optimizer.push(ONES), UndonePush)
        assert (weights.tolist(), optimizer.version) == ([0.0] * 3, 0)
        optimizer.push(ONES)
        assert server.jobs["job"].version == 1


def test_a_pull_after_the_server_went_back_brings_its_weights(server):
    with opened(server) as session:
        optimizer, weights = training(session)
        saved = server.jobs["job"].saved()
        optimizer.step(ONES)
        server.jobs["job"].go_back(saved)
        assert optimizer.pull(only_if_newer=True) is not None
        assert weights.tolist() == [0.0] * 3
        assert not isinstance(optimizer.step(ONES), UndonePush)


def test_another_timeline_of_the_same_version_is_not_mistaken_for_the_own_one(server):
    """Others may have made as many steps by the time that this worker comes back."""
    with opened(server) as session, opened(server, "w1") as other:
        optimizer, weights = training(session)
        faster, _ = training(other)
        saved = server.jobs["job"].saved()
        optimizer.step(ONES)
        server.jobs["job"].go_back(saved)
        faster.pull()
        faster.step({"w": np.full(3, 5.0, "f4")})
        assert server.jobs["job"].version == optimizer.version == 1
        assert optimizer.pull(only_if_newer=True) is not None
        assert weights.tolist() == [-5.0] * 3


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_push_whose_answer_was_lost_with_the_server_counts_if_the_server_has_it(server, is_kept):
    """Its answer is lost; sent again, it finds that the server has gone back."""
    with opened(server) as session:
        optimizer, weights = training(session)
        optimizer.step(ONES)
        before = server.jobs["job"].saved()

        def crash(request, frames):
            answer = step(request, frames)
            server.handlers[rpcs.STEP.path] = step
            server.jobs["job"].go_back(server.jobs["job"].saved() if is_kept else before)
            return answer

        step = server.handlers[rpcs.STEP.path]
        server.handlers[rpcs.STEP.path] = crash
        server.fail(rpcs.STEP, LOST, is_handled=True)
        result = optimizer.step(ONES)
        assert isinstance(result, UndonePush) != is_kept
        assert (result.repeat, weights[0], optimizer.version) == ((True, -2.0, 2) if is_kept else (False, -1.0, 1))
        optimizer.step(ONES)
        assert weights[0] == (-3.0 if is_kept else -2.0)


def test_a_push_in_doubt_does_not_hide_that_the_server_went_back(server):
    with opened(server) as session:
        optimizer, weights = training(session)
        saved = server.jobs["job"].saved()
        optimizer.step(ONES)
        server.fail(rpcs.STEP, KeyboardInterrupt(), is_handled=True)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(ONES)
        server.jobs["job"].go_back(saved)
        assert session.in_doubt
        assert isinstance(optimizer.step(ONES), UndonePush)
        assert (weights[0], optimizer.version, session.in_doubt) == (0.0, 0, False)


def test_a_server_that_goes_back_twice_is_followed(server):
    with opened(server) as session:
        optimizer, weights = training(session)
        saved = server.jobs["job"].saved()
        optimizer.step(ONES)
        later = server.jobs["job"].saved()
        optimizer.step(ONES)

        def pull_amid(request, frames):
            server.handlers[rpcs.PULL.path] = pull
            server.jobs["job"].go_back(saved)
            return pull(request, frames)

        pull = server.handlers[rpcs.PULL.path]
        server.handlers[rpcs.PULL.path] = pull_amid
        server.jobs["job"].go_back(later)
        assert isinstance(optimizer.step(ONES), UndonePush)
        assert (weights[0], optimizer.version) == (0.0, 0)


def test_whoever_takes_the_name_still_fences_the_worker(server):
    with opened(server) as session:
        optimizer, _ = training(session)
        with opened(server) as thief:
            training_of_thief = Session.register
            assert training_of_thief is not None
            server.jobs["job"].join("w0", None, "")
            with pytest.raises(errors.StaleEpoch, match="joined again"):
                optimizer.step(ONES)
            assert thief.epoch == 0


def test_residuals_of_pushes_that_are_lost_are_forgotten(server):
    with opened(server, wire=MessageEncoding.of("topk:0.34")) as session:
        optimizer, weights = training(session)
        saved = server.jobs["job"].saved()
        optimizer.step({"w": np.array([3.0, 2.0, 1.0], "f4")})
        server.jobs["job"].go_back(saved)
        optimizer.step({"w": np.array([3.0, 2.0, 1.0], "f4")})
        optimizer.step({"w": np.array([0.0, 0.0, 0.5], "f4")})
        assert weights.tolist() == [0.0, 0.0, -0.5]


def test_residuals_stay_if_no_push_is_lost(server):
    with opened(server, wire=MessageEncoding.of("topk:0.34")) as session:
        optimizer, weights = training(session)
        optimizer.step({"w": np.array([3.0, 2.0, 1.0], "f4")})
        server.jobs["job"].go_back(server.jobs["job"].saved())
        assert isinstance(optimizer.step({"w": np.array([0.0, 0.0, 9.0], "f4")}), UndonePush)
        optimizer.step({"w": np.array([0.0, 0.0, 0.5], "f4")})
        assert weights.tolist() == [-3.0, -2.0, -1.5], "the 1.0 that was left out counts"


def test_a_group_that_the_server_has_lost_is_added_again(server):
    with opened(server) as session:
        optimizer, _ = training(session)
        saved = server.jobs["job"].saved()
        optimizer.add_param_group({"params": {"v": np.full(2, 7.0, "f4")}, "lr": 0.5})
        server.jobs["job"].go_back(saved)
        optimizer.step({**ONES, "v": np.ones(2, "f4")})
        assert [group.spec.name for group in server.jobs["job"].groups] == ["group0", "group1"]
        optimizer.step({**ONES, "v": np.ones(2, "f4")})
        assert optimizer.weights["v"].tolist() == [6.5] * 2


def test_a_change_of_weights_before_the_step_is_told_to_be_replaced(server):
    def refuse(request, frames):
        server.jobs["job"].worker("w0", request.header.epoch)
        raise AssertionError("the worker is fenced")

    server.handlers[rpcs.WRITE_STATE.path] = refuse
    with opened(server) as session:
        optimizer, weights = training(session)
        saved = server.jobs["job"].saved()
        optimizer.step(ONES)
        server.jobs["job"].go_back(saved)
        weights += 1
        with pytest.warns(UserWarning, match="have moved on from version 1"):
            assert isinstance(optimizer.step(ONES), UndonePush)
        assert weights.tolist() == [0.0] * 3


def test_a_closure_is_called_again_after_the_server_went_back(server):
    seen = []
    with opened(server) as session:
        optimizer, weights = training(session)
        saved = server.jobs["job"].saved()
        optimizer.step(ONES)
        server.jobs["job"].go_back(saved)

        def closure():
            seen.append(float(weights[0]))
            return seen[-1], ONES

        assert optimizer.step(closure) == 0.0
        assert seen == [-1.0, 0.0]
        assert weights[0] == -1.0


# Without the job


def test_a_job_that_the_server_has_lost_is_called_so(server):
    with opened(server) as session:
        optimizer, _ = training(session)
        optimizer.step(ONES)
        server.restart_without_jobs()
        for call in (lambda: optimizer.step(ONES), optimizer.pull, session.info):
            with pytest.raises(errors.JobLost, match="without job 'job', which worker 'w0' had joined.*--data-dir"):
                call()


def test_a_job_that_somebody_has_deleted_is_not_lost_and_not_created_anew(server):
    with opened(server, recreate=True) as session:
        optimizer, _ = training(session)
        del server.jobs["job"]
        with pytest.raises(errors.UnknownJob):
            optimizer.step(ONES)
        assert server.jobs == {}


def test_a_lost_job_is_created_anew_with_the_weights_and_options_of_its_worker(server, caplog):
    with opened(server, recreate=True) as session:
        optimizer, weights = training(session)
        optimizer.add_param_group({"params": {"v": np.full(2, 7.0, "f4")}, "lr": 0.25})
        optimizer.step({**ONES, "v": np.ones(2, "f4")})
        optimizer.param_groups[0]["lr"] = 0.5
        server.restart_without_jobs()
        result = optimizer.step({**ONES, "v": np.ones(2, "f4")})
        (warning,) = warnings_of(caplog)
        assert "was restarted without it" in warning
        assert "the weights and options of this worker" in warning
        assert not isinstance(result, UndonePush), "the gradient belongs to the weights of the new job"
        assert (weights.tolist(), optimizer.version) == ([-1.5] * 3, 1)
        assert optimizer.weights["v"].tolist() == [6.5] * 2


def test_the_second_worker_attaches_to_the_job_that_the_first_has_created_anew(server, caplog):
    with opened(server, recreate=True) as first, opened(server, "w1", recreate=True) as second:
        one, weights = training(first)
        other, theirs = training(second)
        one.step(ONES)
        server.restart_without_jobs()
        one.step(ONES)
        assert weights.tolist() == [-2.0] * 3
        assert isinstance(other.step(ONES), UndonePush)
        assert theirs.tolist() == [-2.0] * 3
        attached, dropped = warnings_of(caplog)[-2:]
        assert "the weights and options of the worker that was first" in attached
        assert "worker w1 drops a gradient" in dropped
        other.step(ONES)
        assert server.jobs["job"].version == 2


def test_a_worker_that_may_not_create_is_told_when_another_has(server):
    with opened(server, recreate=True) as first, opened(server, "w1") as second:
        one, _ = training(first)
        other, _ = training(second)
        server.restart_without_jobs()
        one.step(ONES)
        with pytest.raises(errors.JobLost):
            other.step(ONES)
