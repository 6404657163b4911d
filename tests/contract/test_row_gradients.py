"""Gradients of some rows of a parameter, as plain stubs send them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from contract.plain import SECONDS, Plain, frame, group, header, job_spec, refused

from optd_wire.v1 import tensor_pb2
from optd_wire.v1.training_service_pb2 import Delivery, PushRequest, StepRequest

ROWS, COLUMNS = 5, 2
PARAMETERS = {"bias": ((3,), "float32"), "table": ((ROWS, COLUMNS), "float32"), "scale": ((), "float32")}
TABLE = np.arange(10, dtype="f4").reshape(ROWS, COLUMNS)
FLOAT32, FLOAT64, TOPK = tensor_pb2.ENCODING_FLOAT32, tensor_pb2.ENCODING_FLOAT64, tensor_pb2.ENCODING_TOPK


def create(plain: Plain, name: str, algorithm: str = "sgd", workers: int = 0, **options: Any) -> None:
    """A job of three parameters, of which the table is 1 in group 0."""
    numbers = np.concatenate([np.zeros(3, "f4"), TABLE.reshape(-1), np.zeros(1, "f4")])
    spec = job_spec(name, [group("g", PARAMETERS)], algorithm=algorithm, workers=workers, **{"lr": 1.0, **options})
    plain.create(spec, [frame(numbers)])


def rows(which: Any, values: Any = None, parameter: int = 1, **changes: Any) -> tensor_pb2.RowFrame:
    numbers = np.ones((len(which), COLUMNS)) if values is None else np.asarray(values)
    fields = {
        "parameter": parameter,
        "count": len(which),
        "encoding": FLOAT32,
        "ids": np.asarray(which, "<u8").tobytes(),
        "payload": numbers.astype("<f4").tobytes(),
        **changes,
    }
    return tensor_pb2.RowFrame(**fields)


def push(plain: Plain, job: str, *messages: Any, worker: str = "w0", sequence: int = 1, epoch: int = 0) -> Any:
    """Messages are lists of frames of both kinds."""
    epoch = epoch or plain.join(job, worker)
    requests = [
        PushRequest(
            rows=[each for each in message if isinstance(each, tensor_pb2.RowFrame)],
            frames=[each for each in message if isinstance(each, tensor_pb2.Frame)],
        )
        for message in messages
    ]
    requests[0].header.CopyFrom(header(job, worker, epoch, sequence))
    requests[-1].last = True
    return plain.training.Push(iter(requests), timeout=SECONDS).result


def table(plain: Plain, job: str) -> np.ndarray:
    return plain.weights(job)["table"]


def test_rows_may_be_counted_over_more_dimensions(plain: Plain, name: str):
    """Elements of a matrix, and rows of it in the same push."""
    create(plain, name)
    push(plain, name, [rows([1, 4], [[1], [2]], sparse_dims=2), rows([4])])
    expected = TABLE.copy()
    expected.reshape(-1)[[1, 4]] -= [1, 2]
    expected[4] -= 1
    assert np.array_equal(table(plain, name), expected)
    with refused("INVALID_REQUEST", "over 3 dimensions"):
        push(plain, name, [rows([0], [[1]], sparse_dims=3)])


def test_rows_are_added_up_and_stepped(plain: Plain, name: str):
    create(plain, name)
    messages = [rows([4, 0], [[1, 2], [3, 4]]), frame(np.ones(3, "f4"))], [rows([4]), rows([])], [rows([2])]
    result = push(plain, name, *messages)
    assert result.applied_version == 1
    expected = TABLE - np.array([[3, 4], [0, 0], [1, 1], [0, 0], [2, 3]])
    assert np.array_equal(table(plain, name), expected)
    assert (plain.weights(name)["bias"] == -1).all()


def test_a_push_sent_again_counts_once(plain: Plain, name: str):
    create(plain, name)
    epoch = plain.join(name)
    for repeat in (False, True):
        assert push(plain, name, [rows([1])], epoch=epoch).repeat is repeat
    assert np.array_equal((table(plain, name) != TABLE).any(1), [False, True, False, False, False])


def test_rows_in_fewer_bytes(plain: Plain, name: str):
    create(plain, name)
    half = rows([3], encoding=tensor_pb2.ENCODING_FLOAT16, payload=np.ones(2, "<f2").tobytes())
    push(plain, name, [half])
    assert np.array_equal(table(plain, name)[3], TABLE[3] - 1)


def test_a_table_without_rows_to_change_counts_a_step(plain: Plain, name: str):
    create(plain, name, "sparse_adam")
    push(plain, name, [rows([])])
    result, _ = plain.read_state(name, "exp_avg")
    assert list(result.groups[0].steps) == [0, 1, 0]
    assert np.array_equal(table(plain, name), TABLE)


def step(plain: Plain, job: str, frames: list[Any], sequence: int, base: int, epoch: int) -> list[Any]:
    """The messages of the answer, of which only what has changed since `base` is wanted."""
    request = StepRequest(rows=frames, last=True, delivery=Delivery(changed=True))
    request.header.CopyFrom(header(job, "w0", epoch, sequence))
    request.header.base_version = base
    return list(plain.training.Step(iter([request]), timeout=SECONDS))


def test_a_step_is_answered_with_what_has_changed(plain: Plain, name: str):
    create(plain, name)
    epoch = plain.join(name)
    for sequence, row in enumerate((4, 0, 2), 1):
        answers = step(plain, name, [rows([row])], sequence, sequence - 1, epoch)
        assert [answer.last for answer in answers] == [True]
        assert answers[0].pulled.version.version == sequence
        (found,) = answers[0].rows
        assert (found.group, found.parameter, found.count, list(answers[0].frames)) == (0, 1, 1, [])
        assert np.frombuffer(found.ids, "<u8").tolist() == [row]
        assert np.array_equal(np.frombuffer(found.payload, "<f4"), TABLE[row] - 1)
    (answer,) = step(plain, name, [rows([])], 4, 1, epoch)
    assert np.frombuffer(answer.rows[0].ids, "<u8").tolist() == [0, 2]


@pytest.mark.parametrize("base", [7, 2**63])
def test_who_says_to_have_weights_that_are_still_to_come_is_refused(plain: Plain, name: str, base: int):
    create(plain, name)
    with refused("FUTURE_VERSION", f"of version {base} of job '{name}', which is at version 0"):
        step(plain, name, [rows([1])], 1, base, plain.join(name))


REFUSED: list[tuple[str, str, list[Any]]] = [
    ("ROW_OUT_OF_RANGE", "must be in [0, 5), got 5", [rows([0, 5])]),
    ("ROW_OUT_OF_RANGE", "got 18446744073709551615", [rows([2**64 - 1])]),
    ("ROW_FRAME_LENGTH", "its payload must have 4 elements", [rows([0, 1], [[1, 2]])]),
    ("ROW_FRAME_LENGTH", "its ids must have 24 bytes", [rows([0, 1], count=3)]),
    ("ROW_FRAME_LENGTH", "its ids must have", [rows([], count=2**63)]),
    ("MALFORMED_MESSAGE", "no multiple of 8", [rows([0], ids=bytes(7))]),
    ("MALFORMED_MESSAGE", "no encoding 99", [rows([0], encoding=99)]),
    ("MALFORMED_MESSAGE", "topk", [rows([0], encoding=TOPK, payload=bytes([9, 0, 0, 0, 0, 0, 0, 0]))]),
    (
        "DTYPE_MISMATCH",
        "'table' must have dtype float32, got float64",
        [rows([0], encoding=FLOAT64, payload=bytes(16))],
    ),
    ("INVALID_REQUEST", "group 7; it must be in [0, 1)", [rows([0], group=7)]),
    ("INVALID_REQUEST", "parameter 3 of group 0; it must be in [0, 3)", [rows([0], parameter=3)]),
    ("INVALID_REQUEST", "'scale' has no rows", [rows([0], parameter=2)]),
    ("INVALID_REQUEST", "'table' whole, and rows of it besides", [rows([0]), frame(TABLE.reshape(-1), offset=3)]),
    ("NONFINITE_GRADIENT", "'table' has nan at flat index 7", [rows([0, 3], [[1, 1], [1, np.nan]])]),
    ("MALFORMED_MESSAGE", "more than 4096 row frames", [rows([])] * 4097),
]


@pytest.mark.parametrize(("reason", "part", "frames"), REFUSED)
def test_rows_that_are_wrong_change_nothing(plain: Plain, name: str, reason: str, part: str, frames: list[Any]):
    create(plain, name)
    with refused(reason, part):
        push(plain, name, [rows([1])], frames)
    assert np.array_equal(table(plain, name), TABLE)


@pytest.mark.parametrize(
    ("algorithm", "options", "frames", "reason", "part"),
    [
        (
            "adam",
            {},
            [rows([1])],
            "ROWS_NOT_TAKEN",
            "adam takes no sparse gradients, and got rows of parameter 'table'",
        ),
        ("adam", {}, [rows([])], "ROWS_NOT_TAKEN", "sgd, sparse_adam, adagrad, lbfgs take them"),
        ("sgd", {"weight_decay": 0.5}, [rows([1])], "ROWS_NEED_ZERO", "sgd: weight_decay must be 0"),
        ("adagrad", {"weight_decay": 0.5}, [rows([1])], "ROWS_NEED_ZERO", "of parameter 'table' with 0.5"),
        ("sparse_adam", {}, [frame(np.ones(3, "f4"))], "ROWS_ONLY", "sparse_adam takes no dense gradients"),
    ],
)
def test_what_torch_refuses_is_refused(plain: Plain, name: str, algorithm, options, frames, reason, part):
    create(plain, name, algorithm, **options)
    with refused(reason, part):
        push(plain, name, frames)
    assert np.array_equal(table(plain, name), TABLE)
    assert plain.rejections(name).counts == {reason: 1}


def pushes(plain: Plain, job: str, *given: list[Any]) -> list[Any]:
    """One push each of workers w0, w1, …, at the same time."""
    epochs = [plain.join(job, f"w{number}") for number in range(len(given))]
    with ThreadPoolExecutor(len(given)) as pool:
        sent = [
            pool.submit(push, plain, job, *messages, worker=f"w{number}", epoch=epoch)
            for number, (messages, epoch) in enumerate(zip(given, epochs, strict=True))
        ]
        return [each.result().applied_version for each in sent]


def test_rows_of_several_workers_are_averaged(plain: Plain, name: str):
    """Over the pushes that have the parameter: one without any rows of it is one of these."""
    create(plain, name, workers=4)
    found = pushes(plain, name, [[rows([0, 1])]], [[rows([1])]], [[rows([])]], [[frame(np.ones(3, "f4"))]])
    assert found == [1, 1, 1, 1]
    expected = TABLE.copy()
    expected[0] -= np.float32(1) * np.float32(1 / 3)
    expected[1] -= np.float32(2) * np.float32(1 / 3)
    assert np.array_equal(table(plain, name), expected)


def test_the_order_of_workers_not_of_arrival_decides_about_bits(plain: Plain, name: str):
    large, small = [[1e8, 1e8]], [[-1e8, 1]]
    for attempt in range(4):
        create(plain, job := f"{name}-{attempt}", workers=3)
        pushes(plain, job, [[rows([0], large)]], [[rows([0], small)]], [[rows([0], [[0.5, 0.5]])]])
        sums = (np.float32(large[0]) + np.float32(small[0])) + np.float32(0.5)
        assert np.array_equal(table(plain, job)[0], TABLE[0] - sums * np.float32(1 / 3))


def test_rows_join_a_whole_gradient_of_another_worker(plain: Plain, name: str):
    create(plain, name, workers=3)
    whole = frame(np.ones(2 * ROWS, "f4"), offset=3)
    pushes(plain, name, [[whole]], [[rows([1])]], [[frame(np.ones(3, "f4"))]])
    expected = TABLE - np.float32(0.5)
    expected[1] -= 0.5
    assert np.array_equal(table(plain, name), expected)


def test_one_refused_push_of_a_round_is_the_one_to_blame(plain: Plain, name: str):
    create(plain, name, "adam", workers=2)
    epochs = [plain.join(name, worker) for worker in ("w0", "w1")]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(push, plain, name, [frame(np.ones(3, "f4"))], worker="w0", epoch=epochs[0])
        with refused("ROWS_NOT_TAKEN"):
            push(plain, name, [rows([1])], worker="w1", epoch=epochs[1])
        push(plain, name, [frame(np.ones(3, "f4"))], worker="w1", epoch=epochs[1])
        other.result()
