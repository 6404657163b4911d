"""Complex parameters: the numbers of torch, which computes with their real and imaginary parts."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.classes import CASES, Case, assert_same_value

import optd
import optd.torch
from optd import errors

TAKEN = [case for case in CASES if case.name not in ("Adafactor", "Lion", "Muon", "SparseAdam")]
REFUSED = [case for case in CASES if case.name in ("Adafactor", "Lion", "Muon", "SparseAdam")]
OPTIONS = {
    "SGD": [{"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "Adam": [{"amsgrad": True, "weight_decay": 0.1}, {"maximize": True}],
    "AdamW": [{"amsgrad": True}],
    "Adagrad": [{"initial_accumulator_value": 0.5, "lr_decay": 0.1, "foreach": False}],
    "RMSprop": [{"centered": True, "momentum": 0.5}],
    "Rprop": [{"lr": 0.5}],
    "ASGD": [{"t0": 1.0, "weight_decay": 0.1}],
    "RAdam": [{"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "NAdam": [{"weight_decay": 0.1}],
    "LBFGS": [{"line_search_fn": "strong_wolfe"}],
}
EACH = pytest.mark.parametrize(
    ("case", "options"),
    [(case, options) for case in TAKEN for options in [{}, *OPTIONS.get(case.name, [])]],
    ids=str,
)
EACH_DTYPE = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.complex64, 2e-6), (torch.complex128, 1e-12)], ids=str
)
SHAPES = ((3, 2), (), (4,), (0, 2))


def parameters(dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[torch.nn.Parameter]:
    """The first is transposed, the last one real, beside complex ones."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    made[0] = torch.randn(shapes[0][::-1], dtype=dtype, generator=generator).t()
    return [torch.nn.Parameter(each) for each in (*made, torch.randn(5, dtype=made[0].real.dtype, generator=generator))]


class Pair:
    """The same complex parameters in torch and in a job."""

    def __init__(self, case: Case, options: dict[str, Any], dtype: torch.dtype, serve: Callable, **ours: Any) -> None:
        given = {**case.defaults, **options}
        self.theirs, self.ours = parameters(dtype), parameters(dtype)
        if case.needs_closure:  # torch's LBFGS has no way with gradients of other strides
            for each in (self.theirs[0], self.ours[0]):
                each.data = each.detach().contiguous()
        self.closure = case.needs_closure
        self.torchs = case.theirs(self.theirs, **given)
        self.served = serve(case.ours, self.ours, **given, **ours)

    def step(self, number: int) -> None:
        for place, (p, q) in enumerate(zip(self.theirs, self.ours, strict=True)):
            # An empty one counts as present wherever a gradient next to it is.
            absent = (number + place) % 4 == 0 and p.numel() > 0 and not self.closure
            p.grad = None if absent else torch.randn_like(p)
            q.grad = None if absent else p.grad.clone()
            if p.grad is not None and p.is_complex() and number % 2:
                q.grad = p.grad.conj().resolve_conj().conj()  # the same numbers, conjugated when they are read
        for optimizer in (self.torchs, self.served):
            optimizer.step(*[self.loss(optimizer)] if self.closure else [])

    def loss(self, optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            value = sum((p.abs() ** 2 * 0.5 + p.real.sin()).sum() for p in optimizer.param_groups[0]["params"])
            value.backward()
            return value

        return closure


@pytest.mark.slow
@EACH_DTYPE
@EACH
def test_complex_parameters_train_as_in_torch(case: Case, options, dtype, tolerance, serve: Callable) -> None:
    if case.name == "ASGD" and dtype is torch.complex128:
        tolerance = 1e-6  # torch's numbers for a parameter are float32 here: see classes.py
    pair = Pair(case, options, dtype, serve)
    for number in range(3 if case.needs_closure else 10):  # in which LBFGS comes near its end
        pair.step(number)
    torch.testing.assert_close(pair.ours, pair.theirs, rtol=tolerance, atol=tolerance)
    there, here = pair.torchs.state_dict(), pair.served.state_dict()
    assert here["state"].keys() == there["state"].keys()
    for index, expected in there["state"].items():
        found = here["state"][index]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if value is not None and not case.needs_closure:
                strides = {"check_stride": isinstance(value, torch.Tensor) and bool(value.numel())}
                torch.testing.assert_close(found[name], value, rtol=10 * tolerance, atol=10 * tolerance, **strides)
            elif dtype is torch.complex128:
                assert_same_value(found[name], value, 10 * tolerance)


@pytest.mark.parametrize("case", TAKEN, ids=str)
def test_states_load_in_both_directions(case: Case, serve: Callable) -> None:
    dtype, tolerance = torch.complex64, 1e-5
    first, second = Pair(case, {}, dtype, serve), Pair(case, {}, dtype, serve)
    for number in range(3):
        first.step(number)
        second.step(number)
    # Each of the second goes on with the state that the other kind has had, from the same weights.
    theirs, ours = (copy.deepcopy(optimizer.state_dict()) for optimizer in (first.torchs, first.served))
    second.torchs.load_state_dict(ours)
    second.served.load_state_dict(theirs)
    for number in range(3, 6):
        second.step(number)
    torch.testing.assert_close(second.ours, second.theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_both_lanes_and_whether_copied_or_not(lane, zero_copy, server, job_names) -> None:
    theirs, ours = parameters(torch.complex64), parameters(torch.complex64)
    with optd.connect(server.address, job=next(job_names), lane=lane) as session:
        pair = torch.optim.Adam(theirs), optd.torch.Adam(ours, session=session, zero_copy=zero_copy)
        for _ in range(3):
            for parameters_, optimizer in zip((theirs, ours), pair, strict=True):
                optimizer.zero_grad()
                sum((p.abs() ** 2).sum() for p in parameters_).backward()
                optimizer.step()
        assert session.lane == lane
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_another_worker_attaches_and_tensors_that_are_copied_are_written(
    where: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, other = torch.nn.Parameter(torch.ones(3, dtype=torch.cfloat)), torch.nn.Parameter(1j * torch.ones(3))
    with optd.torch.SGD([weight], lr=1.0, **where) as optimizer:
        weight.grad = torch.full((3,), 2 - 1j)
        optimizer.step()
        assert weight.tolist() == [-1 + 1j] * 3
        monkeypatch.setattr("optd.torch.tensors.shares_memory", lambda _: False)
        with optd.torch.SGD([other], lr=1.0, **{**where, "worker": "w1"}) as second:
            assert other.tolist() == [-1 + 1j] * 3
            with torch.no_grad():
                other.mul_(1j)
            second.push_weights()
            assert second.pull_rows("param0", [2]).tolist() == [-1 - 1j]
        optimizer.pull()
    assert weight.tolist() == [-1 - 1j] * 3


def test_clip_norm_is_that_of_torch(serve: Callable, server, job_names) -> None:
    theirs, ours, job_wide = (parameters(torch.complex64) for _ in range(3))
    with optd.connect(server.address, job=next(job_names), gradients=optd.Gradients(clip_norm=0.7)) as session:
        optimizers = (
            torch.optim.SGD(theirs, lr=0.1),
            serve(optd.torch.SGD, ours, lr=0.1, clip_norm=0.7),
            optd.torch.SGD(job_wide, lr=0.1, session=session),
        )
        for p, q, r in zip(theirs, ours, job_wide, strict=True):
            p.grad = torch.randn_like(p)
            q.grad, r.grad = p.grad.clone(), p.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 0.7)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(job_wide, theirs, rtol=1e-5, atol=1e-6)


def test_sparse_gradients_of_complex_parameters(serve: Callable) -> None:
    theirs, ours = (torch.nn.Parameter(torch.ones(4, 3, dtype=torch.cfloat)) for _ in range(2))
    optimizers = torch.optim.SGD([theirs], lr=0.5), serve(optd.torch.SGD, [ours], lr=0.5)
    for dims in (1, 2):
        gradient = torch.zeros(4, 3, dtype=torch.cfloat)
        gradient[2, 1], gradient[0, 0] = 1 - 2j, 1j
        theirs.grad, ours.grad = (gradient.to_sparse(dims) for _ in range(2))
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(ours, theirs)


# What is refused, before anything has changed


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_classes_that_take_no_complex_parameters(case: Case) -> None:
    """Torch's raise, some of them with the first step, and so do ours, with the constructor."""
    weight = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.cfloat))
    with pytest.raises((RuntimeError, ValueError)):
        weight.grad = torch.ones_like(weight)
        case.theirs([weight]).step()
    message = r"^parameter 'w': dtype complex64 is not supported; .* takes no complex parameters\)$|Complex params"
    with pytest.raises((errors.UnsupportedDtype, ValueError), match=message):
        case.ours([("w", weight)], server="nowhere")


