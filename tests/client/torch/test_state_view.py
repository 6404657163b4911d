"""`optimizer.state` beside that of torch's own optimizer: what it shows, what assigning does, what is read and sent."""

import copy
import io
import pickle
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning_fabric.utilities.optimizer import _optimizers_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from tests.client.torch.classes import (
    EACH,
    Case,
    assert_same_state,
    assert_same_value,
    assert_same_weights,
    flat,
)
from torch.utils import _pytree as pytree

import optd
import optd.torch
from optd.errors import InvalidRequest, SessionClosed, ShapeMismatch, UnknownParameter
from optd.local import LocalServer

LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])


def assert_views_as_torch(ours: Any, theirs: Any) -> None:
    """That `state` says what torch's says, whichever way it is asked."""
    assert len(ours.state) == len(theirs.state)
    places = {id(tensor): place for place, tensor in enumerate(flat(theirs))}
    assert [place for place, tensor in enumerate(flat(ours)) if tensor in ours.state] == sorted(
        places[id(tensor)] for tensor in theirs.state
    )
    for mine, its in zip(flat(ours), flat(theirs), strict=True):
        expected = theirs.state.get(its, {})
        found = ours.state[mine]
        assert sorted(found) == sorted(expected)
        assert len(found) == len(expected)
        assert bool(found) == bool(expected)
        assert found.get("no such entry", 7) == 7
        with pytest.raises(KeyError):
            found["no such entry"]
        for name in expected:
            assert name in found
            assert found[name] is found[name]
            assert_same_value(found[name], expected[name], 1e-6)


def moved(ours: Any) -> tuple[int, int]:
    """Version and revision of an optimizer's job."""
    version = ours.session.info().version
    return version.version, version.revision


@EACH
def test_it_shows_what_torchs_has(serve: Callable, case: Case) -> None:
    theirs, ours = case.pair(serve)
    assert_views_as_torch(ours, theirs)
    for _ in range(2):
        case.step(theirs, ours)
        assert_views_as_torch(ours, theirs)
    assert isinstance(ours.state, defaultdict)
    before = moved(ours)
    everything = {"state": ours.state.copy(), "param_groups": []}
    expected = {
        "state": {o: theirs.state[t] for o, t in zip(flat(ours), flat(theirs), strict=True) if t in theirs.state}
    }
    assert_same_state(everything, {**expected, "param_groups": []})
    assert moved(ours) == before


SPECIAL = {
    "amsgrad": ("Adam", {"amsgrad": True}),
    "no momentum": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "centered": ("RMSprop", {"centered": True, "momentum": 0.5}),
    "lookahead": ("SGD", {"lr": 0.1, "lookahead_steps": 5}),
}


@pytest.mark.parametrize(("name", "options"), SPECIAL.values(), ids=SPECIAL)
def test_it_shows_what_options_bring(serve: Callable, name: str, options: dict[str, Any]) -> None:
    case = Case(name)
    common = {key: value for key, value in options.items() if not key.startswith("lookahead")}
    theirs, ours = case.theirs(case.groups(), **common), serve(case.ours, case.groups(), **options)
    case.step(theirs, ours)
    if common == options:
        assert_views_as_torch(ours, theirs)
    else:
        assert all(list(state) == ["step", "slow_weights"] for state in ours.state.values())
    # Without momentum there are step counts, and no state: true, and empty.
    assert bool(ours.state)


def test_it_is_false_until_there_is_a_state(serve: Callable) -> None:
    case = Case("Adam")
    ours = serve(case.ours, case.groups())
    assert not ours.state
    assert ours.state[flat(ours)[0]] == {}
    assert list(ours.state.items()) == []
    case.step(ours)
    assert ours.state


@LANES
def test_it_is_live(server: LocalServer, name: str, lane: Any) -> None:
    case = Case("Adam")
    with optd.connect(server.address, job=name, worker="w0", lane=lane) as session:
        ours, theirs = case.ours(case.groups(), session=session), case.theirs(case.groups())
        assert session.lane == lane
        first, view = flat(ours)[0], ours.state
        for steps in (1, 2):
            case.step(ours, theirs)
            assert view[first]["step"] == steps
            torch.testing.assert_close(view[first]["exp_avg"], theirs.state[flat(theirs)[0]]["exp_avg"])
        case.gradients(ours, theirs)
        ours.push()
        theirs.step()
        assert view[first]["step"] == 3
        ours.load_state_dict({"state": {}, "param_groups": ours.state_dict()["param_groups"]})
        assert not view
        assert ours.state is view


