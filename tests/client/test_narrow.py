"""Parameters of 16 bits through a whole server: every lane, every encoding, beside parameters of other dtypes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.client.frozen import Frozen
from typer.testing import CliRunner

import optd
from optd.ctl.app import app
from optd.local import LocalServer
from optd_wire.errors import DtypeMismatch, InvalidRequest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LANES = {
    "grpc": {"lane": "grpc"},
    "shm": {"lane": "shm"},
    **{name: {"lane": "grpc", "encoding": name} for name in ("bfloat16", "float16", "int8", "topk:0.5")},
}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with optd.local() as started:
        yield started


def session(server: LocalServer, job: str, **how: Any) -> optd.Session:
    return optd.connect(server.address, job=job, worker="w", **how)


def mixed() -> dict[str, np.ndarray]:
    """One group: its flat buffer has four segments."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 5), "b": (), "c": (0,), "d": (700,), "e": (4,), "f": (2, 3)}
    dtypes = {"a": BFLOAT16, "b": "f2", "c": BFLOAT16, "d": BFLOAT16, "e": "f4", "f": "f8"}
    return {name: np.asarray(rng.standard_normal(shape), dtypes[name]) for name, shape in shapes.items()}


def gradients(params: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(array.shape), array.dtype) for name, array in params.items()}


def stepped(params: dict[str, np.ndarray], steps: int, lr: float) -> dict[str, np.ndarray]:
    """Plain gradient descent, in float32 and rounded."""
    for seed in range(steps):
        for name, gradient in gradients(params, seed).items():
            wide = np.float64 if params[name].dtype == np.float64 else np.float32
            new = params[name].astype(wide) - gradient.astype(wide) * wide(lr)
            params[name] = new.astype(params[name].dtype)
    return params


@pytest.mark.parametrize("lane", LANES)
def test_every_lane_and_encoding_carries_them(server: LocalServer, lane: str) -> None:
    params, expected = mixed(), stepped(mixed(), 3, 0.1)
    exact = "encoding" not in LANES[lane]
    with session(server, f"carried-{lane.replace(':', '-')}", **LANES[lane]) as opened:
        optimizer = optd.SGD(params, lr=0.1, session=opened)
        assert lane != "shm" or opened.lane == "shm"
        for seed in range(3):
            optimizer.step(gradients(params, seed))
        pulled = opened.pull()
        for name, array in expected.items():
            assert pulled[name].dtype == params[name].dtype == array.dtype
            if exact:
                assert params[name].tobytes() == array.tobytes() == pulled[name].tobytes()
            elif lane != "topk:0.5":
                np.testing.assert_allclose(params[name].astype("f8"), array.astype("f8"), atol=0.05)
        rows = optimizer.pull_rows("a", [2, 0])
        assert rows.dtype == BFLOAT16
        np.testing.assert_allclose(rows.astype("f8"), params["a"][[2, 0]].astype("f8"), atol=0.05)


def test_what_they_gain_nothing_by_leaves_them_as_they_are(server: LocalServer) -> None:
    """An encoding of other 16 bits: the numbers travel as they are."""
    params = {"half": np.array([1 + 2**-10, 65504], "f2"), "brain": np.array([3e38, 1], BFLOAT16)}
    expected = {name: array.copy() for name, array in params.items()}
    for encoding in ("bfloat16", "float16"):
        with session(server, f"kept-{encoding}", lane="grpc", encoding=encoding) as opened:
            optimizer = optd.SGD(params, lr=1.0, session=opened)
            optimizer.step({name: np.zeros_like(array) for name, array in params.items()})
            for name, array in params.items():
                assert array.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_gradients_may_be_of_float32(server: LocalServer, lane: str) -> None:
    """Beside one of 16 bits in the same segment, and not rounded on the way."""
    params = {"a": np.ones(3, BFLOAT16), "b": np.ones(3, BFLOAT16), "c": np.ones(2, "f2")}
    given = {"a": np.full(3, 1 + 2**-12, "f4"), "b": np.ones(3, BFLOAT16), "c": np.full(2, 1 + 2**-20, "f4")}
    with session(server, f"wide-{lane}", lane=lane) as opened:
        optimizer = optd.SGD(params, lr=1.0, momentum=0.5, session=opened)
        optimizer.step(given)
        state = optimizer.state_dict()["state"]
        assert [state[index]["momentum_buffer"].tolist() for index in range(3)] == [
            array.astype("f4").tolist() for array in given.values()
        ]
        with pytest.raises(DtypeMismatch, match=r"gradient.*'a'.*bfloat16.*float16"):
            optimizer.step({**given, "a": np.ones(3, "f2")})


