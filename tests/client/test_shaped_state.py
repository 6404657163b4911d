"""State that has other shapes than the parameters', through a server: shown, saved, loaded, refused, planned for."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import optd
from optd.local import LocalServer
from optd.transport.numbers import Source
from optd.transport.server_calls import ServerCalls
from optd_wire import errors
from optd_wire.frames import Outgoing
from optd_wire.values import WriteStateHeader

RNG = np.random.default_rng(0)
WEIGHTS = {
    "matrix": RNG.standard_normal((4, 3)).astype(np.float32),
    "vector": RNG.standard_normal(5),
    "stack": RNG.standard_normal((2, 3, 2)),
    "number": np.array(0.5, np.float32),
    "never": RNG.standard_normal((2, 2)).astype(np.float32),
}
ADAFACTOR = {
    "matrix": {"row_var": (4, 1), "col_var": (1, 3)},
    "vector": {"variance": (5,)},
    "stack": {"row_var": (2, 3, 1), "col_var": (2, 1, 2)},
    "number": {"variance": ()},
}


@pytest.fixture
def adafactor(server: LocalServer, name: str) -> Iterator[optd.Optimizer]:
    with optd.connect(server.address, job=name) as session:
        groups = [
            {"name": "ours", "params": {key: array.copy() for key, array in WEIGHTS.items()}},
            {"name": "other", "params": {"last": np.ones((2, 4))}},
        ]
        optimizer = optd.Adafactor(groups, session=session)
        step(optimizer)
        yield optimizer


def step(optimizer: optd.Optimizer) -> None:
    gradients = {key: RNG.standard_normal(array.shape).astype(array.dtype) for key, array in WEIGHTS.items()}
    del gradients["never"]
    optimizer.step({**gradients, "last": RNG.standard_normal((2, 4))})


def states(optimizer: optd.Optimizer) -> dict[str, dict[str, np.ndarray]]:
    names = [*WEIGHTS, "last"]
    return {names[index]: state for index, state in optimizer.state_dict()["state"].items()}


def test_it_is_read_in_its_shapes(adafactor: optd.Optimizer) -> None:
    found = states(adafactor)
    shapes = {
        key: {field: array.shape for field, array in state.items() if field != "step"} for key, state in found.items()
    }
    assert shapes == {**ADAFACTOR, "last": {"row_var": (2, 1), "col_var": (1, 4)}}
    assert found["matrix"]["row_var"].dtype == np.float32
    assert found["stack"]["row_var"].dtype == np.float64


def test_it_is_loaded_as_it_was_saved(adafactor: optd.Optimizer) -> None:
    saved = adafactor.state_dict()
    gradients = {"matrix": np.ones((4, 3), np.float32), "vector": np.ones(5), "stack": np.ones((2, 3, 2))}
    adafactor.step(gradients)
    expected = states(adafactor)
    adafactor.step(gradients)
    adafactor.load_state_dict(saved)
    adafactor.step(gradients)
    for key, state in states(adafactor).items():
        for field, array in state.items():
            np.testing.assert_array_equal(array, expected[key][field], f"{field} of {key}")


@pytest.mark.parametrize(
    ("field", "array", "error", "says"),
    [
        (
            "row_var",
            np.zeros(4, np.float32),
            errors.ShapeMismatch,
            "row_var of parameter 'matrix' must have shape (4, 1), got (4,)",
        ),
        (
            "variance",
            np.zeros((4, 3), np.float32),
            errors.ShapeMismatch,
            "variance of parameter 'matrix' must have shape (0,), got (4, 3)",
        ),
        (
            "col_var",
            np.zeros((1, 3)),
            errors.DtypeMismatch,
            "col_var of parameter 'matrix' must have dtype float32, got float64",
        ),
    ],
)
def test_another_shape_or_dtype_is_refused_and_changes_nothing(
    adafactor: optd.Optimizer, field: str, array: np.ndarray, error: type[Exception], says: str
) -> None:
    before = states(adafactor)
    saved = adafactor.state_dict()
    saved["state"][0][field] = array
    with pytest.raises(error) as caught:
        adafactor.load_state_dict(saved)
    assert str(caught.value) == says
    for key, state in states(adafactor).items():
        for name, numbers in state.items():
            np.testing.assert_array_equal(numbers, before[key][name])


def test_numbers_of_a_parameter_are_kept_as_float32_and_loaded_from_any(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.NAdam({"w": np.ones(3), "b": np.ones((), np.float32)}, lr=0.1, session=session)
        optimizer.step({"w": np.ones(3)})
        state = optimizer.state_dict()["state"]
        assert state.keys() == {0}
        assert (state[0]["mu_product"].shape, state[0]["mu_product"].dtype) == ((), np.float32)
        saved = optimizer.state_dict()
        saved["state"][0]["mu_product"] = np.array(0.25)
        saved["state"][1] = {"step": 3, "mu_product": np.float32(0.5), "exp_avg": np.float32(1)}
        optimizer.load_state_dict(saved)
        state = optimizer.state_dict()["state"]
        assert (state[0]["mu_product"], state[0]["mu_product"].dtype) == (0.25, np.float32)
        assert (state[1]["mu_product"], state[1]["exp_avg"], state[1]["step"]) == (0.5, 1, 3)
        assert "exp_avg_sq" not in state[1]


@pytest.mark.slow
def test_it_is_shown_with_its_own_numbers(adafactor: optd.Optimizer, server: LocalServer) -> None:
    session = adafactor.session
    (report,) = session.parameters("ours", "matrix")
    counts = {field.field: field.statistics.count for field in report.fields}
    assert counts == {"weights": 12, "gradient": 12, "row_var": 4, "col_var": 3}
    for chosen in ([], ["-p", "matrix"], ["-p", "stack"]):
        command = [sys.executable, "-m", "optd.ctl", "group", session.job, "ours", "--values", "--limit", "0"]
        environment = {**os.environ, "OPTD_SERVER": server.address}
        done = subprocess.run([*command, *chosen, "-o", "json"], env=environment, capture_output=True, check=True)
        shown = {(f["parameter"], f["field"]): f["numbers"] for f in json.loads(done.stdout)["values"]["fields"]}
        for key, state in states(adafactor).items():
            for field in state:
                if (key, field) in shown:
                    assert shown[key, field] == state[field].reshape(-1).tolist()
        assert ("stack", "col_var") in shown or chosen == ["-p", "matrix"]


def test_memory_is_planned_for_its_shapes(server: LocalServer, name: str) -> None:
    def planned(cls: type[optd.Optimizer]) -> int:
        with optd.connect(server.address, job=f"{name}-{cls.__name__}") as session:
            cls({"w": np.zeros((100, 50), np.float32)}, session=session)
            transport = ServerCalls.over_grpc(server.address)
            (job,) = [job for job in transport.list_jobs(20) if job.name == session.job]
            transport.close()
            return job.planned_bytes

    assert planned(optd.Adafactor) - planned(optd.SGD) == 4 * (100 + 50)
    assert planned(optd.NAdam) - planned(optd.Adam) == 4


def test_a_group_that_is_added_while_state_is_written_is_none_of_its_business(
    server: LocalServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        optd.connect(server.address, job=name, worker="w0") as session,
        optd.connect(server.address, job=name, worker="w1") as other,
    ):
        optimizer = optd.NAdam({"w": np.ones(3)}, lr=0.1, session=session)
        second = optd.NAdam({"w": np.ones(3)}, lr=0.1, session=other)
        optimizer.step({"w": np.ones(3)})
        saved = optimizer.state_dict()
        optimizer.step({"w": np.ones(3)})
        write = session.write_state

        def write_slowly(header: WriteStateHeader, numbers: Source) -> object:
            def with_a_group() -> Iterator[Sequence[Outgoing]]:
                yield from numbers()
                second.add_param_group({"params": {"head": np.ones(2)}})

            return write(header, with_a_group)

        monkeypatch.setattr(session, "write_state", write_slowly)
        optimizer.load_state_dict(saved)
        state = second.state_dict()["state"]
        assert state.keys() == {0}
        for field, numbers in saved["state"][0].items():
            np.testing.assert_array_equal(state[0][field], numbers)
        second.step({"w": np.ones(3), "head": np.ones(2)})
