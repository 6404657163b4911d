"""Values that options come in: tensors that are computed with as they are, any sequences, scalars of numpy."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.classes import CASES, NOT_IN_TORCH, Case, assert_same_weights, flat

import optd
import optd.torch
from optd import errors
from optd_wire.values import Single

EACH = pytest.mark.parametrize("case", CASES, ids=str)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


class ListConfig(Sequence):
    """A sequence that is neither list nor tuple, as that of omegaconf."""

    def __init__(self, *entries: Any) -> None:
        self._entries = entries

    def __getitem__(self, place: Any) -> Any:
        return self._entries[place]

    def __len__(self) -> int:
        return len(self._entries)


def takes(case: Case, option: str) -> bool:
    return option in inspect.signature(case.theirs).parameters


@pytest.mark.slow
@pytest.mark.parametrize("decay", [False, True], ids=["no decay", "decay"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@EACH
def test_a_learning_rate_that_is_a_tensor_is_computed_with_in_its_dtype(case, dtype, decay, serve) -> None:
    """In the constructor, in a group, and assigned; of parameters of the other dtype, too."""
    case = Case(case.name, case.defaults, case.shapes, sparse=case.sparse, needs_closure=case.needs_closure)
    options = {"weight_decay": 0.1} if decay and takes(case, "weight_decay") else {}
    for lr_dtype in (torch.float32, torch.float64):
        for shape in ((),) if case.name in NOT_IN_TORCH else ((), (1,)):  # our references take no others
            pair = []
            for make in (case.theirs, lambda *a, **k: serve(case.ours, *a, **k)):
                groups = [{"params": [p.detach().to(dtype).requires_grad_() for p in ps]} for ps in case.parameters()]
                if len(groups) > 1:
                    groups[1]["lr"] = torch.full(shape, 0.07, dtype=lr_dtype)
                pair.append(make(groups, lr=torch.full(shape, 0.03, dtype=lr_dtype), **options))
            for number in range(6):
                if number == 2:
                    for optimizer in pair:
                        optimizer.param_groups[0]["lr"] = torch.full(shape, 0.05, dtype=lr_dtype)
                # As schedulers do. Torch's LBFGS keeps the tensor as the length of its last step, which changes then.
                if number == 4 and case.name != "LBFGS":
                    for optimizer in pair:
                        optimizer.param_groups[0]["lr"].fill_(0.011)
                case.step(*pair)
            largest = max(p.abs().max().item() for p in flat(pair[0]))
            tolerance = 1e-6 if case.name in ("ASGD", "NAdam") else TOLERANCE[dtype]  # float32 numbers of their own
            torch.testing.assert_close(flat(pair[1]), flat(pair[0]), rtol=tolerance, atol=tolerance * largest)
            for there, here in zip(pair[0].param_groups, pair[1].param_groups, strict=True):
                assert isinstance(here["lr"], torch.Tensor)
                assert torch.equal(here["lr"], there["lr"])
            pair[1].close()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_schedulers_of_torch_fill_the_tensor(dtype, serve: Callable) -> None:
    pair, schedulers = [], []
    for make in (torch.optim.AdamW, lambda *a, **k: serve(optd.torch.AdamW, *a, **k)):
        torch.manual_seed(1)
        pair.append(
            make([torch.randn(3, 2, dtype=torch.float64, requires_grad=True)], lr=torch.tensor(0.1, dtype=dtype))
        )
        schedulers.append(torch.optim.lr_scheduler.ExponentialLR(pair[-1], 0.7))
    held = pair[1].param_groups[0]["lr"]
    for _ in range(6):
        gradient = torch.randn(3, 2, dtype=torch.float64)
        for optimizer, scheduler in zip(pair, schedulers, strict=True):
            flat(optimizer)[0].grad = gradient
            optimizer.step()
            scheduler.step()
    assert_same_weights(pair[1], pair[0])
    assert pair[1].param_groups[0]["lr"] is held
    assert torch.equal(held, pair[0].param_groups[0]["lr"])


def test_other_workers_and_state_dicts_keep_the_dtype(where: dict[str, str], serve: Callable) -> None:
    """Equal numbers of different dtypes are different options: what follows from them is rounded differently."""
    first = optd.torch.AdamW([torch.ones(2, dtype=torch.float64)], lr=torch.tensor(0.5), **where)
    second = optd.torch.AdamW([torch.ones(2, dtype=torch.float64)], **{**where, "worker": "w1"})
    found = second.param_groups[0]["lr"]
    assert isinstance(found, torch.Tensor)
    assert (found.dtype, found.item()) == (torch.float32, 0.5)
    assert type(second.session.groups()[0].options.options["lr"]) is Single
    loaded = serve(optd.torch.AdamW, [torch.ones(2, dtype=torch.float64)])
    loaded.load_state_dict(first.state_dict())
    assert type(loaded.session.groups()[0].options.options["lr"]) is Single
    first.param_groups[0]["lr"] = 0.5
    first.step()
    assert type(second.session.groups()[0].options.options["lr"]) is float
    second.step()
    assert type(second.param_groups[0]["lr"]) is float
    for optimizer in (first, second):
        optimizer.close()


def test_groups_whose_numbers_are_equal_may_differ_in_their_dtype(serve: Callable) -> None:
    pair = []
    for make in (torch.optim.AdamW, lambda *a, **k: serve(optd.torch.AdamW, *a, **k)):
        torch.manual_seed(1)
        groups = [
            {"params": [torch.randn(3, dtype=torch.float64, requires_grad=True)], "lr": lr}
            for lr in (0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64))
        ]
        pair.append(make(groups, weight_decay=0.1))
    for _ in range(3):
        gradient = torch.randn(3, dtype=torch.float64)
        for optimizer in pair:
            for parameter in flat(optimizer):
                parameter.grad = gradient
            optimizer.step()
    assert_same_weights(pair[1], pair[0])


TUPLES = [
    ("Adam", "betas", (0.8, 0.95)),
    ("AdamW", "betas", (0.8, 0.95)),
    ("NAdam", "betas", (0.8, 0.95)),
    ("RAdam", "betas", (0.8, 0.95)),
    ("Adamax", "betas", (0.8, 0.95)),
    ("SparseAdam", "betas", (0.8, 0.95)),
    ("Lion", "betas", (0.8, 0.95)),
    ("Rprop", "etas", (0.4, 1.3)),
    ("Rprop", "step_sizes", (1e-5, 10.0)),
    ("Adafactor", "eps", (1e-5, 1e-2)),
    ("Adafactor", "eps", (None, 1e-2)),
    ("Muon", "ns_coefficients", (3.4, -4.7, 2.0)),
]
KINDS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "list": list,
    "another sequence": lambda value: ListConfig(*value),
    "array": lambda value: np.array(value, np.float64),
    "scalars of numpy": lambda value: tuple(map(np.float64, value)),
}


EACH_KIND = [
    pytest.param(
        *row,
        make,
        id=f"{kind}-{row[0]}-{row[1]}-{row[2]}",
        marks=() if kind == "another sequence" else pytest.mark.slow,
    )
    for kind, make in KINDS.items()
    for row in TUPLES
    if None not in row[2] or kind in ("list", "another sequence")  # an array has no None
]


@pytest.mark.parametrize(("name", "option", "value", "kind"), EACH_KIND)
def test_tuples_may_be_any_sequences(name, option, value, kind, serve: Callable) -> None:
    case = next(each for each in CASES if each.name == name)
    for where in ("constructor", "group", "assigned"):
        pair = []
        for make in (case.theirs, lambda *a, **k: serve(case.ours, *a, **k)):
            groups = case.groups()
            if where == "group":
                groups[0][option] = kind(value)
            pair.append(make(groups, **case.defaults, **({option: kind(value)} if where == "constructor" else {})))
            if where == "assigned":
                pair[-1].param_groups[0][option] = kind(value)
        for _ in range(3):
            case.step(*pair)
        assert_same_weights(pair[1], pair[0])
        held = pair[1].session.groups()[0].options.options
        assert held[option] == value
        pair[1].close()


def test_betas_that_are_tensors(serve: Callable) -> None:
    """Torch takes powers of them in float32, of which the last bit is another here."""
    pair = []
    for make in (torch.optim.Adam, lambda *a, **k: serve(optd.torch.Adam, *a, **k)):
        torch.manual_seed(1)
        weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
        pair.append(make([weight], lr=torch.tensor(0.1), betas=(torch.tensor(0.8), torch.tensor(0.95)), foreach=False))
    for _ in range(5):
        gradient = torch.randn(3, dtype=torch.float64)
        for optimizer in pair:
            flat(optimizer)[0].grad = gradient
            optimizer.step()
    torch.testing.assert_close(flat(pair[1]), flat(pair[0]), rtol=1e-6, atol=1e-6)
    assert pair[1].session.groups()[0].options.options["betas"] == (np.float32(0.8), np.float32(0.95))


@pytest.mark.parametrize("make", [np.float32, np.float64, np.array, lambda x: np.array([x])])
def test_scalars_of_numpy(make: Callable, serve: Callable) -> None:
    ours, theirs = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizers = (
        torch.optim.SGD([theirs], lr=make(0.1), momentum=float(make(0.9).item()), weight_decay=float(make(0.1).item())),
        serve(
            optd.torch.SGD, [ours], lr=make(0.1), momentum=make(0.9), weight_decay=make(0.1), nesterov=np.bool_(True)
        ),
    )
    optimizers[0].param_groups[0]["nesterov"] = True
    for _ in range(3):
        ours.grad, theirs.grad = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        optimizers[1].step()
        optimizers[0].param_groups[0]["lr"] = float(make(0.1).item())
        optimizers[0].step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_numpys_face_takes_them_too(server, job_names) -> None:
    for betas in ([0.8, 0.95], ListConfig(0.8, 0.95), np.array([0.8, 0.95]), (np.float64(0.8), np.array(0.95))):
        weights = np.ones(3)
        with optd.connect(server.address, job=next(job_names)) as session:
            optimizer = optd.AdamW([{"params": {"w": weights}, "betas": betas}], lr=np.float32(0.1), session=session)
            held = optimizer.session.groups()[0].options.options
            assert held["betas"] == (0.8, 0.95)
            assert type(held["lr"]) is Single
            optimizer.param_groups[0]["betas"] = ListConfig(0.7, 0.95)
            optimizer.step({"w": np.ones(3)})
            assert optimizer.session.groups()[0].options.options["betas"] == (0.7, 0.95)
            theirs = torch.ones(3, dtype=torch.float64, requires_grad=True)
            theirs.grad = torch.ones(3, dtype=torch.float64)
            torch.optim.AdamW([theirs], lr=torch.tensor(0.1), betas=(0.7, 0.95)).step()
            np.testing.assert_allclose(weights, theirs.detach().numpy(), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_options_of_16_bits_are_refused(dtype: str, where: dict[str, str]) -> None:
    """Torch computes with them in 16 bits."""
    with pytest.raises(errors.InvalidOption, match=f"sgd: lr must be a number, got 'tensor.*{dtype}"):
        optd.torch.SGD([torch.ones(2)], lr=torch.tensor(0.1, dtype=getattr(torch, dtype)), **where)
    with optd.connect(where["server"], job=where["job"]) as session, pytest.raises(errors.UnknownJob):
        session.info()