def test_zero_copy_gives_gradients_of_float32(server: LocalServer) -> None:
    params = mixed()
    with session(server, "zero-copy", lane="shm") as opened:
        optimizer = optd.SGD(params, lr=0.1, session=opened, zero_copy=True)
        for seed in range(3):
            for name, gradient in gradients(params, seed).items():
                optimizer.gradients[name][...] = gradient
            optimizer.step()
        assert {str(optimizer.gradients[name].dtype) for name in "abd"} == {"float32"}
        for name, array in stepped(mixed(), 3, 0.1).items():
            assert np.asarray(optimizer.params[name]).tobytes() == array.tobytes()


def test_several_pushes_of_a_round_are_averaged_in_float32(server: LocalServer) -> None:
    job = "round"
    with (
        optd.connect(server.address, job=job, worker="a", policy=optd.Sync(workers=2)) as first,
        optd.connect(server.address, job=job, worker="b", lane="grpc") as second,
    ):
        optimizers = [optd.SGD({"w": np.zeros(2, "f2")}, lr=1.0, session=each) for each in (first, second)]
        with ThreadPoolExecutor() as pool:
            pushes = [
                pool.submit(optimizer.step, {"w": np.array(gradient, "f2")})
                for optimizer, gradient in zip(optimizers, ([65504, 1], [65504, 2**-11]), strict=True)
            ]
            for push in pushes:
                push.result()
        # Their sum is past the largest float16.
        assert optimizers[0].params["w"].tolist() == [-65504, np.float16(-(1 + 2**-11) / 2)]


@pytest.mark.parametrize("how", [LANES["grpc"], LANES["shm"], LANES["bfloat16"], LANES["int8"]], ids=str)
@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype("f4")], ids=["own", "float32"])
def test_gradients_of_some_rows(server: LocalServer, how: dict[str, str], dtype: np.dtype) -> None:
    params = {"table": np.ones((50, 4), BFLOAT16), "w": np.ones(3, "f2")}
    rows = np.arange(12).reshape(3, 4).astype(dtype)
    with session(server, f"rows-{dtype}-{'-'.join(how.values())}", **how) as opened:
        optimizer = optd.SGD(params, lr=0.5, master_weights=True, session=opened)
        optimizer.step({"table": ([7, 2, 7], rows), "w": np.ones(3, "f2")})
        expected = np.ones((50, 4))
        np.subtract.at(expected, [7, 2, 7], rows.astype("f8") / 2)
        np.testing.assert_allclose(params["table"].astype("f8"), expected, atol=0.1)
        state = optimizer.state_dict()["state"][0]["master_weights"]
        np.testing.assert_allclose(state, expected, atol=0.1)
        # In int8 weights come rounded once more.
        assert how.get("encoding") == "int8" or state.astype(BFLOAT16).tobytes() == params["table"].tobytes()
        with pytest.raises(DtypeMismatch, match=r"gradient of rows.*'table'.*bfloat16.*float64"):
            optimizer.step({"table": ([7], np.ones((1, 4)))})


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_they_are_clipped_in_float32(server: LocalServer, lane: str) -> None:
    params = {"a": np.zeros(2, "f2"), "b": np.zeros(2, BFLOAT16)}
    with session(server, f"clipped-{lane}", lane=lane, gradients=optd.Gradients(clip_norm=1.0)) as opened:
        optimizer = optd.SGD(params, lr=1.0, master_weights=True, session=opened)
        optimizer.step({"a": np.array([30000, 0], "f2"), "b": np.array([0, 40000], BFLOAT16)})
        state = optimizer.state_dict()["state"]
        brain = float(BFLOAT16.type(40000))
        norm = np.hypot(30000, brain) + 1e-6
        np.testing.assert_allclose(state[0]["master_weights"], [-30000 / norm, 0], rtol=1e-6)
        np.testing.assert_allclose(state[1]["master_weights"], [0, -brain / norm], rtol=1e-6)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("master_weights", [False, True])
