"""When a script's changes of its weights are sent, and which; where they are not, that it is told. In both faces."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    NonfiniteGradient,
    ShapeMismatch,
    UnknownAverage,
    Unreachable,
)
from optd.local import LocalServer
from optd.registration.contents import MOST_WHOLE
from optd.transport.server_calls import ServerCalls

LARGE = (MOST_WHOLE + 8, 2)


class Numpy:
    """SGD with lr 1 on zeros, in numpy's face; a gradient is a number for all elements."""

    def __init__(self, session: optd.Session, shapes: dict[str, tuple[int, ...]], **options: Any) -> None:
        self.arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.optimizer = optd.SGD(self.arrays, lr=1.0, session=session, **options)

    def gradients(self, **given: float) -> Any:
        return {name: np.full_like(array, given.get(name, 1.0)) for name, array in self.arrays.items()}

    def step(self, **given: float) -> None:
        self.optimizer.step(self.gradients(**given))

    def push(self) -> None:
        self.optimizer.push(self.gradients())

    def add(self, name: str, shape: tuple[int, ...]) -> None:
        self.arrays[name] = np.zeros(shape)
        self.optimizer.add_param_group({"params": {name: self.arrays[name]}})

    def closure_step(self, closure: Callable[[], None]) -> None:
        def evaluate() -> Any:
            closure()
            return 0.0, self.gradients()

        self.optimizer.step(evaluate)


class Torch:
    """The same in torch's; what is written to `arrays` torch does not know of."""

    def __init__(self, session: optd.Session, shapes: dict[str, tuple[int, ...]], **options: Any) -> None:
        self.tensors = {name: torch.nn.Parameter(torch.zeros(shape).double()) for name, shape in shapes.items()}
        self.optimizer = optd.torch.SGD(self.tensors.items(), lr=1.0, session=session, **options)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy() for name, tensor in self.tensors.items()}

    def gradients(self, **given: float) -> None:
        for name, tensor in self.tensors.items():
            tensor.grad = torch.full_like(tensor, given.get(name, 1.0))

    def step(self, **given: float) -> None:
        self.gradients(**given)
        self.optimizer.step()

    def push(self) -> None:
        self.gradients()
        self.optimizer.push()

    def add(self, name: str, shape: tuple[int, ...]) -> None:
        self.tensors[name] = torch.nn.Parameter(torch.zeros(shape).double())
        self.optimizer.add_param_group({"params": [(name, self.tensors[name])]})

    def closure_step(self, closure: Callable[[], None]) -> None:
        def evaluate() -> float:
            closure()
            self.gradients()
            return 0.0

        self.optimizer.step(evaluate)


FACE = pytest.mark.parametrize("face", [Numpy, Torch])
LANE = pytest.mark.parametrize("lane", ["grpc", "shm"])
SHAPES = {"a": (2,), "b": (3,)}


@pytest.fixture
def connect(server: LocalServer, name: str) -> Iterator[Callable[..., optd.Session]]:
    """Opens sessions with one job."""
    opened: list[optd.Session] = []

    def call(worker: str = "w0", lane: str = "grpc", **how: Any) -> optd.Session:
        opened.append(optd.connect(server.address, job=name, worker=worker, lane=lane, **how))
        return opened[-1]

    yield call
    for session in opened:
        session.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many elements each write of weights has sent."""
    counts: list[int] = []
    write = ServerCalls.write_state

    def counted(self: Any, header: Any, numbers: Any, timeout: float) -> Any:
        counts.append(sum(frame.count for batch in numbers() for frame in batch))
        return write(self, header, numbers, timeout)

    monkeypatch.setattr(ServerCalls, "write_state", counted)
    return counts


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def one_warning(*parts: str) -> Iterator[None]:
    """Of the block there is one warning, which has these parts and points into this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1, messages
    assert caught[0].filename == __file__
    for part in parts:
        assert part in messages[0]


def held(session: optd.Session) -> dict[str, Any]:
    return {name: array.tolist() for name, array in session.pull().items()}


# What is sent


