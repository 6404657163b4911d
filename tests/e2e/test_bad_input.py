"""Everything that can be wrong with what a caller gives: the exact error, what it says, and that nothing has changed.

Each case is tried with our client, and with plain stubs where our client would find out first: the server has to
refuse it on its own.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from contract.plain import (
    DTYPE_NUMBERS,
    SECONDS,
    Plain,
    ending,
    frame,
    group,
    header,
    job_spec,
    option,
    options,
    push_requests,
    refused,
)
from e2e.programs import free_port

import optd
from optd import errors
from optd.local import LocalServer
from optd_wire.v1 import (
    inspection_service_pb2,
    job_pb2,
    job_service_pb2,
    option_pb2,
    state_service_pb2,
    training_service_pb2,
    worker_service_pb2,
)
from optd_wire.values import GroupUpdate

A = {"w": ((2, 3), "float32"), "b": ((3,), "float32")}
C = {"v": ((4,), "float64")}


@dataclass
class Stage:
    """A job `name` of two groups that has taken two steps, the last one by the worker `plain`."""

    plain: Plain
    name: str

    def create(self, spec: job_pb2.JobSpec, *frames: Any) -> None:
        self.plain.create(spec, frames)

    def create_group(self, made: job_pb2.GroupSpec, **more: Any) -> None:
        self.create(job_spec(self.name + ".new", [made], **more))

    def push(self, *frames: Any, worker: str = "plain", epoch: int = 1, sequence: int = 2, **more: Any) -> None:
        self.plain.push(header(more.pop("job", self.name), worker, epoch, sequence, **more), frames)

    def push_update(self, **changes: Any) -> None:
        update = option_pb2.GroupUpdate(group=changes.pop("group", "a"), options=options(changes))
        self.push(frame(np.ones(9, "f4")), updates=[update])

    def write(self, *frames: Any, epoch: int = 1, worker: str = "plain", groups: Any = ()) -> None:
        head = state_service_pb2.WriteStateHeader(job=self.name, worker=worker, epoch=epoch, groups=groups)
        first = state_service_pb2.WriteStateRequest(header=head)
        following = state_service_pb2.WriteStateRequest(frames=frames, last=True)
        self.plain.state.WriteState(ending([first, following]), timeout=SECONDS)

    def add(self, made: job_pb2.GroupSpec, *frames: Any) -> None:
        first = job_service_pb2.AddGroupRequest(job=self.name, group=made)
        following = job_service_pb2.AddGroupRequest(frames=frames, last=True)
        self.plain.jobs.AddGroup(ending([first, following]), timeout=SECONDS)

    def pull(self, **identity: Any) -> None:
        request = training_service_pb2.PullRequest(job=self.name, **identity)
        list(self.plain.training.Pull(request, timeout=SECONDS))

    def inspect(self, group: str, **what: Any) -> None:
        request = inspection_service_pb2.InspectGroupRequest(job=self.name, group=group, **what)
        list(self.plain.inspection.InspectGroup(request, timeout=SECONDS))


@dataclass
class Bench(Stage):
    """The same, and a worker `ours` of our client, about to do something wrong."""

    session: optd.Session
    optimizer: optd.Optimizer
    weights: dict[str, np.ndarray]

    @property
    def address(self) -> str:
        return self.session.address

    def gradients(self, **changed: Any) -> dict[str, Any]:
        return {name: np.ones_like(array) for name, array in self.weights.items()} | changed

    def new(self, params: Any, algorithm: str = "adam", **options: Any) -> None:
        """Registers a job that is not there."""
        with optd.connect(self.address, job=self.name + ".new", worker="w0") as session:
            optd.Optimizer(algorithm, params, session=session, **options)

    def attach(self, params: Any, algorithm: str = "sgd", **options: Any) -> None:
        """Registers the job that is there."""
        with optd.connect(self.address, job=self.name, worker="w1") as session:
            optd.Optimizer(algorithm, params, session=session, **options)


@pytest.fixture
def stage(plain: Plain, name: str) -> Iterator[Stage]:
    spec = job_spec(name, [group("a", A), group("c", C, lr=0.25)], lr=0.5, momentum=0.9)
    plain.create(spec, [frame(np.ones(9, "f4")), frame(np.ones(4), group=1)])
    plain.push(header(name, "other", plain.join(name, "other"), 1), [frame(np.ones(9, "f4"))])
    plain.push(header(name, "plain", plain.join(name, "plain"), 1), [frame(np.ones(4), group=1)])
    yield Stage(plain, name)
    for job in plain.job_names():
        plain.delete(job)


@pytest.fixture
def bench(server: LocalServer, stage: Stage) -> Iterator[Bench]:
    weights = {n: np.empty(shape, dtype) for n, (shape, dtype) in {**A, **C}.items()}
    groups = two_groups({n: weights[n] for n in A}, {n: weights[n] for n in C})
    with optd.connect(server.address, job=stage.name, worker="ours", timeout=20) as session:
        yield Bench(stage.plain, stage.name, session, optd.SGD(groups, session=session), weights)


Act = Callable[[Bench], object]
NAN, INF = float("nan"), float("inf")


def zeros(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.zeros(shape, dtype)


def read_only() -> np.ndarray:
    array = zeros(2)
    array.flags.writeable = False
    return array


def set_option(bench: Bench, **changes: Any) -> None:
    """As a scheduler does it; counts with the next step."""
    bench.optimizer.param_groups[0].update(changes)
    bench.optimizer.step(bench.gradients())


def load_state(bench: Bench, change: Callable[[dict[str, Any]], object]) -> None:
    state = bench.optimizer.state_dict()
    change(state)
    bench.optimizer.load_state_dict(state)


ONE = np.zeros(1, "f4")

WITH_OUR_CLIENT: dict[str, tuple[Act, type[errors.OptdError], list[str]]] = {
    # options
    "unknown option": (
        lambda b: b.new([zeros(2)], learning_rate=0.1),
        errors.UnknownOption,
        ["adam", "'learning_rate'", "did you mean 'lr'", "weight_decay"],
    ),
    "misspelt option": (
        lambda b: b.new([zeros(2)], "sgd", momentun=0.1),
        errors.UnknownOption,
        ["sgd", "'momentun'", "did you mean 'momentum'"],
    ),
    "unknown option that is near to none": (
        lambda b: b.new([zeros(2)], zzzzz=0.1),
        errors.UnknownOption,
        ["'zzzzz'", "options are lr, betas"],
    ),
    "unknown option of a group": (
        lambda b: b.new([{"params": [zeros(2)], "weight_dekay": 0.1}]),
        errors.UnknownOption,
        ["'weight_dekay'", "'weight_decay'"],
    ),
    "beta out of range": (
        lambda b: b.new([zeros(2)], betas=(1.3, 0.9)),
        errors.OptionOutOfRange,
        ["adam: betas[0] must be in [0, 1), got 1.3"],
    ),
    "negative lr": (
        lambda b: b.new([zeros(2)], "sgd", lr=-1e-3),
        errors.OptionOutOfRange,
        ["sgd: lr must be in [0, inf), got -0.001"],
    ),
    "lr that is no number": (
        lambda b: b.new([zeros(2)], lr=NAN),
        errors.OptionOutOfRange,
        ["lr must be in [0, inf), got nan"],
    ),
    "infinite lr": (lambda b: b.new([zeros(2)], lr=INF), errors.OptionOutOfRange, ["lr", "got inf"]),
    "out of range in a group": (
        lambda b: b.new([{"params": [zeros(2)], "eps": -1.0}]),
        errors.OptionOutOfRange,
        ["eps", "got -1"],
    ),
    "option of another kind": (
        lambda b: b.new([zeros(2)], lr="fast"),
        errors.InvalidOption,
        ["lr must be a number, got 'fast'"],
    ),
    "flag that is none": (
        lambda b: b.new([zeros(2)], amsgrad=1.0),
        errors.InvalidOption,
        ["amsgrad must be true or false, got 1"],
    ),
    "three betas": (
        lambda b: b.new([zeros(2)], betas=(0.9, 0.9, 0.9)),
        errors.InvalidOption,
        ["betas must be 2 numbers"],
    ),
    "options that do not go together": (
        lambda b: b.new([zeros(2)], "sgd", nesterov=True),
        errors.InvalidOption,
        ["nesterov must be false unless momentum > 0"],
    ),
    "unknown algorithm": (
        lambda b: b.new([zeros(2)], "adamm"),
        errors.UnknownAlgorithm,
        ["'adamm'", "nearest is 'adam'"],
    ),
    "option set out of range": (
        lambda b: set_option(b, lr=-1.0),
        errors.OptionOutOfRange,
        ["lr must be in [0, inf), got -1"],
    ),
    "option set to another kind": (
        lambda b: set_option(b, momentum="much"),
        errors.InvalidOption,
        ["momentum", "much"],
    ),
    "update of an unknown option": (
        lambda b: b.session.update_group(GroupUpdate("a", {"lrr": 1.0})),
        errors.UnknownOption,
        ["'lrr'", "'lr'"],
    ),
    "policy without workers": (
        lambda b: optd.SGD([zeros(2)], session=optd.connect(b.address, job=b.name + ".new", policy=optd.Sync(0))),
        errors.InvalidPolicy,
        ["workers must be in [1, 4096] or 'live', got 0"],
    ),
    # groups and parameters
    "no parameters": (lambda b: b.new([]), errors.EmptyGroup, ["params", "no parameters"]),
    "empty groups": (
        lambda b: b.new([{"params": []}, {"params": [], "name": "head"}]),
        errors.EmptyGroup,
        ["params has no parameters"],
    ),
    "group without params": (
        lambda b: b.new([{"params": [zeros(2)]}, {"lr": 1.0}]),
        errors.StructureMismatch,
        ["group 1", "'params'"],
    ),
    "one array twice in a group": (
        lambda b: b.new([("x", ONE), ("y", ONE)]),
        errors.DuplicateParameter,
        ["'group0'", "'x'", "'y'"],
    ),
    "one array in two groups": (
        lambda b: b.new([{"params": {"x": ONE}}, {"params": {"y": ONE}}]),
        errors.ParameterInTwoGroups,
        ["'group0'", "'group1'"],
    ),
    "one name twice in a group": (
        lambda b: b.new([("x", zeros(2)), ("x", zeros(2))]),
        errors.DuplicateName,
        ["parameter", "'x'", "twice"],
    ),
    "one name in two groups": (
        lambda b: b.new([{"params": {"x": zeros(2)}}, {"params": {"x": zeros(2)}}]),
        errors.ParameterInTwoGroups,
        ["'x'", "'group0'", "'group1'"],
    ),
    "one group name twice": (
        lambda b: b.new([{"params": [zeros(2)], "name": "g"}, {"params": [zeros(2)], "name": "g"}]),
        errors.DuplicateName,
        ["group", "'g'", "twice"],
    ),
    "added group with a parameter of another": (
        lambda b: b.optimizer.add_param_group({"params": {"w": zeros(2)}, "name": "d"}),
        errors.ParameterInTwoGroups,
        ["'w'", "'a'", "'d'"],
    ),
    "added group with an array of another": (
        lambda b: b.optimizer.add_param_group({"params": {"fresh": b.weights["w"]}, "name": "d"}),
        errors.ParameterInTwoGroups,
        ["'a'", "'d'"],
    ),
    "added group with the name of another": (
        lambda b: b.optimizer.add_param_group({"params": {"x": zeros(2)}, "name": "a"}),
        errors.DuplicateName,
        ["group", "'a'", "twice"],
    ),
    "added group with a wrong option": (
        lambda b: b.optimizer.add_param_group({"params": {"x": zeros(2)}, "lr": -1.0}),
        errors.OptionOutOfRange,
        ["lr", "-1"],
    ),
    "not arrays": (lambda b: b.new([[1.0, 2.0]]), errors.NotAnArray, ["'0.0'", "an array", "float"]),
    "params that are one array": (lambda b: b.new(zeros(2)), errors.NotAnArray, ["params", "ndarray"]),
    "read-only array": (lambda b: b.new([read_only()]), errors.NotAnArray, ["'param0'", "read-only"]),
    "integers": (
        lambda b: b.new([zeros(2, dtype="i8")]),
        errors.UnsupportedDtype,
        ["'param0'", "int64", "float32, float64"],
    ),
    "complex numbers": (lambda b: b.new([zeros(2, dtype="c8")]), errors.UnsupportedDtype, ["complex64", "bfloat16"]),
    # gradients
    "gradient of another shape": (
        lambda b: b.optimizer.step(b.gradients(w=zeros(3, 2))),
        errors.ShapeMismatch,
        ["gradient of parameter 'w' must have shape (2, 3), got (3, 2)"],
    ),
    "gradient of another length": (
        lambda b: b.optimizer.step(b.gradients(b=zeros(4))),
        errors.ShapeMismatch,
        ["'b'", "(3,)", "(4,)"],
    ),
    "gradient of another dtype": (
        lambda b: b.optimizer.step(b.gradients(v=zeros(4))),
        errors.DtypeMismatch,
        ["gradient of parameter 'v' must have dtype float64, got float32"],
    ),
    "gradient that is a list": (
        lambda b: b.optimizer.step(b.gradients(b=[1.0, 2.0, 3.0])),
        errors.NotAnArray,
        ["'b'", "list"],
    ),
    "gradient of an unknown parameter": (
        lambda b: b.optimizer.step(b.gradients(x=zeros(2))),
        errors.UnknownParameter,
        ["'x'"],
    ),
    "too few gradients": (
        lambda b: b.optimizer.step([zeros(2, 3)]),
        errors.StructureMismatch,
        ["3 entries", "got 1"],
    ),
    "gradients of too many groups": (
        lambda b: b.optimizer.push([[zeros(2, 3), zeros(3)], [zeros(4, dtype="f8")], [zeros(1)]]),
        errors.StructureMismatch,
        ["2 groups", "got 3"],
    ),
    "NaN in a gradient": (
        lambda b: b.optimizer.step(b.gradients(b=np.array([1, NAN, 1], "f4"))),
        errors.NonfiniteGradient,
        ["'b'", "nan", "index 1"],
    ),
    "infinity in a gradient": (
        lambda b: b.optimizer.push(b.gradients(v=np.array([1, 1, 1, -INF]))),
        errors.NonfiniteGradient,
        ["'v'", "-inf", "index 3"],
    ),
    # what is not there
    "unknown job": (
        lambda b: optd.connect(b.address, job="nobody/has.this").info(),
        errors.UnknownJob,
        ["'nobody/has.this'"],
    ),
    "pull from an unknown job": (lambda b: optd.connect(b.address, job="nobody").pull(), errors.UnknownJob, ["nobody"]),
    "unknown group": (
        lambda b: b.session.parameters("head"),
        errors.UnknownGroup,
        ["'head'", "its groups are a, c"],
    ),
    "unknown parameter": (
        lambda b: b.session.parameters("a", "v"),
        errors.UnknownParameter,
        ["group 'a'", "'v'"],
    ),
    "unknown field": (
        lambda b: b.session.read_state(["exp_avg"], into=lambda frame: None),
        errors.UnknownField,
        ["'exp_avg'", "weights, gradient, step, momentum_buffer"],
    ),
    "update of an unknown group": (
        lambda b: b.session.update_group(GroupUpdate("head", {"lr": 1.0})),
        errors.UnknownGroup,
        ["'head'"],
    ),
    # another registration than the job's
    "attaching another algorithm": (
        lambda b: b.attach({**b.weights}, "adam"),
        errors.JobMismatch,
        ["algorithm", "'sgd'", "'adam'"],
    ),
    "attaching other groups": (
        lambda b: b.attach({n: np.zeros_like(a) for n, a in b.weights.items()}),
        errors.JobMismatch,
        ["2 groups (a, c)", "(group0)"],
    ),
    "attaching another group name": (
        lambda b: b.attach([{"params": like(b, A), "name": "body"}, {"params": like(b, C), "name": "c"}]),
        errors.JobMismatch,
        ["'a'", "'body'"],
    ),
    "attaching another parameter name": (
        lambda b: b.attach(two_groups({"w": zeros(2, 3), "bias": zeros(3)}, like(b, C))),
        errors.JobMismatch,
        ["group 'a'", "'b'", "'bias'"],
    ),
    "attaching fewer parameters": (
        lambda b: b.attach(two_groups({"w": zeros(2, 3)}, like(b, C))),
        errors.JobMismatch,
        ["group 'a'", "2 parameters (w, b)", "1, (w)"],
    ),
    "attaching another order": (
        lambda b: b.attach(two_groups({"b": zeros(3), "w": zeros(2, 3)}, like(b, C))),
        errors.JobMismatch,
        ["'w'", "'b'"],
    ),
    "attaching another shape": (
        lambda b: b.attach(two_groups({"w": zeros(3, 2), "b": zeros(3)}, like(b, C))),
        errors.JobMismatch,
        ["'w'", "(2, 3)", "(3, 2)"],
    ),
    "attaching another dtype": (
        lambda b: b.attach(two_groups(like(b, A), {"v": zeros(4)})),
        errors.JobMismatch,
        ["'v'", "float64", "float32"],
    ),
    # state
    "state of other groups": (
        lambda b: load_state(b, lambda state: state["param_groups"].pop()),
        errors.StructureMismatch,
        ["[2, 1]", "[2]"],
    ),
    "state of another shape": (
        lambda b: load_state(b, lambda state: state["state"][0].update(momentum_buffer=zeros(3))),
        errors.ShapeMismatch,
        ["momentum_buffer", "'w'", "(2, 3)", "(3,)"],
    ),
    "state of another dtype": (
        lambda b: load_state(b, lambda state: state["state"][2].update(momentum_buffer=zeros(4))),
        errors.DtypeMismatch,
        ["momentum_buffer", "'v'", "float64", "float32"],
    ),
    "state of another algorithm": (
        lambda b: load_state(b, lambda state: state["state"][2].update(exp_avg=zeros(4, dtype="f8"))),
        errors.UnknownField,
        ["'exp_avg'", "momentum_buffer"],
    ),
    "state with a wrong option": (
        lambda b: load_state(
            b, lambda state: (state["param_groups"][1].update(lr=-1.0), state["state"][0].update(step=7))
        ),
        errors.OptionOutOfRange,
        ["lr", "-1"],
    ),
    # sessions
    "a second optimizer": (
        lambda b: optd.SGD([zeros(1)], session=b.session),
        errors.AlreadyRegistered,
        ["another session"],
    ),
    "a lane that does not exist": (
        lambda b: optd.connect(b.address, lane="tcp"),
        errors.InvalidRequest,
        ["lane", "'tcp'"],
    ),
}


def two_groups(a: dict[str, np.ndarray], c: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    return [{"params": a, "name": "a"}, {"params": c, "name": "c"}]


def like(bench: Bench, names: Any) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(bench.weights[name]) for name in names}


@pytest.mark.parametrize("case", WITH_OUR_CLIENT)
def test_our_client_raises_the_error_and_nothing_has_changed(bench: Bench, case: str):
    act, error, parts = WITH_OUR_CLIENT[case]
    before = bench.plain.everything(bench.name)
    weights = {name: array.tobytes() for name, array in bench.weights.items()}
    groups = [dict(entry) for entry in bench.optimizer.param_groups]
    with pytest.raises(errors.OptdError) as caught:
        act(bench)
    assert type(caught.value) is error, repr(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert bench.plain.everything(bench.name) == before
    assert {name: array.tobytes() for name, array in bench.weights.items()} == weights
    # Once it is put right, the next step counts, once.
    assert [entry["name"] for entry in bench.optimizer.param_groups] == ["a", "c"]
    for entry, good in zip(bench.optimizer.param_groups, groups, strict=True):
        entry.update(good)
    bench.optimizer.step(bench.gradients())
    assert bench.plain.info(bench.name).version.version == before["info"].version.version + 1


# Names


BAD_NAMES = [
    "..",
    "a/../b",
    "../../etc/passwd",
    "a..b",
    "x" * 201,
    "with space",
    "new\nline",
    "trailing\n",
    "nul\0",
    "ünïcode",
    "emoji🙂",
    "back\\slash",
    "colon:",
    "%2e%2e",
    "'quoted'",
]
# Groups and parameters are called what they are called in models.
BAD_LABELS = [
    "x" * 201,
    "new\nline",
    "trailing\n",
    "nul\0",
    " leading",
    "trailing ",
    "\u202eleft",
    "\u2028",
    "\x1b[31m",
]
GOOD_LABELS = ["my layer.weight", "a=b", "lr=0.1", "clip_norm=1", "user:id", "größe", "no decay", "a..b", "表", "%s"]
GOOD_LABELS += ["[red]x[/]", "{0}"]
GOOD_NAMES = ["a", "x" * 200, "A-Z_0.9/deep/path", "/absolute", "./.", "-", "...".replace("...", "._.")]


@pytest.mark.parametrize("kind", ["job", "worker", "group", "parameter"])
def test_bad_names_are_refused_by_client_and_server(bench: Bench, kind: str):
    before = bench.plain.everything(bench.name)
    names = BAD_NAMES if kind in ("job", "worker") else BAD_LABELS
    must_be = "of the characters A-Z a-z 0-9 . _ / -" if names is BAD_NAMES else "characters that can be printed"
    for bad in names:
        with pytest.raises(errors.InvalidName) as caught:
            with_our_client(bench, kind, bad)
        assert f"{kind} name" in str(caught.value)
        assert f"must be 1 to 200 {must_be}" in str(caught.value)
        with refused("INVALID_NAME", f"{kind} name"):
            with_plain_stubs(bench, kind, bad)
    assert bench.plain.everything(bench.name) == before


def with_our_client(bench: Bench, kind: str, name: str) -> None:
    match kind:
        case "job":
            optd.connect(bench.address, job=name)
        case "worker":
            optd.connect(bench.address, job=bench.name, worker=name)
        case "group":
            bench.new([{"params": [zeros(1)], "name": name}])
        case "parameter":
            bench.new({name: zeros(1)})


@pytest.mark.parametrize("kind", ["job", "worker", "group", "parameter"])
def test_an_empty_name_is_refused_by_the_server(stage: Stage, kind: str):
    with refused("INVALID_NAME", f"{kind} name ''"):
        with_plain_stubs(stage, kind, "")


def with_plain_stubs(stage: Stage, kind: str, name: str) -> None:
    one = {"x": ((1,), "float32")}
    match kind:
        case "job":
            stage.create(job_spec(name, [group("g", one)]), frame(ONE))
        case "worker":
            stage.plain.join(stage.name, name)
        case "group":
            stage.create(job_spec(stage.name + ".new", [group(name, one)]), frame(ONE))
        case "parameter":
            stage.create(job_spec(stage.name + ".new", [group("g", {name: ((1,), "float32")})]), frame(ONE))


@pytest.mark.parametrize("good", GOOD_NAMES, ids=lambda name: name[:20])
def test_a_good_name_is_good_everywhere(server: LocalServer, plain: Plain, good: str):
    with optd.connect(server.address, job=good, worker=good) as session:
        weights = zeros(1)
        optd.SGD([{"params": {good: weights}, "name": good}], lr=1.0, session=session).step({good: zeros(1) + 1})
        assert weights.tolist() == [-1]
        assert [report.parameter.name for report in session.parameters(good, good)] == [good]
    plain.delete(good)


@pytest.mark.slow
@pytest.mark.parametrize("label", GOOD_LABELS)
def test_groups_and_parameters_are_called_what_models_call_them(server: LocalServer, name: str, label: str):
    weights, environment = zeros(1), {**os.environ, "OPTD_SERVER": server.address, "COLUMNS": "200"}
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD([{"params": {label: weights}, "name": label}], lr=1.0, session=session)
        optimizer.step({label: zeros(1) + 1})
        assert weights.tolist() == [-1]
        for arguments in (["group", name, label, "-p", label], ["set", name, label, "lr=0.5"], ["groups", name]):
            command = [sys.executable, "-m", "optd.ctl", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert label in done.stdout
        optimizer.pull()
        optimizer.load_state_dict(optimizer.state_dict())
        rules = [{"match": label.replace("[", "[[]"), "lr": 0.25}]
        optimizer.param_groups[0]["rules"] = rules
        optimizer.step({label: zeros(1) + 1})
        assert weights.tolist() == [-1.25]


def test_an_added_group_with_a_bad_name_is_refused(bench: Bench):
    before = bench.plain.everything(bench.name)
    with pytest.raises(errors.InvalidName, match="group name"):
        bench.optimizer.add_param_group({"params": {"x": zeros(1)}, "name": "a\tb"})
    with pytest.raises(errors.InvalidName, match="parameter name"):
        bench.optimizer.add_param_group({"params": {"x ": zeros(1)}, "name": "d"})
    assert bench.plain.everything(bench.name) == before


# The server's own checks


def state(index: int, steps: list[int], *entries: tuple[str, list[bool]]) -> state_service_pb2.GroupState:
    found = state_service_pb2.GroupState(group=index, steps=steps)
    for field, present in entries:
        found.entries.add(field=field, present=present)
    return found


def step_messages(stage: Stage, *requests: training_service_pb2.StepRequest) -> None:
    list(stage.plain.training.Step(iter(requests), timeout=SECONDS))


HALF = job_pb2.ParameterSpec(name="x", shape=[2], dtype=DTYPE_NUMBERS["float16"])
HALF_KNOWN = job_pb2.ParameterSpec(name="x", shape=[1], dtype=77)

WITH_PLAIN_STUBS: dict[str, tuple[Callable[[Stage], object], str, list[Any]]] = {
    # options
    "unknown option": (
        lambda b: b.create_group(group("g", C), learning_rate=1.0, algorithm="adam"),
        "UNKNOWN_OPTION",
        ["'learning_rate'", "'lr'"],
    ),
    "out of range": (
        lambda b: b.create_group(group("g", C), algorithm="adam", betas=(1.3, 0.5)),
        "OPTION_OUT_OF_RANGE",
        ["adam: betas[0] must be in [0, 1), got 1.3"],
    ),
    "group option out of range": (
        lambda b: b.create_group(group("g", C, momentum=-0.5)),
        "OPTION_OUT_OF_RANGE",
        ["momentum", "-0.5"],
    ),
    "update out of range": (
        lambda b: b.plain.update_group(b.name, "a", lr=-1.0),
        "OPTION_OUT_OF_RANGE",
        ["sgd: lr must be in [0, inf), got -1"],
    ),
    "update that breaks a rule": (
        lambda b: b.plain.update_group(b.name, "a", lr=10.0, lr_schedule="linear(steps=3, end=1e308)"),
        "INVALID_OPTION",
        ["lr_schedule", "lr stays in [0, inf)"],
    ),
    "defaults that break a rule": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", A)], nesterov=True)),
        "INVALID_OPTION",
        ["nesterov", "momentum > 0"],
    ),
    "update of an unknown option": (lambda b: b.plain.update_group(b.name, "a", lrr=1.0), "UNKNOWN_OPTION", ["'lr'"]),
    "update of an unknown group": (lambda b: b.plain.update_group(b.name, "z", lr=1.0), "UNKNOWN_GROUP", ["'z'"]),
    "update of an unknown job": (lambda b: b.plain.update_group("nobody", "a", lr=1.0), "UNKNOWN_JOB", ["nobody"]),
    "huge integer": (
        lambda b: b.plain.update_group(b.name, "a", lr=-(2**63)),
        "OPTION_OUT_OF_RANGE",
        ["lr"],
    ),
    "push with an option out of range": (
        lambda b: b.push_update(lr=-1.0),
        "OPTION_OUT_OF_RANGE",
        ["lr", "-1"],
    ),
    "push with an unknown option": (lambda b: b.push_update(lrr=1.0), "UNKNOWN_OPTION", ["lrr"]),
    "push with options of an unknown group": (
        lambda b: b.push_update(group="z", lr=1.0),
        "UNKNOWN_GROUP",
        ["'z'"],
    ),
    "push with a good and a bad update": (
        lambda b: b.push(
            frame(np.ones(9, "f4")),
            updates=[
                option_pb2.GroupUpdate(group="a", options=options({"lr": 0.125})),
                option_pb2.GroupUpdate(group="c", options=options({"lr": -1.0})),
            ],
        ),
        "OPTION_OUT_OF_RANGE",
        ["-1"],
    ),
    "unknown algorithm": (
        lambda b: b.create_group(group("g", C), algorithm="Adamm"),
        "UNKNOWN_ALGORITHM",
        ["'Adamm'", "'adam'"],
    ),
    "no algorithm": (lambda b: b.create(job_pb2.JobSpec(name=b.name + ".new")), "UNKNOWN_ALGORITHM", ["sgd"]),
    "no workers": (lambda b: create_sync(b, 0), "INVALID_POLICY", ["got 0"]),
    "too many workers": (lambda b: create_sync(b, 2**32 - 1), "INVALID_POLICY", [2**32 - 1]),
    # groups and parameters
    "a job that exists": (lambda b: b.create(job_spec(b.name, [group("a", A)])), "JOB_EXISTS", ["exists already"]),
    "no groups": (lambda b: b.create(job_spec(b.name + ".new", [])), "EMPTY_GROUP", [".new"]),
    "empty groups": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", {}), group("h", {})])),
        "EMPTY_GROUP",
        [".new"],
    ),
    "group twice": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", A), group("g", C)])),
        "DUPLICATE_NAME",
        ["group", "'g'"],
    ),
    "parameter twice": (
        lambda b: b.create_group(
            job_pb2.GroupSpec(name="g", parameters=[*group("g", C).parameters, *group("g", C).parameters])
        ),
        "DUPLICATE_NAME",
        ["parameter", "'v'"],
    ),
    "parameter in two groups": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", C), group("h", C)])),
        "PARAMETER_IN_TWO_GROUPS",
        ["'v'", "'g'", "'h'"],
    ),
    "dtype not given": (
        lambda b: b.create_group(job_pb2.GroupSpec(name="g", parameters=[job_pb2.ParameterSpec(name="x", shape=[1])])),
        "UNSUPPORTED_DTYPE",
        ["'x'", "float32, float64, float16, bfloat16"],
    ),
    "dtype that does not exist": (
        lambda b: b.create_group(job_pb2.GroupSpec(name="g", parameters=[HALF_KNOWN])),
        "UNSUPPORTED_DTYPE",
        ["'x'", "77"],
    ),
    "nothing in the first message": (
        lambda b: b.plain.jobs.CreateJob(iter([job_service_pb2.CreateJobRequest()]), timeout=SECONDS),
        "INVALID_",
        [],
    ),
    "no message": (
        lambda b: b.plain.jobs.CreateJob(iter([]), timeout=SECONDS),
        "INVALID_REQUEST",
        ["before its first message"],
    ),
    "weights that end without saying so": (
        lambda b: b.plain.jobs.CreateJob(
            iter(
                [
                    job_service_pb2.CreateJobRequest(spec=job_spec(b.name + ".new", [group("g", C)])),
                    job_service_pb2.CreateJobRequest(frames=[frame(np.ones(4))]),
                ]
            ),
            timeout=SECONDS,
        ),
        "INVALID_REQUEST",
        ["before its last message"],
    ),
    "a second spec": (
        lambda b: b.plain.jobs.CreateJob(
            iter([job_service_pb2.CreateJobRequest(spec=job_spec(b.name + ".new", [group("g", C)]))] * 2),
            timeout=SECONDS,
        ),
        "INVALID_REQUEST",
        ["only the first message"],
    ),
    # weights of a new job
    "no weights": (lambda b: b.create_group(group("g", C)), "INCOMPLETE_PARAMETER", ["'v'", "0 of its 4"]),
    "a part of the weights": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", C)]), frame(np.ones(3))),
        "INCOMPLETE_PARAMETER",
        ["'v'", "3 of its 4"],
    ),
    "weights twice": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", C)]), frame(np.ones(3)), frame(np.ones(3), offset=1)),
        "FRAME_OVERLAP",
        ["'v'", "element 1"],
    ),
    "weights of float16 in float32": (
        lambda b: b.create(
            job_spec(b.name + ".new", [job_pb2.GroupSpec(name="g", parameters=[HALF])]), frame(np.ones(2, "f4"))
        ),
        "DTYPE_MISMATCH",
        ["'x'", "float16", "float32"],
    ),
    "weights of another dtype": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", C)]), frame(np.ones(4, "f4"))),
        "DTYPE_MISMATCH",
        ["'v'", "float64", "float32"],
    ),
    "more weights than elements": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", C)]), frame(np.ones(5))),
        "FRAME_OUT_OF_RANGE",
        ["[0, 5)", "[0, 4) float64"],
    ),
    "weights of another group": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", C)]), frame(np.ones(4), group=1)),
        "INVALID_REQUEST",
        ["group 1"],
    ),
    "weights that are called gradient": (
        lambda b: b.create(job_spec(b.name + ".new", [group("g", C)]), frame(np.ones(4), field="gradient")),
        "INVALID_REQUEST",
        ["'gradient'", "'weights'"],
    ),
    # groups that are added
    "added group of an unknown job": (
        lambda b: b.plain.jobs.AddGroup(
            iter([job_service_pb2.AddGroupRequest(job="nobody", group=group("g", C))]), timeout=SECONDS
        ),
        "UNKNOWN_JOB",
        ["nobody"],
    ),
    "added parameter of another group": (
        lambda b: b.add(group("d", {"v": ((1,), "float32")}), frame(ONE, group=2)),
        "PARAMETER_IN_TWO_GROUPS",
        ["'v'", "'c'", "'d'"],
    ),
    "added group with another's name": (
        lambda b: b.add(group("c", {"y": ((4,), "float64")})),
        "JOB_MISMATCH",
        ["'v'", "'y'"],
    ),
    "added group without weights": (
        lambda b: b.add(group("d", {"y": ((4,), "float64")})),
        "INCOMPLETE_PARAMETER",
        ["'y'", "0 of its 4"],
    ),
    "added group that ends without saying so": (
        lambda b: b.plain.jobs.AddGroup(
            iter(
                [
                    job_service_pb2.AddGroupRequest(job=b.name, group=group("d", {"y": ((1,), "float32")})),
                    job_service_pb2.AddGroupRequest(frames=[frame(ONE, group=2)]),
                ]
            ),
            timeout=SECONDS,
        ),
        "INVALID_REQUEST",
        ["before its last message"],
    ),
    "added group with a wrong option": (
        lambda b: b.add(group("d", {"y": ((1,), "float32")}, lr=-1.0), frame(ONE, group=2)),
        "OPTION_OUT_OF_RANGE",
        ["lr"],
    ),
    # pushes
    "push to an unknown job": (lambda b: b.push(job="nobody"), "UNKNOWN_JOB", ["nobody"]),
    "push of an unknown worker": (lambda b: b.push(worker="stranger"), "UNKNOWN_WORKER", ["'stranger'"]),
    "push under an epoch to come": (lambda b: b.push(epoch=2), "ROLLED_BACK", ["epoch 2", "epoch was 1"]),
    "push under epoch 0": (lambda b: b.push(epoch=0), "STALE_EPOCH", ["epoch 0"]),
    "push that skips a sequence": (
        lambda b: b.push(sequence=3),
        "SEQUENCE_GAP",
        ["3", "its last one was 1", "the next is 2"],
    ),
    "push of sequence 0": (lambda b: b.push(sequence=0), "SEQUENCE_GAP", ["the next is 2"]),
    "push of the largest sequence": (lambda b: b.push(sequence=2**64 - 1), "SEQUENCE_GAP", ["the next is 2"]),
    "push without header": (
        lambda b: b.plain.training.Push(
            iter([training_service_pb2.PushRequest(frames=[frame(np.ones(9, "f4"))])]), timeout=SECONDS
        ),
        "INVALID_REQUEST",
        ["header"],
    ),
    "push with two headers": (
        lambda b: b.plain.training.Push(
            iter([training_service_pb2.PushRequest(header=header(b.name, "plain", 1, 2))] * 2), timeout=SECONDS
        ),
        "INVALID_REQUEST",
        ["only the first message"],
    ),
    "push that ends without saying so": (
        lambda b: b.plain.training.Push(
            iter(push_requests(header(b.name, "plain", 1, 2), [frame(np.ones(9, "f4"))])), timeout=SECONDS
        ),
        "INVALID_REQUEST",
        ["before its last message"],
    ),
    "push of nothing at all": (
        lambda b: b.plain.training.Push(iter([]), timeout=SECONDS),
        "INVALID_REQUEST",
        ["before its first message"],
    ),
    "gradient of another dtype": (
        lambda b: b.push(frame(np.ones(4, "f4"), group=1)),
        "DTYPE_MISMATCH",
        ["gradient of parameter 'v'", "float64", "float32"],
    ),
    "gradient that is too long": (
        lambda b: b.push(frame(np.ones(10, "f4"))),
        "FRAME_OUT_OF_RANGE",
        ["[0, 10)", "group 0", "[0, 9) float32"],
    ),
    "gradient behind the end": (
        lambda b: b.push(frame(np.ones(3, "f4"), offset=9)),
        "FRAME_OUT_OF_RANGE",
        ["[9, 12)"],
    ),
    "gradient at the end of all numbers": (
        lambda b: b.push(frame(np.ones(3, "f4"), offset=2**64 - 1)),
        "FRAME_OUT_OF_RANGE",
        [2**64 - 1],
    ),
    "gradient of a group that is not there": (
        lambda b: b.push(frame(np.ones(1, "f4"), group=2)),
        "INVALID_REQUEST",
        ["group 2", "[0, 2)"],
    ),
    "gradient of a part of a parameter": (
        lambda b: b.push(frame(np.ones(8, "f4"))),
        "INCOMPLETE_PARAMETER",
        ["gradient of parameter 'b' covers 2 of its 3"],
    ),
    "gradient of one whole and one part": (
        lambda b: b.push(frame(np.ones(4)[:3], group=1), frame(np.ones(9, "f4"))),
        "INCOMPLETE_PARAMETER",
        ["'v'", "3 of its 4"],
    ),
    "gradient sent twice": (
        lambda b: b.push(frame(np.ones(9, "f4")), frame(np.ones(3, "f4"), offset=6)),
        "FRAME_OVERLAP",
        ["'b'", "element 6", "'a'"],
    ),
    "gradients that overlap by one": (
        lambda b: b.push(frame(np.ones(5, "f4"), offset=4), frame(np.ones(5, "f4"))),
        "FRAME_OVERLAP",
        ["'w'", "element 4"],
    ),
    "gradient with too few bytes": (
        lambda b: b.push(cut(frame(np.ones(9, "f4")))),
        "FRAME_LENGTH",
        ["9 elements of 4 bytes", "35 bytes"],
    ),
    "gradient in an encoding that does not exist": (
        lambda b: b.push(encoded(frame(np.ones(9, "f4")), 9)),
        "MALFORMED_MESSAGE",
        ["encoding 9"],
    ),
    "weights among gradients": (
        lambda b: b.push(frame(np.ones(9, "f4"), field="weights")),
        "INVALID_REQUEST",
        ["'weights'", "'gradient'"],
    ),
    "NaN": (
        lambda b: b.push(frame(np.ones(4), group=1), frame(np.array([1] * 7 + [NAN, 1], "f4"))),
        "NONFINITE_GRADIENT",
        ["'b'", "nan", "index 1"],
    ),
    "infinity": (
        lambda b: b.push(frame(np.array([INF, 1, 1, 1]), group=1)),
        "NONFINITE_GRADIENT",
        ["'v'", "inf", "index 0"],
    ),
    "step without header": (
        lambda b: step_messages(b, training_service_pb2.StepRequest(last=True)),
        "INVALID_REQUEST",
        ["header"],
    ),
    "step that does not end": (
        lambda b: step_messages(b, training_service_pb2.StepRequest(header=header(b.name, "plain", 1, 2))),
        "INVALID_REQUEST",
        ["before its last message"],
    ),
    "step with two headers": (
        lambda b: step_messages(b, *[training_service_pb2.StepRequest(header=header(b.name, "plain", 1, 2))] * 2),
        "INVALID_REQUEST",
        ["only the first message"],
    ),
    # pulls and workers
    "pull of an unknown job": (lambda b: b.plain.pull("nobody"), "UNKNOWN_JOB", ["nobody"]),
    "pull of an unknown worker": (
        lambda b: next(
            b.plain.training.Pull(training_service_pb2.PullRequest(job=b.name, worker="x"), timeout=SECONDS)
        ),
        "UNKNOWN_WORKER",
        ["'x'"],
    ),
    "pull under another epoch": (
        lambda b: b.pull(worker="plain", epoch=7),
        "ROLLED_BACK",
        ["epoch 7"],
    ),
    "joining an unknown job": (lambda b: b.plain.join("nobody", "x"), "UNKNOWN_JOB", ["nobody"]),
    "joining with another spec": (
        lambda b: b.plain.join(b.name, "x", spec=job_spec(b.name, [group("a", A), group("c", A)])),
        "JOB_MISMATCH",
        ["group 'c'"],
    ),
    "leaving under another epoch": (lambda b: b.plain.leave(b.name, "plain", 5), "ROLLED_BACK", ["epoch 5"]),
    "leaving as nobody": (lambda b: b.plain.leave(b.name, "stranger", 1), "UNKNOWN_WORKER", ["'stranger'"]),
    "lease of a stranger": (
        lambda b: b.plain.workers.RenewLease(
            worker_service_pb2.RenewLeaseRequest(job=b.name, worker="stranger", epoch=1), timeout=SECONDS
        ),
        "UNKNOWN_WORKER",
        ["'stranger'"],
    ),
    "deleting an unknown job": (lambda b: b.plain.delete("nobody"), "UNKNOWN_JOB", ["nobody"]),
    # state
    "state of a stranger": (lambda b: b.write(worker="stranger"), "UNKNOWN_WORKER", ["'stranger'"]),
    "state under another epoch": (lambda b: b.write(epoch=9), "ROLLED_BACK", ["epoch 9"]),
    "state without header": (
        lambda b: b.plain.state.WriteState(iter([state_service_pb2.WriteStateRequest()]), timeout=SECONDS),
        "INVALID_REQUEST",
        ["header"],
    ),
    "state that ends without saying so": (
        lambda b: b.plain.state.WriteState(
            iter(
                [
                    state_service_pb2.WriteStateRequest(
                        header=state_service_pb2.WriteStateHeader(job=b.name, worker="plain", epoch=1)
                    ),
                    state_service_pb2.WriteStateRequest(frames=[frame(np.zeros(9, "f4"))]),
                ]
            ),
            timeout=SECONDS,
        ),
        "INVALID_REQUEST",
        ["before its last message"],
    ),
    "state of an unknown field": (
        lambda b: b.write(frame(np.ones(9, "f4"), field="exp_avg")),
        "UNKNOWN_FIELD",
        ["'exp_avg'", "momentum_buffer"],
    ),
    "state of a part": (
        lambda b: b.write(frame(np.ones(8, "f4"), field="momentum_buffer")),
        "INCOMPLETE_PARAMETER",
        ["momentum_buffer of parameter 'b'", "2 of its 3"],
    ),
    "weights of a part, beside whole state": (
        lambda b: b.write(frame(np.ones(9, "f4"), field="momentum_buffer"), frame(np.ones(2), group=1)),
        "INCOMPLETE_PARAMETER",
        ["weights of parameter 'v'"],
    ),
    "steps of too few parameters": (
        lambda b: b.write(groups=[state(0, [1])]),
        "STRUCTURE_MISMATCH",
        ["steps of group 0", "2 values", "got 1"],
    ),
    "steps of a group that is not there": (lambda b: b.write(groups=[state(5, [1])]), "INVALID_REQUEST", ["index 5"]),
    "too many steps": (lambda b: b.write(groups=[state(1, [2**63])]), "INVALID_REQUEST", ["steps"]),
    "entries of too many parameters": (
        lambda b: b.write(groups=[state(1, [1], ("momentum_buffer", [True, True]))]),
        "STRUCTURE_MISMATCH",
        ["momentum_buffer", "1 values", "got 2"],
    ),
    "entries of an unknown field": (
        lambda b: b.write(groups=[state(1, [1], ("exp_avg", [True]))]),
        "UNKNOWN_FIELD",
        ["'exp_avg'"],
    ),
    "entries of the weights": (
        lambda b: b.write(groups=[state(1, [1], ("weights", [True]))]),
        "UNKNOWN_FIELD",
        ["'weights'"],
    ),
    "reading an unknown field": (lambda b: b.plain.read_state(b.name, "exp_avg"), "UNKNOWN_FIELD", ["'exp_avg'"]),
    "reading a parameter without its group": (
        lambda b: next(
            b.plain.state.ReadState(state_service_pb2.ReadStateRequest(job=b.name, parameter="w"), timeout=SECONDS)
        ),
        "INVALID_REQUEST",
        ["without its group"],
    ),
    # inspection
    "groups of an unknown job": (
        lambda b: b.plain.inspection.ListGroups(
            inspection_service_pb2.ListGroupsRequest(job="nobody"), timeout=SECONDS
        ),
        "UNKNOWN_JOB",
        ["nobody"],
    ),
    "too many bins": (
        lambda b: b.inspect("a", statistics=True, bins=1025),
        "INVALID_REQUEST",
        ["bins", "[0, 1024]", "1025"],
    ),
    "parameter of another group": (
        lambda b: b.inspect("a", parameter="v"),
        "UNKNOWN_PARAMETER",
        ["group 'a'", "'v'"],
    ),
}


def create_sync(stage: Stage, workers: int) -> None:
    spec = job_spec(stage.name + ".new", [group("g", {"x": ((1,), "float32")})])
    spec.policy.sync.SetInParent()
    spec.policy.sync.workers = workers
    stage.create(spec, frame(ONE))


def cut(sent: Any) -> Any:
    sent.payload = sent.payload[:-1]
    return sent


def encoded(sent: Any, encoding: int) -> Any:
    sent.encoding = encoding
    return sent


@pytest.mark.parametrize("case", WITH_PLAIN_STUBS)
def test_27_the_server_refuses_it_on_its_own_and_nothing_has_changed(stage: Stage, case: str):
    act, reason, parts = WITH_PLAIN_STUBS[case]
    before = stage.plain.everything(stage.name)
    if reason.endswith("_"):
        with pytest.raises(grpc.RpcError):
            act(stage)
    else:
        with refused(reason, *parts):
            act(stage)
    assert stage.plain.everything(stage.name) == before
    # The worker has lost nothing by it.
    stage.push(frame(np.ones(9, "f4")))


@pytest.mark.parametrize(
    "case",
    [
        case
        for case, (_, reason, _) in WITH_PLAIN_STUBS.items()
        if case.startswith(("push", "gradient", "NaN", "infinity"))
        and reason not in ("UNKNOWN_JOB", "UNKNOWN_WORKER")
        and "header" not in case
        and case != "push of nothing at all"
    ],
)
def test_every_push_that_was_refused_can_be_read_of(stage: Stage, case: str):
    act, reason, parts = WITH_PLAIN_STUBS[case]
    if reason == "MALFORMED_MESSAGE":
        parts = []
    before = dict(stage.plain.rejections(stage.name).counts)
    with refused(reason):
        act(stage)
    told = stage.plain.rejections(stage.name)
    assert dict(told.counts) == before | {reason: before.get(reason, 0) + 1}
    last = told.recent[-1]
    assert (last.worker, last.reason) == ("plain", reason)
    assert all(str(part) in last.message for part in parts)


# Epochs


def test_a_stale_epoch_is_an_error_that_says_who_has_the_name_now(bench: Bench):
    epoch = bench.plain.join(bench.name, "ours")  # as another process does that is called so
    before = bench.plain.everything(bench.name)
    for attempt in (bench.optimizer.step, bench.optimizer.push):
        with pytest.raises(errors.StaleEpoch) as caught:
            attempt(bench.gradients())
        assert all(part in str(caught.value) for part in ("'ours'", bench.name, "epoch 1", "epoch 2"))
    with pytest.raises(errors.StaleEpoch):
        bench.optimizer.pull()
    with pytest.raises(errors.StaleEpoch):
        bench.optimizer.load_state_dict(bench.optimizer.state_dict())
    assert bench.plain.everything(bench.name) == before
    bench.plain.push(header(bench.name, "ours", epoch, 1), [frame(np.ones(9, "f4"))])


def test_state_from_a_worker_that_was_fenced_in_mid_upload_changes_nothing(stage: Stage):
    """The epoch has to hold when the state is put in force, not only when its upload begins."""
    before = stage.plain.everything(stage.name)
    begun, fenced = threading.Event(), threading.Event()

    def requests() -> Iterator[state_service_pb2.WriteStateRequest]:
        head = state_service_pb2.WriteStateHeader(job=stage.name, worker="plain", epoch=1)
        yield state_service_pb2.WriteStateRequest(header=head)
        yield state_service_pb2.WriteStateRequest(frames=[frame(np.zeros(9, "f4"))])
        begun.set()
        fenced.wait(SECONDS)
        yield state_service_pb2.WriteStateRequest(last=True)

    writing = stage.plain.state.WriteState.future(requests(), timeout=SECONDS)
    assert begun.wait(SECONDS)
    # The header has been read, and the epoch been found good, once the room for the upload has been planned.
    deadline = time.monotonic() + SECONDS
    while stage.plain.status().planned_bytes == before["planned"][1]:
        assert time.monotonic() < deadline
    assert stage.plain.join(stage.name, "plain") == 2
    fenced.set()
    with refused("STALE_EPOCH", "epoch 1", "epoch 2"):
        writing.result()
    assert stage.plain.everything(stage.name)["weights"] == before["weights"]
    assert stage.plain.info(stage.name).version == before["info"].version


# Sessions and addresses


def test_a_session_that_is_closed_says_so(server: LocalServer, name: str):
    session = optd.connect(server.address, job=name)
    optimizer = optd.SGD([zeros(1)], session=session)
    session.close()
    for act in (lambda: optimizer.step([zeros(1)]), optimizer.pull, session.info, session.pull):
        with pytest.raises(errors.SessionClosed, match=name):
            act()


def test_no_server_at_the_address_says_where_and_how_long_it_tried():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(errors.Unreachable) as caught:
        optd.connect(address, connect_timeout=0.5)
    assert address in str(caught.value)
    tried = float(caught.value.values["seconds"])
    assert f"tried for {tried:.1f} s" in str(caught.value)
    assert tried <= 0.6
    assert "refused" in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_something_else_at_the_address_says_where_and_how_long_it_tried():
    """It accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(errors.Unreachable) as caught:
            optd.connect(address, connect_timeout=0.5)
    assert address in str(caught.value)
    assert float(caught.value.values["seconds"]) == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1:notaport", errors.InvalidRequest),
        ("no.such.host.invalid:50051", errors.Unavailable),
        ("127.0.0.1:99999", errors.InvalidRequest),
        ("127.0.0.1", errors.InvalidRequest),
        ("http://127.0.0.1:50051", errors.InvalidRequest),
    ],
)
def test_an_address_that_is_none_says_so(address: str, error: type[Exception]):
    with pytest.raises(error) as caught:
        optd.connect(address, connect_timeout=0.5)
    assert address in str(caught.value)


