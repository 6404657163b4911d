"""Groups of arrays with their own algorithms: signatures, state, other workers, refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import optd
from optd import errors
from optd.local import LocalServer

LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])
# As in tests/server/optim/test_torch.py: Muon's iteration is in bfloat16.
MUON, EXACT = 5e-4, 1e-12


def groups(**of_matrices: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"params": {"w": rng.standard_normal((4, 3))}, "algorithm": "muon", "lr": 0.02, **of_matrices},
        {"params": {"b": rng.standard_normal(3)}, "algorithm": "adamw", "lr": 3e-3},
    ]


@pytest.fixture
def make(server: LocalServer, name: str, request: pytest.FixtureRequest) -> Callable[..., optd.Optimizer]:
    def construct(*args: Any, kind: Any = optd.Optimizer, lane: str = "grpc", **options: Any) -> optd.Optimizer:
        how = {"job": name, "worker": "w0", **{key: options.pop(key) for key in ("job", "worker") if key in options}}
        session = optd.connect(server.address, lane=lane, gradients=options.pop("gradients", None), **how)
        request.addfinalizer(session.close)
        return kind(*args, session=session, **options)

    return construct


@LANES
@pytest.mark.parametrize("zero_copy", [False, True], ids=["copied", "zero_copy"])
def test_it_trains_as_two_optimizers_of_torch_do(make: Callable[..., Any], lane: str, zero_copy: bool) -> None:
    given = groups()
    beside = {name: torch.tensor(array.copy()) for group in given for name, array in group["params"].items()}
    optimizers = [torch.optim.Muon([beside["w"]], lr=0.02), torch.optim.AdamW([beside["b"]], lr=3e-3)]
    ours = make(given, lane=lane, zero_copy=zero_copy, gradients=optd.Gradients(clip_norm=1.0))
    rng = np.random.default_rng(1)
    for step in range(10):
        for name, tensor in beside.items():
            tensor.grad = torch.tensor(rng.standard_normal(tensor.shape))
            ours.gradients[name][...] = tensor.grad.numpy()
        torch.nn.utils.clip_grad_norm_(beside.values(), 1.0)
        ours.step()
        for optimizer in optimizers:
            optimizer.step()
        assert ours.version == step + 1
    np.testing.assert_allclose(ours.weights["w"], beside["w"].numpy(), rtol=0, atol=MUON)
    np.testing.assert_allclose(ours.weights["b"], beside["b"].numpy(), rtol=0, atol=EXACT)


SAME = {
    "all named": lambda make, **how: make(groups(), **how),
    "by keyword": lambda make, **how: make(params=groups(), **how),
    "a default by name": lambda make, **how: make("adamw", without(1), lr=3e-3, **how),
    "a default by keyword": lambda make, **how: make(algorithm="adamw", params=without(1), lr=3e-3, **how),
    "a class": lambda make, **how: make(without(1), kind=optd.AdamW, lr=3e-3, **how),
    "another class": lambda make, **how: make(without(0), kind=optd.Muon, lr=0.02, **how),
}


def without(index: int) -> list[dict[str, Any]]:
    """The groups, of which one names neither its algorithm nor a learning rate."""
    found = groups()
    found[index] = {"params": found[index]["params"]}
    return found


@pytest.mark.parametrize("construct", SAME.values(), ids=SAME)
def test_each_signature_makes_the_same_groups(make: Callable[..., Any], construct: Callable[..., Any]) -> None:
    optimizer = construct(make)
    matrices, rest = optimizer.param_groups
    assert (matrices["algorithm"], matrices["lr"], matrices["momentum"]) == ("muon", 0.02, 0.95)
    assert (rest["algorithm"], rest["lr"], rest["betas"]) == ("adamw", 3e-3, (0.9, 0.999))
    assert "betas" not in matrices
    assert "momentum" not in rest
    assert [group.options.algorithm for group in optimizer.session.groups()] == ["muon", "adamw"]


def test_groups_that_all_have_the_default_show_no_algorithm(make: Callable[..., Any]) -> None:
    assert "algorithm" not in make("adam", {"w": np.ones(2)}).param_groups[0]


def test_the_text_of_an_optimizer_has_the_algorithms(make: Callable[..., Any]) -> None:
    first, matrices, rest = repr(make(groups())).splitlines()
    assert first.startswith("<optd.Optimizer of job ")
    assert matrices.startswith("  group 'group0': muon, 1 parameter, 12 elements; ")
    assert rest.startswith("  group 'group1': adamw, 1 parameter, 3 elements; ")
    assert "algorithm" not in rest


def test_a_state_dict_goes_into_another_job(make: Callable[..., Any]) -> None:
    one = make(groups())
    gradients = {"w": np.ones((4, 3)), "b": np.ones(3)}
    for _ in range(3):
        one.step(gradients)
    saved = one.state_dict()
    assert [set(state) for state in saved["state"].values()] == [
        {"step", "momentum_buffer"},
        {"step", "exp_avg", "exp_avg_sq"},
    ]
    assert [group["algorithm"] for group in saved["param_groups"]] == ["muon", "adamw"]
    again = [{**group, "params": {name: one.weights[name].copy() for name in group["params"]}} for group in groups()]
    other = make(again, job=one.session.job + "-2")
    other.load_state_dict(saved)
    for optimizer in (one, other):
        optimizer.step(gradients)
    for name in ("w", "b"):
        np.testing.assert_array_equal(one.weights[name], other.weights[name])
    saved["param_groups"][1]["algorithm"] = "adam"
    with pytest.raises(errors.InvalidRequest, match="group 'group1' has the algorithm 'adamw'.* got 'adam'"):
        other.load_state_dict(saved)
    assert other.param_groups[1]["algorithm"] == "adamw"


def test_groups_are_added_with_and_without_an_algorithm(make: Callable[..., Any]) -> None:
    optimizer = make("sgd", {"w": np.ones((2, 2))}, lr=0.5, clip_norm=3.0)
    optimizer.add_param_group({"params": {"x": np.ones(2)}, "algorithm": "lion"})
    optimizer.add_param_group({"params": {"y": np.ones(2)}})
    assert [group["algorithm"] for group in optimizer.param_groups] == ["sgd", "lion", "sgd"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1e-4, 0.5]
    assert [group["clip_norm"] for group in optimizer.param_groups] == [3.0, 3.0, 3.0]
    optimizer.step({"w": np.ones((2, 2)), "x": np.ones(2), "y": np.ones(2)})
    np.testing.assert_allclose(optimizer.weights["x"], 1 - 1e-4)
    np.testing.assert_allclose(optimizer.weights["y"], 0.5)
    nameless = make(groups(), job=optimizer.session.job + "-2")
    with pytest.raises(errors.InvalidRequest, match="group 'group2' names no algorithm"):
        nameless.add_param_group({"params": {"z": np.ones(2)}})


def test_another_worker_attaches(make: Callable[..., Any]) -> None:
    one = make(groups())
    one.step({"w": np.ones((4, 3)), "b": np.ones(3)})
    other = make(groups(), worker="w1")
    np.testing.assert_array_equal(other.weights["w"], one.weights["w"])
    text = "in group 'group0' algorithm 'muon', this registration has 'sgd'"
    with pytest.raises(errors.JobMismatch, match="algorithm 'muon', this registration has 'sgd'"):
        make(groups(algorithm="sgd"), worker="w2")
    with pytest.raises(errors.JobMismatch, match=text):
        make("muon", groups(algorithm="sgd"), worker="w2")


def test_a_worker_is_told_of_options_that_its_group_would_have_had(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    make(without(1), kind=optd.AdamW, lr=3e-3)
    other = make(without(1), kind=optd.AdamW, lr=0.7, worker="w1")
    other.pull()
    assert "group group1 goes on with lr=0.003, not 0.7" in caplog.text
    assert "group0" not in caplog.text, "the constructor's lr is none of Muon's"


REFUSED: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "an option of another algorithm": (
        lambda make: make(groups(betas=(0.9, 0.99))),
        errors.UnknownOption,
        "muon: no option 'betas'",
    ),
    "a misspelt option": (
        lambda make: make(groups(momentun=0.9)),
        errors.UnknownOption,
        "muon: no option 'momentun'; did you mean 'momentum'",
    ),
    "an unknown algorithm": (
        lambda make: make(groups(algorithm="muom")),
        errors.UnknownAlgorithm,
        "no algorithm 'muom'; the nearest is 'muon'",
    ),
    "no name": (lambda make: make(groups(algorithm=3)), errors.InvalidRequest, "must be a name such as 'adamw', got 3"),
    "no algorithm": (lambda make: make(without(1)), errors.InvalidRequest, "group 'group1' names no algorithm, and"),
    "no algorithm at all": (lambda make: make({"w": np.ones(2)}), errors.InvalidRequest, "no default one"),
    "options of no algorithm": (
        lambda make: make(groups(), lr=0.1),
        errors.InvalidRequest,
        "no default algorithm that could have the option 'lr'",
    ),
    "the other order": (lambda make: make(groups(), "adamw"), TypeError, "the algorithm comes first and is a name"),
    "no params": (lambda make: make("adamw"), TypeError, "missing params"),
    "lbfgs beside others": (
        lambda make: make(groups(algorithm="lbfgs")),
        errors.UnservedGroups,
        "lbfgs takes one group",
    ),
    "the class of lbfgs with others": (
        lambda make: make(without(0), kind=optd.LBFGS),
        errors.UnservedGroups,
        "lbfgs takes one group",
    ),
    "a vector for muon": (
        lambda make: make([{"params": {"b": np.ones(3)}, "algorithm": "muon"}]),
        errors.UnservedShape,
        "muon: parameter 'b' must have 2 dimensions",
    ),
}


@pytest.mark.parametrize(("construct", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(make: Callable[..., Any], name: str, construct: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        construct(make)


def test_a_group_keeps_its_algorithm(make: Callable[..., Any]) -> None:
    optimizer = make(groups())
    optimizer.param_groups[0]["algorithm"] = "sgd"
    with pytest.raises(errors.InvalidRequest, match="a group keeps its algorithm; got 'sgd'"):
        optimizer.step({"w": np.ones((4, 3))})


def test_options_that_no_group_would_get_are_warned_of(make: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="lr=0.5 counts for groups of the algorithm 'sgd', and each group names"):
        make(groups(), kind=optd.SGD, lr=0.5)