@FACE
@LANE
def test_a_step_sends_the_parameters_that_have_changed_and_no_others(
    face: Any, lane: str, connect: Callable, sent: list[int]
) -> None:
    session = connect(lane=lane)
    ours = face(session, {**SHAPES, "large": LARGE})
    with quietly():
        ours.step()
        assert sent == []
        ours.arrays["b"][1] = 5
        ours.step()
        assert sent == [3]
        ours.arrays["large"][:, 1] = 7
        ours.arrays["a"][:] = [1, 2]
        ours.step()
        assert sent == [3, 2 + 2 * LARGE[0]]
        ours.step()
    assert len(sent) == 2
    assert ours.arrays["a"].tolist() == [-1, 0]
    assert ours.arrays["b"].tolist() == [-4, 2, -4]
    assert (ours.arrays["large"] == [-4, 5]).all()
    assert held(session)["b"] == [-4, 2, -4]
    assert ours.optimizer.version == session.info().version.version == 4


@FACE
def test_what_is_put_back_is_not_sent(face: Any, connect: Callable, sent: list[int]) -> None:
    ours = face(connect(), SHAPES)
    with quietly():
        for _ in range(3):
            ours.arrays["a"][:] += 4
            ours.arrays["a"][:] -= 4
            ours.step()
    assert sent == []


@pytest.mark.parametrize(("begins", "times"), [(0, 0), (6, 1)])
def test_of_large_tensors_that_are_put_back_all_of_the_content_tells(
    begins: int, times: int, connect: Callable, sent: list[int]
) -> None:
    """Also where they lie in other memory then. Where it begins late, it is not known at first, and sent."""
    ours = Torch(connect(), {"large": LARGE})
    tensor = ours.tensors["large"]
    with quietly():
        for step in range(12):
            if step >= begins:
                old = tensor.data.clone()
                with torch.no_grad():
                    tensor.add_(1.0)
                tensor.data = old
            ours.step()
    assert (tensor == -12).all()
    assert sent == [LARGE[0] * LARGE[1]] * times


def test_one_element_of_a_large_tensor_that_torch_has_written(connect: Callable, sent: list[int]) -> None:
    """Which no sample has to have."""
    ours = Torch(connect(), {"large": LARGE})
    tensor = ours.tensors["large"]
    with quietly():
        for step in range(12):
            with torch.no_grad():
                tensor[77 * step + 1, 1] = 5.0
            ours.step()
            assert tensor[77 * step + 1, 1] == 4
    assert len(sent) == 12


@FACE
def test_a_push_and_a_closure_send_too(face: Any, connect: Callable, sent: list[int]) -> None:
    session = connect(gradients=optd.Gradients(accumulate=2))
    ours = face(session, SHAPES)
    with quietly():
        ours.arrays["a"][:] = 3
        ours.push()  # the first half of a step
        assert held(session) == {"a": [3, 3], "b": [0, 0, 0]}
        ours.arrays["b"][:] = 4
        ours.step()
        assert held(session) == {"a": [2, 2], "b": [3, 3, 3]}

        def closure() -> None:
            ours.arrays["a"][:] = 9

        ours.closure_step(closure)
        ours.step()
    assert ours.arrays["a"].tolist() == [8, 8]
    assert sent == [2, 3, 2]


@FACE
def test_a_group_that_is_added_drops_nothing(face: Any, connect: Callable) -> None:
    session = connect()
    ours = face(session, SHAPES)
    with quietly():
        ours.arrays["a"][:] = 3
        ours.add("c", (2,))
        assert ours.arrays["a"].tolist() == [3, 3]
        ours.arrays["c"][:] = 4
        ours.arrays["b"][0] = 5
        ours.step()
    assert held(session) == {"a": [2, 2], "b": [4, -1, -1], "c": [3, 3]}


@FACE
def test_a_gradient_that_does_not_fit_is_found_before_anything_is_sent(
    face: Any, connect: Callable, sent: list[int]
) -> None:
    ours = face(connect(), SHAPES)
    ours.arrays["a"][:] = 3
    with pytest.raises(ShapeMismatch):
        if face is Numpy:
            ours.optimizer.step({"a": np.ones(7)})
        else:
            ours.tensors["b"].data = torch.zeros(7).double()
            ours.step()
    assert sent == []
    if face is Torch:
        ours.tensors["b"].data = torch.zeros(3).double()
    with pytest.raises(NonfiniteGradient):  # which the server alone sees
        ours.step(b=np.nan)
    with quietly():
        ours.step()
    assert ours.arrays["a"].tolist() == [2, 2]
    assert sent == [2]


# Pulls


