"""Tensors of every kind: where their memory lies, what torch knows of writes, gradients, and what is refused."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import optd.torch
from optd.errors import (
    DtypeMismatch,
    DuplicateParameter,
    NonfiniteGradient,
    NotAnArray,
    SessionClosed,
    ShapeMismatch,
    StructureMismatch,
    UnsupportedDtype,
)
from optd.torch import SGD


def of_every_layout() -> list[nn.Parameter]:
    """0-d, empty, contiguous, transposed, every other row of a larger one, channels last, offset, broadcast."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = [
        noise(),
        noise(0, 3),
        noise(4, 3),
        noise(3, 5).t(),
        noise(6, 4)[::2],
        noise(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        noise(10)[3:7],
        noise(1).squeeze(0),
    ]
    return [nn.Parameter(tensor) for tensor in tensors]


def loss_of(parameters: list[nn.Parameter], scale: float) -> torch.Tensor:
    return sum(((parameter * scale).sin().sum() for parameter in parameters), torch.zeros(()))


@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "copied, as between devices"])
def test_parameters_of_every_layout(shared: bool, serve: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shared:
        monkeypatch.setattr("optd.torch.tensors.shares_memory", lambda _: False)
        monkeypatch.setattr("optd.torch.state.shares_memory", lambda _: False)
    ours, theirs = of_every_layout(), of_every_layout()
    optimizer, reference = serve(optd.torch.Adam, ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    places = [(parameter.data_ptr(), parameter.stride()) for parameter in ours]
    for number in range(4):
        for parameters, each in ((ours, optimizer), (theirs, reference)):
            each.zero_grad()
            loss_of(parameters, 1 + number).backward()
            each.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert [(parameter.data_ptr(), parameter.stride()) for parameter in ours] == places, "written in place"
    states = zip(optimizer.state_dict()["state"].values(), reference.state_dict()["state"].values(), strict=True)
    for found, expected in states:
        check_stride = bool(expected["exp_avg"].numel())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, check_stride=check_stride)


def test_a_view_is_written_and_nothing_beside_it(serve: Callable) -> None:
    for view in (slice(2, 5), slice(1, None, 3)):
        base = torch.zeros(9)
        weight = nn.Parameter(base[view])
        optimizer = serve(SGD, [weight], lr=1.0)
        weight.grad = torch.ones(3)
        optimizer.step()
        expected = torch.zeros(9)
        expected[view] = -1
        assert base.tolist() == expected.tolist()


def test_a_backward_pass_through_the_old_weights_fails_as_after_a_step_of_torchs(serve: Callable) -> None:
    for make in (torch.optim.SGD, lambda *args, **kwargs: serve(SGD, *args, **kwargs)):
        for weight in (nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3, 2).t())):
            optimizer = make([weight], lr=0.1)
            loss = weight.square().sum()
            loss.backward(retain_graph=True)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def test_a_backward_pass_through_weights_that_the_job_was_created_with_goes_on(where: dict[str, str]) -> None:
    def train(worker: str) -> nn.Parameter:
        weight = nn.Parameter(torch.ones(2))
        loss = weight.square().sum()
        with SGD([weight], lr=0.5, **{**where, "worker": worker}) as optimizer:
            loss.backward()
            optimizer.step()
        return weight

    assert train("w0").tolist() == [0, 0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        train("w1")  # it attached: the weights are others now


def test_a_tensor_may_get_other_memory_between_steps(serve: Callable) -> None:
    model = nn.Linear(2, 2, bias=False)
    optimizer = serve(SGD, model.parameters(), lr=1.0)
    nn.utils.vector_to_parameters(model.weight.detach().flatten().clone(), model.parameters())
    before = model.weight.detach().clone()
    model.weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 1)
    model.to(memory_format=torch.contiguous_format)
    model.weight.data = model.weight.detach().t().contiguous().t()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 2)


def test_a_tensor_may_not_become_another_one(serve: Callable) -> None:
    model = nn.Linear(2, 3, bias=False)
    optimizer = serve(SGD, model.named_parameters())
    model.double()
    for call in (optimizer.step, optimizer.pull, optimizer.push_weights):
        with pytest.raises(DtypeMismatch, match="tensor of parameter 'weight' must have dtype float32, got float64"):
            call()
    model.weight.data = torch.zeros(2, 3)
    with pytest.raises(ShapeMismatch, match=r"tensor of parameter 'weight' must have shape \(3, 2\), got \(2, 3\)"):
        optimizer.step()
    model.weight.data = torch.zeros(3, 2)
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(1)))
    with pytest.raises(
        StructureMismatch, match=r"\['params'\] \(group 'group0'\) must have the 1 parameters .*, got 2"
    ):
        optimizer.step()
    optimizer.param_groups[0]["params"].pop()
    optimizer.step()


# Changes that are made here