def test_gradients_that_are_accumulated_add_up_in_float32(server: LocalServer, lane: str, master_weights: bool) -> None:
    params = {"w": np.zeros(3, "f2"), "b": np.zeros((), BFLOAT16), "table": np.zeros((9, 2), BFLOAT16)}
    pushes = [
        {"w": [65504, 1, 0], "b": 256, "table": ([4, 1], np.full((2, 2), 256.0))},
        {"w": [65504, 2**-11, 0], "b": 1, "table": ([4], np.ones((1, 2)))},
        # Half as many examples; "b" has no gradient.
        {"w": [65504, 0, 2**-24], "table": ([4], np.ones((1, 2)))},
    ]
    with session(
        server, f"accumulated-{lane}-{master_weights}", lane=lane, gradients=optd.Gradients(accumulate=3)
    ) as opened:
        optimizer = optd.SGD(params, lr=1.0, master_weights=master_weights, session=opened)
        for push, weight in zip(pushes, [1, 1, 0.5], strict=True):
            given = {name: np.asarray(push[name], params[name].dtype) for name in push if name != "table"}
            ids, rows = push["table"]
            optimizer.step({**given, "table": (ids, rows.astype(BFLOAT16))}, weight=weight)
        assert optimizer.version == 1
        state = optimizer.state_dict()["state"]
    # No sum of these is a number of 16 bits; but for float32 the first would be infinite and the others rounded.
    expected = {
        "w": [-65504, -(1 + 2**-11) / 2.5, -(2**-25) / 2.5],
        "b": -257 / 2,
        "table": [[0, 0], [-256 / 2.5] * 2, [0, 0], [0, 0], [-257.5 / 2.5] * 2, *[[0, 0]] * 4],
    }
    for index, (name, array) in enumerate(params.items()):
        exact = np.asarray(expected[name])
        assert array.tolist() == exact.astype("f4").astype(array.dtype).tolist()
        if master_weights:
            np.testing.assert_allclose(state[index]["master_weights"], exact, rtol=3e-7)


def test_arrays_that_cannot_be_changed_are_renewed(server: LocalServer) -> None:
    """As those of JAX: of its bfloat16, which is the same."""
    with session(server, "frozen") as opened:
        optimizer = optd.SGD({"w": Frozen(np.ones(3), BFLOAT16)}, lr=0.5, session=opened)
        optimizer.step({"w": Frozen(np.ones(3), BFLOAT16)})
        new = optimizer.params["w"]
        assert isinstance(new, Frozen)
        assert np.asarray(new).dtype == BFLOAT16
        assert np.asarray(new).tolist() == [0.5] * 3


def test_people_see_their_numbers(server: LocalServer) -> None:
    params = {"w": np.array([1, -2, 0], BFLOAT16), "v": np.array([4], "f2")}
    with session(server, "seen") as opened:
        optimizer = optd.SGD(params, lr=0.5, momentum=0.5, master_weights=True, session=opened)
        optimizer.step({name: np.ones_like(array) for name, array in params.items()})
        shown = CliRunner().invoke(
            app, ["group", "seen", "group0", "--values", "-o", "json", "--server", server.address]
        )
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["group"]["dtypes"] == ["float16", "bfloat16"]
    values = {(field["parameter"], field["field"]): field["numbers"] for field in found["values"]["fields"]}
    assert values["w", "weights"] == values["w", "master_weights"] == [0.5, -2.5, -0.5]
    assert values["v", "weights"] == [3.5]
    assert values["w", "gradient"] == values["w", "momentum_buffer"] == [1, 1, 1]
    (weights,) = [f for p in found["parameters"] if p["parameter"]["name"] == "w" for f in p["fields"][:1]]
    assert (weights["statistics"]["min"], weights["statistics"]["max"]) == (-2.5, 0.5)


def test_a_group_that_is_added_has_them_too(server: LocalServer) -> None:
    w, v = np.ones(3, "f4"), np.ones(3, "f2")
    with session(server, "added", lane="shm") as opened:
        optimizer = optd.SGD([{"params": {"w": w}}], lr=2.0**-13, session=opened)
        optimizer.push({"w": np.ones(3, "f4")})
        optimizer.add_param_group({"params": {"v": v}, "master_weights": True})
        for _ in range(3):
            optimizer.step({"w": np.ones(3, "f4"), "v": np.ones(3, "f2")})
        optimizer.step({"w": np.ones(3, "f4")})
        assert optimizer.state_dict()["state"][1]["master_weights"].tolist() == [1 - 3 * 2.0**-13] * 3
        assert v.tolist() == [np.float16(1 - 3 * 2.0**-13)] * 3
        optimizer.param_groups[1]["master_weights"] = False
        optimizer.step({"v": np.zeros(3, "f2")})
        assert "master_weights" not in optimizer.state_dict()["state"].get(1, {})


# State