@FACE
def test_a_pull_drops_changes_of_what_it_brings(face: Any, connect: Callable) -> None:
    session = connect()
    ours = face(session, SHAPES)
    ours.step()
    with quietly():
        ours.arrays["a"][:] = ours.arrays["b"][:] = 7
        assert not ours.optimizer.pull(only_if_newer=True)
        assert ours.arrays["a"].tolist() == [7, 7], "nothing newer has come"
        ours.optimizer.pull(parameters="a")
        ours.step()
        assert held(session) == {"a": [-2, -2], "b": [6, 6, 6]}
        ours.arrays["a"][:] = 7
        ours.optimizer.pull()
        ours.step()
    assert held(session) == {"a": [-3, -3], "b": [5, 5, 5]}


@FACE
def test_an_average_in_the_arrays_is_no_change(face: Any, connect: Callable, sent: list[int]) -> None:
    session = connect(averages=optd.EMA(0.5))
    ours = face(session, SHAPES)
    with quietly():
        ours.step()
        ours.step()
        ours.optimizer.pull(weights="ema")
        assert ours.arrays["a"].tolist() == [-1.5, -1.5]
        ours.step()
    ours.optimizer.pull(weights="ema")
    ours.arrays["a"][:] = 8
    with one_warning(
        "parameter 'a' has been changed here", "the arrays hold an average of the weights", "push_weights()"
    ):
        ours.step()
        ours.optimizer.pull(weights="ema")
        ours.arrays["a"][:] = 9
        ours.step()
    assert ours.arrays["a"].tolist() == [-5, -5]
    assert sent == []


# Others


@FACE
@LANE
def test_beside_other_workers_there_is_one_warning(face: Any, lane: str, connect: Callable, sent: list[int]) -> None:
    session = connect(lane=lane)
    ours = face(session, SHAPES)
    other = face(connect("w1"), SHAPES)
    ours.arrays["a"][:] = ours.arrays["b"][:] = 5
    with one_warning(
        "'a' and 1 more has been changed here", "workers 'w1', which take part", "push_weights()", "'ignore'"
    ):
        ours.step()
        assert ours.arrays["a"].tolist() == [-1, -1], "the job's weights have replaced it"
        other.step()
        ours.arrays["a"][:] = 6
        ours.step()
    assert ours.arrays["a"].tolist() == [-3, -3]
    assert session.rejections()[0] == {"OTHER_WORKERS": 1}, "it is asked for once"
    other.optimizer.session.close()
    with quietly():
        ours.arrays["a"][:] = 6
        ours.step()
    assert ours.arrays["a"].tolist() == [5, 5], "it is alone again"


@FACE
def test_steps_of_workers_that_have_left_are_not_undone(face: Any, connect: Callable) -> None:
    session = connect()
    ours, other = face(session, SHAPES), face(connect("w1"), SHAPES)
    other.step()
    other.optimizer.session.close()
    ours.arrays["a"][:] = 5
    with one_warning("the weights of job", "have moved on from version 0, which this worker holds", "pull()"):
        ours.step()
    assert held(session)["a"] == [-2, -2]
    with quietly():
        ours.arrays["a"][:] = 5
        ours.step()
    assert held(session)["a"] == [4, 4]


@FACE
def test_own_pushes_are_not_undone(face: Any, connect: Callable) -> None:
    ours = face(connect(), SHAPES)
    ours.push()
    ours.arrays["a"][:] = 5
    with one_warning("moved on from version 0"):
        ours.step()
    assert ours.arrays["a"].tolist() == [-2, -2]


@FACE
def test_weights_that_somebody_has_written_are_not_undone(face: Any, connect: Callable) -> None:
    ours, other = face(connect(), SHAPES), face(connect("w1"), SHAPES)
    other.arrays["a"][:] = 9
    other.optimizer.push_weights()
    other.optimizer.session.close()
    ours.arrays["b"][:] = 5
    with one_warning("moved on"):
        ours.step()
    assert ours.arrays["a"].tolist() == [8, 8]
    assert ours.arrays["b"].tolist() == [-1, -1, -1]


# Where it is not wanted


@FACE
def test_warn_tells_each_time_and_sends_nothing(face: Any, connect: Callable, sent: list[int]) -> None:
    ours = face(connect(), SHAPES, local_changes="warn")
    for _ in range(2):
        ours.arrays["b"][:] = 5
        with one_warning("'b' has been changed here; the weights of job", "push_weights()", "pull()", "'send'"):
            ours.step()
    assert ours.arrays["b"].tolist() == [-2, -2, -2]
    with quietly():
        ours.step()
    assert sent == []


