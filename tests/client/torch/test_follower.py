"""`Follower`: a model that is kept at the newest version of a job, between two forward passes."""

import copy
import gc
import io
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from faults.processes import in_background, wait_for
from tests.client.torch.followed import NAMES, NOTHING, Telling, Trainer, trainer, where

import optd
import optd.torch
from optd import errors
from optd.session.session import Session
from optd.torch import Follower
from optd.transport import rpcs
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.server_calls import ServerCalls

SECONDS = 30.0


__all__ = ["trainer", "where"]


# Passes


def test_a_model_has_the_current_weights_at_once_and_each_new_version_after_that(where, trainer):
    trainer.steps(2)
    model = Telling()
    with Follower(model, **where, timeout=SECONDS) as follower:
        assert (follower.version, follower.lag, model(NOTHING).item()) == (2, 0, 2)
        trainer.steps()
        wait_for(lambda: model(NOTHING).item() == 3, "the next version")
        assert (follower.version, follower.lag) == (3, 0)
        (worker,) = trainer.optimizer.session.workers()
        assert worker.name == "trainer", "a follower is no worker"
    trainer.steps()
    assert model(NOTHING).item() == 3, "the model keeps its weights"


def test_no_pass_sees_two_versions_while_steps_go_on(where, trainer):
    """Passes of several threads overlap, and each lasts long enough for versions to come in the middle of it."""
    model = Telling(seconds=0.002)
    done = threading.Event()

    def infer() -> list[float]:
        seen = []
        with torch.inference_mode():
            while not done.is_set():
                seen.append(model(NOTHING).item())
        return seen

    with Follower(model, **where, timeout=SECONDS) as follower, ThreadPoolExecutor(3) as pool:
        threads = [pool.submit(infer) for _ in range(3)]
        try:
            trainer.steps(150)
            wait_for(lambda: follower.version == 150 or any(t.done() for t in threads), "the last version", SECONDS)
        finally:
            done.set()
        for each in threads:
            seen = each.result(SECONDS)
            assert seen == sorted(seen)
        assert len({version for each in threads for version in each.result()}) > 3


def test_update_and_wait_bring_versions_between_passes(where, trainer):
    model = Telling()
    with Follower(model, **where, automatic=False, timeout=SECONDS) as follower:
        trainer.steps(2)
        wait_for(lambda: follower.lag == 2 and follower._spares._newest() == 2, "the new version in spare memory")
        assert (model(NOTHING).item(), follower.version) == (0, 0), "no pass brings it"
        assert (follower.update(), model(NOTHING).item()) == (2, 2)
        waited = in_background(lambda: follower.wait(5))
        trainer.steps(3)
        assert waited.result(SECONDS) == 5
        assert model(NOTHING).item() == 5
        assert follower.wait(3) == 5


def test_a_wait_in_vain_names_both_versions(where, trainer):
    trainer.steps()
    with Follower(Telling(), **where) as follower:
        message = f"took longer than 0.1 s; version 9 of job '{where['job']}' was asked for, and it is at version 1"
        with pytest.raises(errors.DeadlineExceeded, match=message):
            follower.wait(9, timeout=0.1)


def test_within_a_pass_nothing_can_be_brought_in(where, trainer):
    class Impatient(Telling):
        def forward(self, inputs):
            follower.update()

    model = Impatient()
    with Follower(model, **where) as follower:
        for _ in range(2):
            with pytest.raises(errors.InvalidRequest, match="within a forward pass"):
                model(NOTHING)
        trainer.steps()
        assert follower.wait(1) == 1, "passes that raise are over"


@pytest.mark.parametrize("passes", ["own", "another thread's"])
def test_a_pass_that_is_interrupted_is_over(where, trainer, passes):
    """After an exception that is no `Exception`, torch calls no hook that would tell of the end of the pass."""

    class Interrupted(Telling):
        def forward(self, inputs):
            if inputs is interrupting:
                raise KeyboardInterrupt
            return super().forward(inputs)

    model, interrupting = Interrupted(), torch.zeros(1)
    with Follower(model, **where, timeout=SECONDS) as follower, ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            model(interrupting) if passes == "own" else pool.submit(model, interrupting).result(SECONDS)
        trainer.steps()
        assert follower.wait(1) == 1
        with pytest.raises(KeyboardInterrupt):
            model(interrupting) if passes == "own" else pool.submit(model, interrupting).result(SECONDS)
        trainer.steps()
        wait_for(lambda: model(NOTHING).item() == 2, "the next version")
        assert not follower._passes._inside, "nothing is kept of a pass"


def test_a_pass_within_a_pass_is_of_the_same_version(where, trainer):
    class Nested(Telling):
        def forward(self, inputs):
            outer = super().forward(inputs)
            if inputs.numel():
                trainer.steps()
                wait_for(lambda: follower._spares.are_ready, "a new version amid the pass")
                assert self(torch.zeros(0)) == outer
            return super().forward(inputs)

    model = Nested()
    with Follower(model, **where) as follower:
        assert [model(NOTHING).item() for _ in range(3)] == [0, 1, 2]


# Kinds of models


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_models_made_and_called_in_any_mode(where, trainer, mode):
    with mode():
        model = Telling()
    with Follower(model, **where) as follower:
        trainer.steps()
        follower.wait(1)
        trainer.steps()
        with mode():
            wait_for(lambda: model(NOTHING).item() == 2, "the next version")


def test_a_compiled_model(where, trainer):
    """Its graph must not have the weights of the first call."""
    model = torch.nn.Linear(3, 2, bias=False)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with Follower(compiled, **where, names={"weight": NAMES[1]}, strict=False), torch.inference_mode():
        for version in range(1, 4):
            trainer.steps()
            wait_for(lambda v=version: compiled(torch.ones(1, 3)).tolist() == [[3 * v, 3 * v]], "the next version")