def test_complex_numbers_of_16_bits() -> None:
    with pytest.raises(errors.UnsupportedDtype, match="'param0': dtype float16|dtype complex32"):
        optd.torch.SGD([torch.zeros(3, dtype=torch.complex32)], server="nowhere")


def test_what_has_no_meaning_for_complex_numbers(serve: Callable, server, job_names) -> None:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.cfloat))
    with pytest.raises(RuntimeError, match="not supported for complex"):
        weight.grad = torch.ones_like(weight)
        torch.nn.utils.clip_grad_value_([weight], 1.0)
    for given in ({"clip_value": 1.0}, {}):
        groups = [{"params": [weight], **({} if given else {"clip_value": 1.0})}]
        with pytest.raises(errors.InvalidOption, match="clip_value must be None, as parameter 'param0' is complex"):
            optd.torch.SGD(groups, server="nowhere", **given)
    optimizer = serve(optd.torch.SGD, [weight])
    optimizer.param_groups[0]["clip_value"] = 1.0
    with pytest.raises(errors.InvalidOption, match="clip_value must be None"):
        optimizer.step()
    assert optimizer.session.info().version.version == 0
    job = next(job_names)
    with optd.connect(server.address, job=job, gradients=optd.Gradients(clip_norm=1, clip_norm_type=1)) as session:
        with pytest.raises(errors.InvalidOption, match="clip_norm_type must be 2, as parameter 'param0' is complex"):
            optd.torch.SGD([weight], session=session)
        with pytest.raises(errors.UnknownJob):
            session.info()


def test_sparse_gradients_that_torch_squares_as_complex_numbers(serve: Callable) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.cfloat))
    optimizer = serve(optd.torch.Adagrad, [weight])
    weight.grad = torch.ones_like(weight).detach().to_sparse()
    for call in (optimizer.step, optimizer.push):
        with pytest.raises(errors.NotAnArray, match="complex parameter 'param0' must be dense for adagrad"):
            call()
    assert optimizer.session.info().version.version == 0
    assert torch.equal(weight, torch.ones(4, 3, dtype=torch.cfloat))