def test_weights_that_are_changed_here_are_replaced_with_a_warning_where_that_is_wanted(serve: Callable) -> None:
    """What is done with them otherwise is in test_whose_weights and test_local_changes."""
    model = nn.Linear(2, 2)
    optimizer = serve(SGD, model.named_parameters(), lr=1.0, local_changes="warn")
    held = model.weight.detach().clone()
    for change in (lambda: nn.init.zeros_(model.weight), model.weight.data.zero_):
        change()
        with pytest.warns(UserWarning, match=r"'weight' has been changed here; .* Call push_weights\(\)") as caught:
            optimizer.step()
        assert [warning.filename for warning in caught] == [__file__], "the warning points to the caller"
        assert torch.equal(model.weight, held)
    nn.init.ones_(model.weight)
    optimizer.push_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        assert model.weight.tolist() == [[1, 1], [1, 1]]
        nn.init.zeros_(model.weight)
        optimizer.pull()
        optimizer.step()
        assert model.weight.tolist() == [[1, 1], [1, 1]]


def test_ordinary_training_gives_no_warning(serve: Callable) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    optimizer = serve(optd.torch.AdamW, model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 3)).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.eval()
            with torch.inference_mode():
                model(torch.randn(5, 3))
            model.train()


# Gradients


def test_gradients_stay_as_they_are(serve: Callable) -> None:
    parameters = [nn.Parameter(torch.ones(3, 2)) for _ in range(4)]
    optimizer = serve(SGD, parameters, lr=1.0, maximize=True, weight_decay=0.5)
    gradients = [torch.randn(3, 2), torch.randn(2, 3).t(), torch.ones(()).expand(3, 2), None]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    copies = [None if gradient is None else gradient.clone() for gradient in gradients]
    versions = [None if gradient is None else gradient._version for gradient in gradients]
    optimizer.step()
    for parameter, gradient, copied, version in zip(parameters, gradients, copies, versions, strict=True):
        assert parameter.grad is gradient
        if gradient is not None:
            assert torch.equal(gradient, copied)
            assert gradient._version == version
            torch.testing.assert_close(parameter.detach(), 0.5 + copied)
    assert parameters[-1].tolist() == torch.ones(3, 2).tolist()


def test_a_graph_of_gradients_is_no_matter(serve: Callable) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = serve(SGD, [weight], lr=0.5)
    weight.grad = torch.autograd.grad(weight.square().sum(), weight, create_graph=True)[0]
    assert weight.grad.requires_grad
    optimizer.step()
    assert weight.tolist() == [0, 0]


def test_gradients_that_are_not_finite_change_nothing(serve: Callable) -> None:
    model = nn.Linear(2, 2)
    optimizer = serve(SGD, model.named_parameters())
    before = [parameter.tolist() for parameter in model.parameters()]
    model.weight.grad, model.bias.grad = torch.ones(2, 2), torch.tensor([0.0, float("nan")])
    with pytest.raises(NonfiniteGradient, match="gradient of parameter 'bias' has nan at flat index 1"):
        optimizer.step()
    assert [parameter.tolist() for parameter in model.parameters()] == before
    assert optimizer.version == 0


def test_a_step_that_fails_leaves_the_weights(serve: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = of_every_layout()
    optimizer = serve(SGD, parameters)
    monkeypatch.setattr("optd.torch.tensors.shares_memory", lambda _: False)
    before = [parameter.tolist() for parameter in parameters]
    optimizer.session.close()
    for call in (optimizer.step, optimizer.pull):
        with pytest.raises(SessionClosed):
            call()
    assert [parameter.tolist() for parameter in parameters] == before


# What is refused


def test_a_tensor_that_is_in_a_group_twice_is_refused() -> None:
    weight = nn.Parameter(torch.ones(1))
    with (
        pytest.warns(UserWarning, match="duplicate parameters"),
        pytest.raises(DuplicateParameter, match="group 'group0' has one array twice, as 'param0' and as 'param2'"),
    ):
        SGD([weight, nn.Parameter(torch.ones(1)), weight], server="nowhere")


@pytest.mark.parametrize("dtype", ["float8_e5m2", "int32"])
def test_dtypes_that_the_service_does_not_have_are_refused(dtype: str) -> None:
    weight = nn.Parameter(torch.ones(2).to(getattr(torch, dtype)), requires_grad=False)
    message = f"parameter 'w': dtype {dtype} is not supported; supported are float32, float64, float16, bfloat16"
    with pytest.raises(UnsupportedDtype, match=message):
        SGD([("w", weight)], server="nowhere")


def test_tensors_without_numbers_are_refused() -> None:
    with pytest.raises(NotAnArray, match="'param0' must be a tensor that holds numbers, got one on the device meta"):
        SGD(nn.Linear(2, 2, device="meta").parameters(), server="nowhere")
    sparse = nn.Parameter(torch.eye(2).to_sparse())
    with pytest.raises(NotAnArray, match=r"'param0' must be a dense tensor, got one of layout torch.sparse_coo"):
        SGD([sparse], server="nowhere")