def test_a_model_that_is_compiled_in_place_is_updated_by_hand(where, trainer):
    model = torch.nn.Linear(3, 2, bias=False)
    model.compile(backend="eager")
    how = {"names": {"weight": NAMES[1]}, "strict": False, **where}
    with pytest.raises(errors.InvalidRequest, match=r"give torch.compile\(model\), or automatic=False"):
        Follower(model, **how)
    with Follower(model, **how, automatic=False) as follower, torch.inference_mode():
        for version in range(1, 4):
            trainer.steps()
            follower.wait(version)
            assert model(torch.ones(1, 3)).tolist() == [[3 * version, 3 * version]]


def test_a_wrapper_makes_no_difference_to_names(where, trainer):
    model = Telling()
    with Follower(torch.nn.DataParallel(model), **where) as follower:
        trainer.steps()
        follower.wait(1)
        assert model(NOTHING).item() == 1


def test_tied_weights_are_one(where):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Linear(2, 2, bias=False)
            self.other = torch.nn.Linear(2, 2, bias=False)
            self.other.weight = self.one.weight

    trained, model = Tied(), Tied()
    optimizer = optd.torch.SGD(trained.named_parameters(), lr=1.0, **where, worker="w")
    with optimizer.session, Follower(model, **where):
        assert model.other.weight is model.one.weight
        assert torch.equal(model.one.weight, trained.one.weight)


def test_a_graph_that_needs_the_old_weights_says_so(where, trainer):
    """A student that is trained by a followed teacher: weights that change below a graph are an error, never a lie."""
    model = torch.nn.Linear(3, 2, bias=False)
    names = {"weight": NAMES[1]}
    with Follower(model, **where, names=names, strict=False) as follower:
        inputs = torch.ones(1, 3, requires_grad=True)
        loss = (model(inputs) ** 2).sum()
        trainer.steps()
        follower.wait(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_copies_of_a_model_do_not_follow(where, trainer):
    model = Telling()
    with Follower(model, **where) as follower:
        copied = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        trainer.steps()
        follower.wait(1)
        assert [each(NOTHING).item() for each in (model, copied, loaded)] == [1, 0, 0]


def test_a_model_that_is_dropped_ends_its_following(where, trainer):
    models = [Telling()]
    follower = Follower(models[0], **where)
    thread, gone = follower._thread, weakref.ref(models[0])
    del follower
    trainer.steps()
    wait_for(lambda: models[0](NOTHING).item() == 1, "the model follows without a variable for the follower")
    models.clear()
    wait_for(lambda: gc.collect() >= 0 and gone() is None, "the end of the model, when its last pull has ended")
    thread.join(SECONDS)
    assert not thread.is_alive()


# The end


def test_when_the_job_ends_the_next_pass_warns_and_goes_on(where, trainer):
    trainer.steps()
    model = Telling()
    with Follower(model, **where) as follower:
        optd.delete_job(where["job"], server=where["server"])
        wait_for(lambda: follower.failure is not None, "the end of the following")
        message = f"no longer follows job '{where['job']}', and the model keeps the weights of version 1: no job"
        with pytest.warns(UserWarning, match=message) as caught:
            assert model(NOTHING).item() == 1
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model(NOTHING).item() == 1, "it is told once"
        for ask in (follower.update, lambda: follower.wait(2)):
            with pytest.raises(errors.UnknownJob):
                ask()


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem",
    [errors.TooSlow(version=1, seconds=30), errors.Stalled(what="it", seconds=30)],
    ids=lambda e: type(e).__name__,
)
def test_a_pull_that_the_server_gives_up_is_made_again(problem, caplog):
    server, model = FakeServer(), Telling()
    sessions = [Session(ServerCalls(FakeConnection(server)), job="job", worker=name, timeout=5.0) for name in "wr"]
    with sessions[0], sessions[1]:
        trainer = Trainer(sessions[0])
        with Follower(model, session=sessions[1]) as follower:
            server.fail(rpcs.PULL, problem, is_handled=False)
            trainer.steps()
            assert follower.wait(1) == 1
    assert "a follower pulls again" in caplog.text


def test_a_wait_ends_when_the_job_does(where, trainer):
    with Follower(Telling(), **where) as follower:
        waited = in_background(lambda: follower.wait(9))
        optd.delete_job(where["job"], server=where["server"])
        with pytest.raises(errors.UnknownJob):
            waited.result(SECONDS)


def test_a_closed_follower_says_so(where, trainer):
    model = Telling()
    follower = Follower(model, **where)
    waited = in_background(lambda: follower.wait(9))
    follower.close()
    follower.close()
    with pytest.raises(errors.SessionClosed):
        waited.result(SECONDS)
    with pytest.raises(errors.SessionClosed):
        follower.update()
    assert "closed" in repr(follower)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_group_that_is_added_must_be_in_the_model_unless_others_are_left_out(where, trainer):
    strict, lenient = Telling(), Telling()
    with Follower(strict, **where) as one, Follower(lenient, **where, strict=False) as other:
        trainer.optimizer.add_param_group({"params": {"extra": np.zeros(2, "f4")}})
        trainer.gradient["extra"] = np.zeros(2, "f4")
        trainer.steps()
        assert other.wait(1) == 1
        assert lenient(NOTHING).item() == 1
        wait_for(lambda: one.failure is not None, "the end of the strict one")
        with pytest.raises(errors.StructureMismatch, match="'extra', which the model has not"):
            one.update()
