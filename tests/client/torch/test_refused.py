"""What a server cannot hold, or new weights could not be written to: refused before anything has changed, by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import optd
import optd.torch
from optd import errors
from optd.torch import SGD


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))


def inference() -> nn.Parameter:
    with torch.inference_mode():
        return nn.Parameter(torch.ones(3))


def freed() -> nn.Parameter:
    weight = nn.Parameter(torch.ones(3))
    weight.untyped_storage().resize_(0)
    return weight


def consumed() -> Any:
    parameters = nn.Linear(2, 2).parameters()
    list(parameters)
    return parameters


OWN_MEMORY = r"parameter 'w' must be a tensor whose elements do not share memory, got one of strides \({}\)"
NEVER: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "lazy module": (
        lambda: lazy().named_parameters(),
        errors.NotAnArray,
        "parameter '1.weight' must be initialized, got the uninitialized one of a lazy module: run a forward pass",
    ),
    "lazy, without names": (lambda: lazy().parameters(), errors.NotAnArray, "parameter 'param2' must be initialized"),
    "expanded": (
        lambda: [("w", nn.Parameter(torch.zeros(1).expand(3)))],
        errors.NotAnArray,
        OWN_MEMORY.format("0,") + r", such as expand\(\) makes: register a clone\(\)",
    ),
    "expanded in part": (
        lambda: [("w", nn.Parameter(torch.zeros(2, 1).expand(2, 4)))],
        errors.NotAnArray,
        OWN_MEMORY.format("1, 0"),
    ),
    "sliding windows": (
        lambda: [("w", nn.Parameter(torch.zeros(6).unfold(0, 3, 1)))],
        errors.NotAnArray,
        OWN_MEMORY.format("1, 1"),
    ),
    "windows that overlap at their ends": (
        lambda: [("w", nn.Parameter(torch.zeros(9).as_strided((3, 2, 2), (2, 3, 1))))],
        errors.NotAnArray,
        OWN_MEMORY.format("2, 3, 1"),
    ),
    "inference mode": (
        lambda: [("w", inference())],
        errors.NotAnArray,
        "parameter 'w' must be a tensor that can be written to, got one that was made in inference mode",
    ),
    "meta": (
        lambda: nn.Linear(2, 2, device="meta").named_parameters(),
        errors.NotAnArray,
        "parameter 'weight' must be a tensor that holds numbers, got one on the device meta",
    ),
    "freed": (
        lambda: [("w", freed())],
        errors.NotAnArray,
        "parameter 'w' must be .*, got one whose memory has been freed",
    ),
    "sparse": (
        lambda: [("w", nn.Parameter(torch.eye(2).to_sparse()))],
        errors.NotAnArray,
        "parameter 'w' must be a dense tensor",
    ),
    # These are torch's own.
    "a generator that has been used": (consumed, ValueError, "empty parameter list"),
    "a model without parameters": (lambda: nn.ReLU().parameters(), ValueError, "empty parameter list"),
    "a text": (lambda: "weight", TypeError, "one of the params is str"),
    "a model": (lambda: nn.Linear(2, 2), TypeError, "not iterable"),
    # Of these torch takes the first and the last one, in whatever order they happen to have.
    "a set": (lambda: {nn.Parameter(torch.ones(2))}, TypeError, "ordered collections"),
    "a set in a group": (lambda: [{"params": {nn.Parameter(torch.ones(2))}}], TypeError, "ordered collections"),
    "a frozen set": (lambda: frozenset([nn.Parameter(torch.ones(2))]), TypeError, "ordered collections"),
    "and in a group": (
        lambda: [{"params": frozenset([nn.Parameter(torch.ones(2))])}],
        TypeError,
        "ordered collections",
    ),
    "a result": (lambda: [nn.Parameter(torch.ones(2)) * 2], ValueError, "can't optimize a non-leaf Tensor"),
}


@pytest.mark.parametrize(("make", "error", "says"), NEVER.values(), ids=NEVER)
def test_what_a_server_cannot_hold_makes_no_job(make: Any, error: Any, says: str, where: dict[str, str]) -> None:
    with pytest.raises(error, match=says):
        SGD(make(), **where)
    with optd.connect(where["server"], job=where["job"]) as session, pytest.raises(errors.UnknownJob):
        session.info()


@pytest.mark.parametrize(("make", "error", "says"), NEVER.values(), ids=NEVER)
def test_and_no_group(make: Any, error: Any, says: str, serve: Callable[..., Any]) -> None:
    given = make()
    optimizer = serve(SGD, [("first", nn.Parameter(torch.ones(2)))])
    with pytest.raises((error, ValueError, TypeError)):  # torch may find fault with their names or kinds before
        optimizer.add_param_group({"params": given})
    assert len(optimizer.param_groups) == len(optimizer.session.groups()) == 1
    optimizer.step()


def test_tensors_that_only_look_as_if_they_overlapped(serve: Callable[..., Any]) -> None:
    made = [
        torch.zeros(1).expand(1),
        torch.zeros(0, 1).expand(0, 5),
        torch.zeros(12).as_strided((2, 3), (1, 4)),
        torch.zeros(4, 3).t(),
        torch.zeros(20).as_strided((3, 2), (3, 2)),  # its strides alone do not tell
        torch.zeros(2, 3, 4).permute(2, 0, 1)[::2],
    ]
    parameters = [nn.Parameter(each) for each in made]
    optimizer = serve(SGD, parameters, lr=1.0)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for parameter in parameters:
        assert torch.equal(parameter.detach(), -parameter.grad)


# Tensors and gradients that change between steps


def spoiled_storage(tensor: torch.Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def assign(make: Callable[[], torch.Tensor]) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model.weight, "data", make())


def free(model: nn.Module) -> None:
    model.weight.data = torch.ones(2, 3)
    spoiled_storage(model.weight)


def half(model: nn.Module) -> None:
    model.half()


def replace(model: nn.Module, optimizer: Any) -> None:
    model.weight = nn.Parameter(torch.ones(2, 3))
    optimizer.param_groups[0]["params"][0] = model.weight


def spoil_gradient(model: nn.Module) -> None:
    model.weight.grad = torch.ones(2, 3)
    spoiled_storage(model.weight.grad)


def gradient_of_another_dtype(model: nn.Module) -> None:
    model.weight.grad_dtype = None
    model.weight.grad = torch.ones(2, 3, dtype=torch.float64)


CHANGES: dict[str, tuple[Callable[..., None], type[Exception], str]] = {
    "another shape": (
        assign(lambda: torch.ones(3, 2)),
        errors.ShapeMismatch,
        r"tensor of parameter 'weight' must have shape \(2, 3\), got \(3, 2\): a parameter keeps its shape",
    ),
    "another size": (assign(lambda: torch.ones(4, 3)), errors.ShapeMismatch, r"parameter 'weight' .*, got \(4, 3\)"),
    "half": (
        half,
        errors.DtypeMismatch,
        "tensor of parameter 'weight' must have dtype float32, got float16: convert the model before its optimizer",
    ),
    "expanded": (
        assign(lambda: torch.zeros(1).expand(2, 3)),
        errors.NotAnArray,
        r"parameter 'weight' must be a tensor whose elements do not share memory, got one of strides \(0, 0\)",
    ),
    "freed": (
        free,
        errors.NotAnArray,
        "parameter 'weight' must be a tensor that holds numbers, got one whose memory has been freed",
    ),
    "freed gradient": (
        spoil_gradient,
        errors.NotAnArray,
        "gradient of parameter 'weight' must be a tensor that holds numbers, got one whose memory has been freed",
    ),
    "gradient of another dtype": (
        gradient_of_another_dtype,
        errors.DtypeMismatch,
        "gradient of parameter 'weight' must have dtype float32, got float64",
    ),
}


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize(("change", "error", "says"), CHANGES.values(), ids=CHANGES)
def test_what_changes_between_steps_changes_nothing_on_the_server(change, error, says, zero_copy, serve) -> None:
    model = nn.Linear(3, 2)
    optimizer = serve(SGD, model.named_parameters(), lr=0.5, zero_copy=zero_copy)
    model.weight.grad, model.bias.grad = torch.ones(2, 3), torch.ones(2)
    optimizer.step()
    bias = model.bias.detach().clone()
    before = optimizer.session.pull()
    change(model)
    for call in (optimizer.step, optimizer.push):
        with pytest.raises(error, match=says):
            call()
    assert optimizer.session.info().version.version == 1
    after = optimizer.session.pull()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    assert torch.equal(model.bias.detach().float(), bias) or error is errors.DtypeMismatch
    # Put right, it goes on.
    model.float()
    model.weight.grad = None
    model.weight.data = torch.from_numpy(before["weight"].copy())
    model.bias.data = torch.from_numpy(before["bias"].copy())
    model.weight.grad, model.bias.grad = torch.ones(2, 3), torch.ones(2)
    optimizer.step()
    np.testing.assert_array_equal(model.weight.detach().numpy(), before["weight"] - 0.5)


def test_another_parameter_in_its_place_is_named(serve: Callable[..., Any]) -> None:
    model = nn.Linear(3, 2)
    optimizer = serve(SGD, [{"params": model.named_parameters(), "name": "all"}], lr=0.5)
    before = optimizer.session.pull()
    model.weight.grad = torch.ones(2, 3)
    old = optimizer.param_groups[0]["params"][0]
    replace(model, optimizer)
    says = (
        r"param_groups\[0\]\['params'\] \(group 'all'\) must have at place 0 the tensor that was registered as "
        "parameter 'weight', got another one: copy its values into that tensor, or construct another optimizer"
    )
    for call in (optimizer.step, optimizer.push, optimizer.pull, optimizer.push_weights):
        with pytest.raises(errors.StructureMismatch, match=says):
            call()
    assert optimizer.session.info().version.version == 0
    for name, array in optimizer.session.pull().items():
        np.testing.assert_array_equal(array, before[name])
    optimizer.param_groups[0]["params"][0] = old
    optimizer.step()
    assert optimizer.version == 1


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_step_in_inference_mode_is_one(contiguous: bool, serve: Callable[..., Any]) -> None:
    ours, theirs = (nn.Parameter(torch.ones(2, 3) if contiguous else torch.ones(3, 2).t()) for _ in range(2))
    optimizers = serve(SGD, [ours], lr=0.5), torch.optim.SGD([theirs], lr=0.5)
    ours.grad, theirs.grad = torch.ones(2, 3), torch.ones(2, 3)
    with torch.inference_mode():
        for optimizer in optimizers:
            optimizer.step()
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(ours, theirs)


def test_gradients_of_every_kind_that_torch_takes(serve: Callable[..., Any]) -> None:
    """Expanded, made in inference mode, with a graph, of other strides, views."""
    made: list[Callable[[], torch.Tensor]] = [
        lambda: torch.ones(()).expand(2, 3),
        lambda: torch.ones(2, 3, requires_grad=True) * 2,
        lambda: torch.ones(3, 2).t(),
        lambda: torch.ones(4, 3)[::2],
        lambda: torch.complex(torch.ones(2, 3), torch.ones(2, 3)).conj().imag,
    ]
    with torch.inference_mode():
        frozen = torch.ones(2, 3)
    for make in [*made, lambda: frozen]:
        ours, theirs = (nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
        optimizers = serve(SGD, [ours], lr=0.5), torch.optim.SGD([theirs], lr=0.5)
        ours.grad, theirs.grad = make(), make()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(ours, theirs)


def test_a_parameter_that_is_read_through_a_negation_is_written(serve: Callable[..., Any]) -> None:
    """The imaginary part of a conjugated tensor: its memory holds the negated numbers."""
    ours, theirs = (
        torch.complex(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])).conj().imag.detach().requires_grad_()
        for _ in range(2)
    )
    assert ours.is_neg()
    optimizers = serve(SGD, [ours], lr=0.5), torch.optim.SGD([theirs], lr=0.5)
    for _ in range(2):
        ours.grad, theirs.grad = torch.ones(3), torch.ones(3)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs)