def test_no_address_at_all_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPTD_SERVER", raising=False)
    with pytest.raises(errors.NoAddress, match=r"session=.*server=.*OPTD_SERVER"):
        optd.SGD([zeros(1)])


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(errors.InvalidRequest, match=r"max_requests: .*got .?0"):
        optd.local("--max-requests", "0")


def test_refused_registrations_leave_no_name_behind(bench: Bench):
    """The same name can be created right after, by anybody."""
    for case in ("beta out of range", "one name twice in a group", "integers", "empty groups"):
        with pytest.raises(errors.OptdError):
            WITH_OUR_CLIENT[case][0](bench)
    for case in ("no weights", "a part of the weights", "weights twice", "dtype not given", "a second spec"):
        with pytest.raises(grpc.RpcError):
            WITH_PLAIN_STUBS[case][0](bench)
    bench.new({"x": zeros(1)})
    assert bench.name + ".new" in bench.plain.job_names()


def test_options_of_the_wrong_kind_are_refused_one_by_one(stage: Stage):
    """For every kind of value that is not the option's."""
    before = stage.plain.everything(stage.name)
    values = {"number": 1.0, "flag": True, "text": "x", "none": None, "numbers": (1.0, 2.0)}
    for name, fitting in (("lr", {"number"}), ("nesterov", {"flag"})):
        for kind, value in values.items():
            if kind not in fitting:
                update = option_pb2.GroupUpdate(group="a", options={name: option(value)})
                with refused("INVALID_OPTION", name):
                    request = job_service_pb2.UpdateGroupRequest(job=stage.name, update=update)
                    stage.plain.jobs.UpdateGroup(request, timeout=SECONDS)
    assert stage.plain.everything(stage.name) == before


def test_dtype_numbers_of_this_test_are_all_that_there_are():
    """A dtype that is new belongs into the tables here."""
    assert set(DTYPE_NUMBERS.values()) | {0} == set(
        job_pb2.ParameterSpec.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number
    )