def test_steps_of_others_show_with_the_next_pull(server: LocalServer, name: str) -> None:
    case = Case("Adam")
    with (
        optd.connect(server.address, job=name, worker="w0") as one,
        optd.connect(server.address, job=name, worker="w1") as two,
    ):
        ours, other = (case.ours(case.groups(), session=session) for session in (one, two))
        case.step(ours)
        first = flat(ours)[0]
        assert ours.state[first]["step"] == 1
        case.step(other)
        # What is read now is of the newer version, and so is all the rest then.
        assert_same_value(ours.state[first]["exp_avg"], other.state[flat(other)[0]]["exp_avg"], 0)
        assert ours.state[first]["step"] == 2
        case.step(other)
        ours.pull()
        assert ours.state[first]["step"] == 3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What states are read: fields, group and parameter of each call."""
    calls: list[Any] = []
    read = optd.session.session.Session.read_state

    def noting(self: Any, fields: Any = (), group: str = "", parameter: str = "", *, into: Any) -> Any:
        calls.append((tuple(fields), group, parameter))
        return read(self, fields, group, parameter, into=into)

    monkeypatch.setattr(optd.session.session.Session, "read_state", noting)
    return calls


def test_only_what_is_asked_for_is_read(serve: Callable, asked: list[Any]) -> None:
    case = Case("Adam")
    ours = serve(case.ours, case.groups())
    case.step(ours)
    second = flat(ours)[1]
    assert ours.state
    assert len(ours.state) == 4
    assert second in ours.state
    assert ours.state[second]["step"] == 1
    assert asked == [(("step",), "", "")]
    _ = ours.state[second]["exp_avg"], ours.state[second]["exp_avg"]
    assert asked[1:] == [(("exp_avg",), "group0", "param1")]
    _ = list(ours.state[second].items())
    assert asked[2:] == [(("exp_avg_sq",), "group0", "param1")]
    assert all(len(list(state.values())) == 3 for _, state in list(ours.state.items()))
    assert asked[3:] == [((), "", "")]
    _ = list(ours.state.values())
    assert len(asked) == 4
    case.step(ours)
    assert ours.state[second]["step"] == 2
    assert asked[4:] == [(("step",), "", "")]


@EACH
def test_a_state_can_be_assigned(serve: Callable, case: Case) -> None:
    theirs, ours = case.pair(serve)
    case.step(theirs, ours)
    before, version = copy.deepcopy(dict(zip(range(9), ours.state.copy().values(), strict=False))), moved(ours)
    case.step(theirs, ours)
    for optimizer in (ours, theirs):
        for tensor, state in zip(flat(optimizer), before.values(), strict=False):
            optimizer.state[tensor] = copy.deepcopy(state)
    assert_views_as_torch(ours, theirs)
    assert moved(ours)[1] > version[1] or not before
    for _ in range(2):
        case.step(theirs, ours)
    assert_same_weights(ours, theirs)
    assert_same_state(ours.state_dict(), theirs.state_dict())


@EACH
def test_what_the_server_has_already_is_not_sent(serve: Callable, case: Case) -> None:
    ours = serve(case.ours, case.groups(), **case.defaults)
    for _ in range(2):
        before = moved(ours)
        for tensor, state in ours.state.items():
            ours.state[tensor] = apply_to_collection(state, torch.Tensor, torch.clone, allow_frozen=True)
            ours.state[tensor] = state
            for name, value in state.items():
                state[name] = value.clone() if isinstance(value, torch.Tensor) else value
        _optimizers_to_device([ours], torch.device("cpu"))
        assert moved(ours) == before
        case.step(ours)


@LANES
def test_others_keep_theirs(server: LocalServer, name: str, lane: Any) -> None:
    case = Case("Adam", {"amsgrad": True})
    with optd.connect(server.address, job=name, worker="w0", lane=lane) as session:
        ours = case.ours(case.groups(), session=session, **case.defaults)
        theirs = case.theirs(case.groups(), **case.defaults)
        case.step(theirs, ours)
        for optimizer in (ours, theirs):
            second, third = flat(optimizer)[1:3]
            optimizer.state[second] = {**optimizer.state[second], "step": torch.tensor(7.0)}
            optimizer.state[third]["exp_avg"] = torch.full_like(third, 0.5)
        assert_views_as_torch(ours, theirs)
        del ours.state[flat(ours)[3]]
        del theirs.state[flat(theirs)[3]]
        assert_views_as_torch(ours, theirs)
        case.step(theirs, ours)
        assert_views_as_torch(ours, theirs)
        assert_same_weights(ours, theirs)


def test_an_entry_can_be_assigned_and_deleted(serve: Callable) -> None:
    case = Case("SGD", {"lr": 0.1, "momentum": 0.9})
    theirs, ours = case.pair(serve)
    case.step(theirs, ours)
    for optimizer in (ours, theirs):
        first, second = flat(optimizer)[:2]
        optimizer.state[first].update(momentum_buffer=torch.ones_like(first))
        del optimizer.state[second]["momentum_buffer"]
        assert optimizer.state[flat(optimizer)[2]].pop("momentum_buffer").shape == (4,)
        assert optimizer.state.pop(torch.ones(1), None) is None
        assert optimizer.state[first].setdefault("momentum_buffer", None).sum() == first.numel()
    assert [len(state) for state in map(ours.state.__getitem__, flat(ours))] == [1, 0, 0, 1]
    case.step(theirs, ours)
    assert_same_weights(ours, theirs)


def test_a_state_can_be_given_before_the_first_step(serve: Callable) -> None:
    case = Case("Adam")
    theirs, ours = case.pair(serve)
    for optimizer in (ours, theirs):
        for tensor in flat(optimizer):
            optimizer.state[tensor]["step"] = torch.tensor(3.0)
            optimizer.state[tensor]["exp_avg"] = torch.full_like(tensor, 0.1)
            optimizer.state[tensor]["exp_avg_sq"] = torch.full_like(tensor, 0.2)
    assert_views_as_torch(ours, theirs)
    case.step(theirs, ours)
    assert_same_weights(ours, theirs)


def test_what_a_class_begins_with_can_be_changed(serve: Callable) -> None:
    case = Case("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.5})
    theirs, ours = case.pair(serve)
    for optimizer in (ours, theirs):
        first, second = flat(optimizer)[:2]
        optimizer.state[first]["sum"] = torch.full_like(first, 4.0)
        optimizer.state[second]["step"] = torch.tensor(0.0)
    assert_views_as_torch(ours, theirs)
    case.step(theirs, ours)
    assert_views_as_torch(ours, theirs)
    assert_same_weights(ours, theirs)


REPLACED: dict[str, Callable[[Any], None]] = {
    "filled": lambda o: setattr(o, "state", defaultdict(dict, {t: dict(s) for t, s in list(o.state.items())[1:]})),
    "a copy": lambda o: setattr(o, "state", copy.copy(o.state)),
    "cleared": lambda o: o.state.clear(),
    "an empty one": lambda o: setattr(o, "state", defaultdict(dict)),
    "emptied": lambda o: [o.state.pop(tensor) for tensor in list(o.state)],
    "one after the other": lambda o: [o.state.popitem() for _ in range(len(o.state))],
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED)
@pytest.mark.parametrize(
    ("cls", "options"), [("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adam", {"amsgrad": True})], ids=["SGD", "Adam"]
)
def test_the_whole_state_can_be_replaced(
    serve: Callable, cls: str, options: dict[str, Any], replace: Callable[[Any], None]
) -> None:
    case = Case(cls, options)
    theirs, ours = case.pair(serve)
    case.step(theirs, ours)
    for optimizer in (ours, theirs):
        replace(optimizer)
    case.step(theirs, ours)
    assert_views_as_torch(ours, theirs)
    assert_same_weights(ours, theirs)


def test_what_does_not_fit_is_refused_and_changes_nothing(serve: Callable) -> None:
    case = Case("Adam")
    ours = serve(case.ours, case.groups())
    case.step(ours)
    first, before, stranger = flat(ours)[0], moved(ours), torch.ones(2)
    assert ours.state[stranger] == {}
    assert stranger not in ours.state
    with pytest.raises(UnknownParameter, match=r"this optimizer .* has no parameter 'tensor of shape \(2,\)'"):
        ours.state[stranger] = {"step": torch.tensor(1.0)}
    with pytest.raises(UnknownParameter, match="has no parameter 'epoch'"):
        ours.state["epoch"] = 3
    with pytest.raises(ShapeMismatch, match=r"exp_avg of parameter 'param0' must have shape \(3, 2\), got \(5,\)"):
        ours.state[first]["exp_avg"] = torch.ones(5)
    with pytest.raises(KeyError):
        del ours.state[stranger]
    ours.state = {stranger: {"step": torch.tensor(1.0)}}
    with pytest.raises(UnknownParameter, match=r"tensor of shape \(2,\)"):
        ours.step()
    assert moved(ours) == before


def test_lbfgs_keeps_its_state_on_the_first_parameter(serve: Callable) -> None:
    case = next(each for each in EACH.args[1] if each.name == "LBFGS")
    theirs, ours = case.pair(serve)
    case.step(theirs, ours)
    case.step(theirs, ours)
    with pytest.raises(InvalidRequest, match="state of lbfgs belongs to the first parameter"):
        ours.state[flat(ours)[1]] = {"func_evals": 1}
    for optimizer in (ours, theirs):
        optimizer.state[flat(optimizer)[0]]["func_evals"] = 1000
    assert_views_as_torch(ours, theirs)
    del ours.state[flat(ours)[0]]
    assert not len(ours.state)


def test_what_is_changed_in_place_changes_nothing_there_and_is_told(serve: Callable) -> None:
    case = Case("Adam")
    ours = serve(case.ours, case.groups())
    case.step(ours)
    first = flat(ours)[0]
    kept = ours.state[first]["exp_avg"].clone()
    ours.state[first]["exp_avg"].zero_()
    with pytest.warns(UserWarning, match=r"exp_avg in optimizer.state of parameter 'param0' was changed in place"):
        saved = ours.state_dict()
    torch.testing.assert_close(saved["state"][0]["exp_avg"], kept)
    changed = ours.state[first]
    changed["exp_avg"].zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.state[first] = changed
        assert not ours.state_dict()["state"][0]["exp_avg"].any()


def test_copies_are_torchs_own_dicts(serve: Callable) -> None:
    case = Case("Adam")
    ours = serve(case.ours, case.groups())
    case.step(ours)
    first = flat(ours)[0]
    copies = {
        "copy": copy.copy(ours.state),
        "dict": dict(ours.state),
        "unpacked": {**ours.state},
        "or": ours.state | {},
        "moved": apply_to_collection(ours.state, torch.Tensor, torch.clone),
        "mapped": pytree.tree_map(lambda value: value, ours.state),
    }
    deep, pickled = copy.deepcopy(ours.state), pickle.loads(pickle.dumps(ours.state))
    file = io.BytesIO()
    torch.save(ours.state[first], file)
    file.seek(0)
    expected = ours.state[first].copy()
    case.step(ours)
    for how, found in copies.items():
        assert type(found) in (dict, defaultdict), how
        assert len(found) == 4
        if how not in ("dict", "unpacked"):  # which copy the outer dict alone, as with torch
            assert type(found[first]) is dict, how
            torch.testing.assert_close(found[first], expected)
    for found in (deep, pickled):
        assert type(found) is defaultdict
        torch.testing.assert_close(dict(next(iter(found.values()))), expected)
    torch.testing.assert_close(dict(torch.load(file, weights_only=True)), expected)
    assert ours.state[first]["step"] == 2


def test_groups_that_are_added_show(serve: Callable) -> None:
    case = Case("Adam")
    theirs, ours = case.pair(serve)
    case.step(theirs, ours)
    assert len(ours.state) == 4
    for optimizer in (theirs, ours):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, dtype=torch.float64))]})
    assert_views_as_torch(ours, theirs)
    case.step(theirs, ours)
    assert_views_as_torch(ours, theirs)


def test_it_says_so_when_the_session_is_closed(serve: Callable) -> None:
    case = Case("Adam")
    ours = serve(case.ours, case.groups())
    case.step(ours)
    ours.close()
    with pytest.raises(SessionClosed):
        len(ours.state)
    assert repr(ours.state).startswith("<state of 4 parameters in job 'job-")