def test_state_is_float32_and_loads_from_either(server: LocalServer) -> None:
    params = {"w": np.ones(4, BFLOAT16), "v": np.ones(2, "f4")}
    with session(server, "state") as opened:
        optimizer = optd.Adam(params, lr=0.1, session=opened)
        optimizer.step(gradients(params, 0))
        state = optimizer.state_dict()
        assert {str(state["state"][0][name].dtype) for name in ("exp_avg", "exp_avg_sq")} == {"float32"}
        narrow = {**state["state"][0], "exp_avg": state["state"][0]["exp_avg"].astype(BFLOAT16)}
        optimizer.load_state_dict({**state, "state": {**state["state"], 0: narrow}})
        again = optimizer.state_dict()["state"]
        assert again[0]["exp_avg"].tolist() == narrow["exp_avg"].astype("f4").tolist()
        assert again[0]["exp_avg_sq"].tolist() == state["state"][0]["exp_avg_sq"].tolist()
        with pytest.raises(DtypeMismatch, match=r"exp_avg.*'w'.*float32.*float64"):
            wrong = {**narrow, "exp_avg": np.ones(4)}
            optimizer.load_state_dict({**state, "state": {**state["state"], 0: wrong}})


@pytest.mark.parametrize("algorithm", ["adafactor", "asgd"])
def test_state_of_other_shapes_goes_both_ways(server: LocalServer, algorithm: str) -> None:
    params = mixed() if algorithm == "asgd" else {n: a for n, a in mixed().items() if a.size}
    with session(server, f"shapes-{algorithm}") as opened:
        optimizer = optd.Optimizer(algorithm, params, lr=0.1, session=opened)
        optimizer.step(gradients(params, 0))
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        again = optimizer.state_dict()
        for index, entries in state["state"].items():
            for name, value in entries.items():
                np.testing.assert_array_equal(again["state"][index][name], value)
                assert np.asarray(value).dtype != BFLOAT16


# Master weights


def test_master_weights_are_state_that_can_be_seen_and_loaded(server: LocalServer) -> None:
    params = {"w": np.ones(3, "f2"), "v": np.ones(2, "f4")}
    given = {"w": np.ones(3, "f2"), "v": np.ones(2, "f4")}
    with session(server, "masters") as opened:
        optimizer = optd.SGD(params, lr=2.0**-13, master_weights=True, session=opened)
        for _ in range(3):
            optimizer.step(given)
        state = optimizer.state_dict()
        assert state["state"][0]["master_weights"].tolist() == [1 - 3 * 2.0**-13] * 3
        assert "master_weights" not in state["state"].get(1, {})
        (report,) = [report for report in opened.parameters("group0") if report.parameter.name == "w"]
        assert [field.field for field in report.fields] == ["weights", "gradient", "master_weights"]
        optimizer.load_state_dict(state)
        optimizer.step(given)
        assert optimizer.state_dict()["state"][0]["master_weights"].tolist() == [1 - 4 * 2.0**-13] * 3
        assert params["w"].tolist() == [np.float16(1 - 4 * 2.0**-13)] * 3
        stray = {0: state["state"][0], 1: {"step": 1, "master_weights": np.ones(2, "f4")}}
        with pytest.raises(InvalidRequest, match="parameter 'v' of float32 has no master_weights"):
            optimizer.load_state_dict({**state, "state": stray})


def test_weights_that_are_written_leave_no_stale_master_weights(server: LocalServer) -> None:
    params = {"w": np.array([1, 1, 1], "f2")}
    with session(server, "written") as opened:
        optimizer = optd.SGD(params, lr=2.0**-13, master_weights=True, session=opened)
        optimizer.step({"w": np.ones(3, "f2")})
        # Two elements are others than before; the third is what its master weight rounds to.
        params["w"][:2] = [5, -7]
        optimizer._registration.write_weights()
        assert optimizer.state_dict()["state"][0]["master_weights"].tolist() == [5, -7, 1 - 2.0**-13]
        # Loaded ones count only where they round to the weights, which stay as they are.
        state = optimizer.state_dict()
        state["state"][0]["master_weights"] = np.array([9, -7 + 2.0**-12, 1], "f4")
        optimizer.load_state_dict(state)
        assert optimizer.state_dict()["state"][0]["master_weights"].tolist() == [5, -7 + 2.0**-12, 1]
        optimizer.pull()
        assert params["w"].tolist() == [5, -7, 1]


def test_master_weights_are_planned_in_memory(server: LocalServer) -> None:
    def planned(job: str, dtype: str, **options: Any) -> int:
        with session(server, job, lane="grpc") as opened:
            optimizer = optd.SGD({"w": np.ones(1000, dtype)}, lr=0.1, session=opened, **options)
            del optimizer
            (summary,) = [each for each in opened._transport.list_jobs(5.0) if each.name == job]
            return summary.planned_bytes

    without = planned("planned-0", "f2")
    assert planned("planned-1", "f2", master_weights=True) == without + 4000
    assert planned("planned-2", "f2", momentum=0.9, master_weights=True) == without + 8000
    assert planned("planned-3", "f4", master_weights=True) == planned("planned-4", "f4")
    # Three snapshots, and the gradients of an async job, in float32.
    assert planned("planned-5", "f4") - without == 3 * 2000
