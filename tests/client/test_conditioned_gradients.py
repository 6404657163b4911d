"""Gradients that the server clips before each step, through both faces and on both lanes, against torch."""

import logging
import math

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd import errors
from optd.local import LocalServer
from optd_wire.values import GradientSummary

SIZES = (70_000, 300)  # more than a step's few elements, so that the auto lane shares memory


def summary(session: optd.Session) -> GradientSummary:
    jobs = session._transport.list_jobs(10)
    return next(job.gradients for job in jobs if job.name == session.job)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize(("norm", "p"), [(0.5, 2.0), (0.01, math.inf), (None, 2.0)])
def test_training_as_torch_with_everything_clipped(
    server: LocalServer, name: str, lane: str, norm: float | None, p: float
) -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in SIZES]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    groups = [{"params": [ours[0]], "clip_value": 0.5}, {"params": [ours[1]], "clip_norm": 3.0}]
    gradients = optd.Gradients(clip_norm=norm, clip_norm_type=p)
    with optd.connect(server.address, job=name, lane=lane, gradients=gradients) as session:
        optimizer = optd.torch.SGD(groups, lr=0.1, momentum=0.9, session=session, zero_copy=lane == "shm")
        assert session.lane == lane
        assert "clip_value" not in optimizer.param_groups[1]
        for step in range(4):
            for parameter, other in zip(ours, theirs, strict=True):
                other.grad = torch.randn_like(other)
                parameter.grad = other.grad.clone()
            if step == 2:
                ours[1].grad = theirs[1].grad = None
            sent = [None if parameter.grad is None else parameter.grad.clone() for parameter in ours]
            optimizer.step()
            for before, parameter in zip(sent, ours, strict=True):
                assert before is None or torch.equal(before, parameter.grad)  # what a worker shares is only read
            torch.nn.utils.clip_grad_value_(theirs[:1], 0.5)
            torch.nn.utils.clip_grad_norm_(theirs[1:], 3.0, p)
            if norm is not None:
                torch.nn.utils.clip_grad_norm_(theirs, norm, p)
            reference.step()
            for parameter, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-15)
        found = summary(session)
        assert found.clipped_steps == 4
        assert found.norm > 0


def test_rows_count_in_a_norm(server: LocalServer, name: str) -> None:
    table, bias = np.zeros((5, 2)), np.zeros(2)
    with optd.connect(server.address, job=name, gradients=optd.Gradients(clip_norm=2.5)) as session:
        optimizer = optd.SGD({"table": table, "bias": bias}, lr=1.0, session=session)
        optimizer.step({"table": ([4, 1], np.array([[3.0, 0.0], [0.0, 0.0]])), "bias": np.array([0.0, 4.0])})
        np.testing.assert_allclose(table[4], [-1.5, 0], rtol=1e-6)
        np.testing.assert_allclose(bias, [0, -2.0], rtol=1e-6)
        assert summary(session).norm == 5.0


def test_an_option_changes_in_mid_training_at_one_version(server: LocalServer, name: str) -> None:
    weights = np.zeros(2)
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        assert session.info().options.options["clip_norm"] is None
        optimizer.step({"w": np.array([3.0, 4.0])})
        found = session.set_options(clip_norm=1, expected_revision=0)
        assert (found.options["clip_norm"], found.revision, found.since_version) == (1.0, 1, 1)
        assert session.info().options == found
        optimizer.step({"w": np.array([3.0, 4.0])})
        np.testing.assert_allclose(weights, [-3.6, -4.8], rtol=1e-6)
        with pytest.raises(
            errors.JobOptionConflict, match=r"clip_norm was to become 2\.0, but .* to 1\.0 at version 1"
        ):
            session.set_options(clip_norm=2.0, expected_revision=0)
        session.set_options(clip_norm=1.0, expected_revision=0)  # which it is already
        with pytest.raises(errors.OptionOutOfRange, match=r"job: clip_norm must be in \(0, inf\), got -1"):
            session.set_options(clip_norm=-1)
        session.set_options(clip_norm=None)
        optimizer.step({"w": np.array([3.0, 4.0])})
        np.testing.assert_allclose(weights, [-6.6, -8.8], rtol=1e-6)


def test_who_attaches_learns_that_the_job_has_other_options(
    server: LocalServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with optd.connect(server.address, job=name, gradients=optd.Gradients(clip_norm=1.0)) as first:
        optd.SGD({"w": np.zeros(2)}, session=first)
        with (
            caplog.at_level(logging.WARNING, "optd"),
            optd.connect(server.address, job=name, gradients=optd.Gradients(clip_norm=2.0)) as second,
        ):
            optd.SGD({"w": np.zeros(2)}, session=second)
    assert f"job {name} exists already: it goes on with clip_norm=1.0, not 2.0" in caplog.text


def test_a_job_with_an_invalid_option_is_not_created(server: LocalServer, name: str) -> None:
    gradients = optd.Gradients(clip_norm_type=0)
    with (
        optd.connect(server.address, job=name, gradients=gradients) as session,
        pytest.raises(errors.OptionOutOfRange, match=r"job: clip_norm_type must be in \(0, inf\], got 0"),
    ):
        optd.SGD({"w": np.zeros(2)}, session=session)


def test_a_bound_of_a_group_that_comes_with_a_push_clips_that_push(server: LocalServer, name: str) -> None:
    weights = np.zeros(70_000)
    with optd.connect(server.address, job=name, lane="shm") as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        optimizer.param_groups[0]["clip_value"] = 0.25
        gradient = np.ones(70_000)
        optimizer.step({"w": gradient})
        assert (weights == -0.25).all()
        assert (gradient == 1).all()