@FACE
def test_ignore_looks_at_nothing(face: Any, connect: Callable, sent: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr("optd.registration.contents.Contents.__init__", lambda *_, **__: pytest.fail("it looks"))
    ours = face(connect(), SHAPES, local_changes="ignore")
    with quietly():
        ours.arrays["b"][:] = 5
        ours.step()
    assert ours.arrays["b"].tolist() == [-1, -1, -1]
    ours.arrays["b"][:] = 5
    ours.optimizer.push_weights()
    assert sent == [5]


def test_ignore_in_torch_brings_all_weights_after_rows_where_torch_tells_of_a_write(connect: Callable) -> None:
    weight = torch.nn.Parameter(torch.zeros(50, 2))
    optimizer = optd.torch.SGD([weight], lr=1.0, session=connect(), local_changes="ignore")
    for _ in range(2):
        with torch.no_grad():
            weight[7] = 3
        weight.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (50, 2), check_invariants=True)
        optimizer.step()
        assert weight[7].tolist() == [0, 0]


@pytest.mark.parametrize("given", ["Send", "", None, True, 1])
@FACE
def test_other_words_are_refused(face: Any, given: Any, connect: Callable) -> None:
    session = connect()
    with pytest.raises(InvalidRequest) as caught:
        face(session, SHAPES, local_changes=given)
    assert str(caught.value) == f"local_changes must be 'send', 'warn' or 'ignore', got {given!r}"
    face(session, SHAPES)


# Rows


@FACE
@pytest.mark.parametrize("alone", [True, False])
def test_rows_leave_nothing_behind(face: Any, alone: bool, connect: Callable) -> None:
    """Whether changes are sent or dropped: after a step of rows the arrays hold the weights."""
    session = connect()
    ours = face(session, {"t": (200, 2)})
    others = [] if alone else [face(connect("w1"), {"t": (200, 2)})]

    def step(row: int) -> None:
        if face is Numpy:
            ours.optimizer.step({"t": ([row], np.ones((1, 2)))})
        else:
            rows = torch.ones(1, 2, dtype=torch.float64)
            ours.tensors["t"].grad = torch.sparse_coo_tensor([[row]], rows, (200, 2), check_invariants=True)
            ours.optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if others else "error")
        for number in range(4):
            ours.arrays["t"][5] = 4
            step(number)
            assert ours.arrays["t"].tolist() == held(session)["t"]
            assert ours.arrays["t"][5].tolist() == ([4, 4] if alone else [0, 0])


# Faults


@FACE
def test_a_write_whose_answer_is_lost_counts_once(
    face: Any, connect: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = connect()
    ours = face(session, SHAPES)
    write, calls = session._transport.write_state, []

    def lost(*given: Any) -> Any:
        calls.append(write(*given))
        if len(calls) == 1:
            raise ConnectionLost(rpc="WriteState", address="here", problem="gone")
        return calls[-1]

    monkeypatch.setattr(session._transport, "write_state", lost)
    with quietly():
        ours.arrays["a"][:] = 3
        ours.step()
    assert held(session)["a"] == [2, 2]
    assert calls[0] == calls[1], "the second attempt got the first answer"
    with quietly():
        ours.arrays["a"][:] = 3
        ours.step()
    assert held(session)["a"] == [2, 2]


@FACE
def test_a_push_in_doubt_is_settled_first(face: Any, connect: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    session = connect()
    ours = face(session, SHAPES)
    step = session._transport.step

    def late(*given: Any) -> Any:
        step(*given)
        raise DeadlineExceeded(rpc="Step", address="here", seconds="1", hint="")

    monkeypatch.setattr(session._transport, "step", late)
    with pytest.raises(DeadlineExceeded):
        ours.step()
    monkeypatch.undo()
    ours.arrays["a"][:] = 3
    with one_warning("moved on from version 0"):  # by a step that these arrays do not have
        ours.step()
    assert held(session)["a"] == [-2, -2]
    with quietly():
        ours.arrays["a"][:] = 3
        ours.step()
    assert held(session)["a"] == [2, 2]


@FACE
def test_where_weights_cannot_be_sent_there_is_no_step(face: Any, connect: Callable, monkeypatch: Any) -> None:
    session = connect()
    ours = face(session, SHAPES)

    def unreachable(*_: Any) -> Any:
        raise Unreachable(address="there", seconds="1", problem="gone")

    monkeypatch.setattr(session._transport, "write_state", unreachable)
    session.timeout = 0.01
    ours.arrays["a"][:] = 3
    with pytest.raises(Unreachable):
        ours.step()
    assert ours.arrays["a"].tolist() == [3, 3]
    assert session.info().version.version == 0
    monkeypatch.undo()
    session.timeout = 300
    ours.step()
    assert ours.arrays["a"].tolist() == [2, 2]


# Numpy alone


def test_with_zero_copy_the_arrays_of_params_are_not_the_weights(connect: Callable) -> None:
    session = connect(lane="shm")
    ours = Numpy(session, SHAPES, zero_copy=True)
    ours.step()
    assert ours.optimizer.weights["a"].tolist() == [-1, -1]
    with pytest.raises(ValueError, match="read-only"):
        ours.optimizer.weights["a"][0] = 1
    ours.arrays["a"][:] = 5
    with one_warning("with zero_copy the arrays of params do not hold the weights", "push_weights()"):
        ours.step()
        ours.arrays["a"][:] = 6
        ours.step()
    assert ours.optimizer.weights["a"].tolist() == [-3, -3]
    with pytest.raises(InvalidRequest, match=r"do not hold the weights: give push_weights\(\) those to send"):
        ours.optimizer.push_weights()
    ours.optimizer.push_weights({"a": np.array([7.0, 8.0])})
    assert ours.optimizer.weights["a"].tolist() == [7, 8]
    assert ours.optimizer.weights["b"].tolist() == [-3, -3, -3]


def test_with_zero_copy_where_no_memory_is_shared_they_are(connect: Callable) -> None:
    ours = Numpy(connect(), SHAPES, zero_copy=True)
    ours.arrays["a"][:] = 5
    with quietly():
        ours.step()
    assert ours.optimizer.weights["a"].tolist() == [4, 4]


@FACE
def test_after_a_step_that_is_refused_a_change_is_a_change_still(face: Any, connect: Callable) -> None:
    session = connect()
    ours = face(session, SHAPES, local_changes="warn")
    ours.arrays["a"][:] = 5
    for _ in range(2):
        with pytest.raises(NonfiniteGradient), one_warning("parameter 'a' has been changed here"):
            ours.step(b=float("nan"))
    with one_warning("parameter 'a' has been changed here"):
        ours.step()
    assert ours.arrays["a"].tolist() == held(session)["a"] == [-1, -1]


@FACE
def test_weights_that_could_not_be_pushed_are_changes_still(
    face: Any, connect: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = connect()
    ours = face(session, SHAPES)
    ours.arrays["a"][:] = 5

    def refused(*_: Any) -> Any:
        raise Unreachable(address="here", seconds="1", problem="gone")

    with monkeypatch.context() as lost, pytest.raises(Unreachable):
        lost.setattr(session._transport, "write_state", refused)
        lost.setattr(session, "timeout", 0.1)
        ours.optimizer.push_weights()
    with quietly():
        ours.step()
    assert ours.arrays["a"].tolist() == held(session)["a"] == [4, 4]


@FACE
def test_messages_that_round_weights_do_not_carry_changes_of_them(face: Any, connect: Callable) -> None:
    session = connect(encoding="bfloat16")
    ours = face(session, SHAPES)
    ours.step(a=1 / 3, b=1 / 3)
    before = held(session)["b"]
    ours.arrays["b"][0] = 5
    with one_warning("messages carry the weights of job", "in bfloat16", "push_weights()"):
        ours.step(a=0.0, b=0.0)
    assert held(session)["b"] == before, "not rounded"


def test_a_checkpoint_takes_along_what_has_changed_and_nothing_else(connect: Callable) -> None:
    """What another worker has made of the other parameters stays."""
    ours = Torch(connect(), SHAPES)
    ours.step()
    saved = ours.optimizer.state_dict()
    other = Torch(connect("w1"), SHAPES)
    other.step(a=0.0)
    with torch.no_grad():
        ours.tensors["a"].fill_(5)
    ours.optimizer.load_state_dict(saved)
    assert ours.arrays["a"].tolist() == held(ours.optimizer.session)["a"] == [5, 5]
    assert ours.arrays["b"].tolist() == held(ours.optimizer.session)["b"] == [-2, -2, -2]


@FACE
def test_an_average_that_does_not_come_is_in_no_array(face: Any, connect: Callable) -> None:
    session = connect()
    ours = face(session, SHAPES)
    with pytest.raises(UnknownAverage):
        ours.optimizer.pull(weights="ema")
    ours.arrays["a"][:] = 5
    with quietly():
        ours.step()
    assert held(session)["a"] == [4, 4]
