"""LBFGS through a server, in both faces: the closure is called as often as torch calls it, at the same points."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import optd
import optd.torch
from optd.ctl.app import app
from optd.local import LocalServer
from optd_wire import errors
from optd_wire.values import GroupState, StateEntries, WriteStateHeader

SEARCH = pytest.mark.parametrize("search", [None, "strong_wolfe"])


class Fit:
    """A small regression that is not linear, in torch; and its loss and gradients for numpy."""

    def __init__(self, rows: slice = slice(None), dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x, self.y = (torch.randn(24, n, generator=generator, dtype=dtype)[rows] for n in (4, 2))
        layers = torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
        self.model = torch.nn.Sequential(*layers).to(dtype)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))

    def loss(self) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.model(self.x), self.y) + sum(
            (p**2).sum() / 100 for p in self.model.parameters()
        )

    def closure(self, optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
        def evaluate() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return evaluate

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy().copy() for name, p in self.model.named_parameters()}

    def numpys(self, arrays: dict[str, np.ndarray]) -> Callable[[], tuple[float, dict[str, np.ndarray]]]:
        """Loss and gradients at what the arrays hold."""

        def evaluate() -> tuple[float, dict[str, np.ndarray]]:
            named = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(torch.from_numpy(arrays[name]))
                    parameter.grad = None
            loss = self.loss()
            loss.backward()
            return float(loss.detach()), {name: p.grad.numpy() for name, p in named.items()}

        return evaluate


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-9) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance)


@SEARCH
@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_both_faces_train_as_torch_does(server: LocalServer, name: str, search: str | None, lane: str) -> None:
    theirs, ours, third = Fit(), Fit(), Fit()
    arrays = third.arrays()
    options: dict[str, Any] = {"lr": 0.3, "max_iter": 6, "history_size": 4, "line_search_fn": search}
    reference = torch.optim.LBFGS(theirs.model.parameters(), **options)
    with (
        optd.connect(server.address, job=f"{name}-torch", lane=lane) as one,
        optd.connect(server.address, job=f"{name}-numpy", lane=lane) as two,
    ):
        torchs = optd.torch.LBFGS(ours.model.parameters(), session=one, **options)
        numpys = optd.LBFGS(arrays, session=two, **options)
        for step in range(4):
            if step == 2:
                for optimizer in (reference, torchs, numpys):
                    optimizer.param_groups[0]["lr"] = 0.5
            expected = reference.step(theirs.closure(reference))
            assert float(torchs.step(ours.closure(torchs))) == pytest.approx(float(expected), rel=1e-9)
            assert numpys.step(third.numpys(arrays)) == pytest.approx(float(expected), rel=1e-9)
            close(ours.arrays(), theirs.arrays())
            close(arrays, theirs.arrays())
        evaluations = reference.state_dict()["state"][0]["func_evals"]
        assert torchs.version == numpys.version == evaluations
        assert torchs.state_dict()["state"][0]["func_evals"] == evaluations
        assert numpys.state_dict()["state"][0]["func_evals"] == evaluations


def test_a_checkpoint_goes_on_in_a_new_job(server: LocalServer, name: str) -> None:
    fit, again = Fit(), Fit()
    arrays = fit.arrays()
    options: dict[str, Any] = {"max_iter": 5, "history_size": 3, "line_search_fn": "strong_wolfe"}
    with optd.connect(server.address, job=name) as one, optd.connect(server.address, job=f"{name}-resumed") as two:
        first = optd.LBFGS(arrays, session=one, **options)
        for _ in range(3):
            first.step(fit.numpys(arrays))
        saved = first.state_dict()
        assert len(saved["state"][0]["old_dirs"]) == 3
        resumed = {key: array.copy() for key, array in arrays.items()}
        second = optd.LBFGS(resumed, session=two, **options)
        second.load_state_dict(saved)
        for _ in range(3):
            first.step(fit.numpys(arrays))
            second.step(again.numpys(resumed))
        close(resumed, arrays, 1e-12)
        with pytest.raises(errors.ShapeMismatch, match="d of parameter"):
            second.load_state_dict({**saved, "state": {0: {**saved["state"][0], "d": np.zeros(3)}}})


def test_two_workers_share_a_step_of_the_mean_of_their_losses(server: LocalServer, name: str) -> None:
    whole, halves = Fit(), [Fit(slice(None, 12)), Fit(slice(12, None))]
    options: dict[str, Any] = {"lr": 0.5, "max_iter": 5, "line_search_fn": "strong_wolfe"}
    reference = torch.optim.LBFGS(whole.model.parameters(), **options)
    policy = optd.Sync(workers=2)
    with (
        optd.connect(server.address, job=name, worker="w0", policy=policy) as one,
        optd.connect(server.address, job=name, worker="w1") as two,
        ThreadPoolExecutor() as pool,
    ):
        optimizers = [
            optd.torch.LBFGS(half.model.parameters(), session=session, **options)
            for half, session in zip(halves, (one, two), strict=True)
        ]
        for _ in range(3):
            reference.step(whole.closure(reference))
            waiting = [
                pool.submit(optimizer.step, half.closure(optimizer))
                for half, optimizer in zip(halves, optimizers, strict=True)
            ]
            for each in waiting:
                each.result(timeout=60)
            for half in halves:
                close(half.arrays(), whole.arrays(), 1e-7)


class Gone(Exception):
    """What ends an evaluation half-way."""


def breaks_off(evaluate: Callable[[], Any], at: int) -> Callable[[], Any]:
    """A closure that raises at the call of some number."""
    calls = iter(range(1, 1000))

    def closure() -> Any:
        if next(calls) == at:
            raise Gone
        return evaluate()

    return closure


def test_a_step_that_was_broken_off_is_over_and_the_next_one_begins_where_it_was(
    server: LocalServer, name: str
) -> None:
    fit = Fit()
    arrays = fit.arrays()
    with optd.connect(server.address, job=name) as session, pytest.raises(Gone):
        optd.LBFGS(arrays, max_iter=6, lr=0.1, session=session).step(breaks_off(fit.numpys(arrays), 4))
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.LBFGS(arrays, max_iter=6, lr=0.1, session=session)
        assert optimizer.version == 3
        optimizer.param_groups[0]["lr"] = 0.05
        alone = {key: array.copy() for key, array in arrays.items()}
        optimizer.step(fit.numpys(arrays))
        assert optimizer.version == 9
    with optd.connect(server.address, job=f"{name}-alone") as other:
        optd.LBFGS(alone, max_iter=6, lr=0.05, session=other).step(fit.numpys(alone))
        close(arrays, alone, 1e-12)


def test_an_evaluation_of_weights_that_were_replaced_meanwhile_is_stale(server: LocalServer, name: str) -> None:
    fit = Fit()
    arrays = fit.arrays()
    with (
        optd.connect(server.address, job=name, worker="w0") as session,
        optd.connect(server.address, job=name, worker="w1") as writer,
    ):
        optimizer = optd.LBFGS(arrays, max_iter=6, lr=0.1, session=session)
        tensors = {key: torch.tensor(array) for key, array in arrays.items()}
        other = optd.torch.LBFGS(list(tensors.items()), max_iter=6, lr=0.1, session=writer)
        calls = iter(range(1, 100))

        def replaced() -> Any:
            if next(calls) == 3:
                other.push_weights()
            return fit.numpys(arrays)()

        with pytest.raises(errors.StaleEvaluation, match=r"'w0' has evaluated those before they were written anew"):
            optimizer.step(replaced)
        optimizer.pull()
        optimizer.step(fit.numpys(arrays))


def test_state_that_is_not_whole_is_refused(server: LocalServer, name: str) -> None:
    fit = Fit()
    arrays = fit.arrays()
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.LBFGS(arrays, max_iter=6, lr=0.1, session=session)
        optimizer.step(fit.numpys(arrays))
        saved = optimizer.state_dict()
        state = saved["state"][0]
        uneven = {**saved, "state": {0: {**state, "old_stps": state["old_stps"][1:]}}}
        with pytest.raises(errors.InvalidRequest, match=r"^state of lbfgs must have as many old_dirs as old_stps, got"):
            optimizer.load_state_dict(uneven)
        for missing in ("t", "prev_loss", "prev_flat_grad", "old_dirs", "n_iter", "func_evals", "d"):
            without = {field: value for field, value in state.items() if field != missing}
            with pytest.raises(errors.InvalidRequest, match=rf"^state of lbfgs must have {missing} with the rest$"):
                optimizer.load_state_dict({**saved, "state": {0: without}})
        some = tuple(place > 0 for place in range(len(arrays)))
        for present, says in (
            ((True,) * len(arrays), "d with the rest"),
            (some, "prev_flat_grad of all par"),
        ):
            entries = StateEntries("prev_flat_grad", present)
            groups = (GroupState(0, (1,) * len(arrays), (entries,)),)
            with pytest.raises(errors.InvalidRequest, match=rf"^state of lbfgs must have {says}"):
                session.write_state(WriteStateHeader(name, session.worker, session.epoch, groups), lambda: iter([]))
        optimizer.step(fit.numpys(arrays))


def test_what_a_step_holds_beside_its_state_is_planned(server: LocalServer, name: str) -> None:
    count = 1000
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.LBFGS({"w": np.ones(count)}, history_size=3, max_iter=2, session=session)

        def planned() -> int:
            return next(job.planned_bytes for job in session._transport.list_jobs(10) if job.name == name)

        before = planned()
        optimizer.param_groups[0]["max_iter"] = 3
        optimizer.step(lambda: (1.0, {"w": np.ones(count)}))
        # A pair more that may come in one step.
        assert planned() - before == 2 * 8 * count
    assert before > (2 * 3 + 2 + 2 * 2) * 8 * count


def test_an_average_takes_in_the_ends_of_steps_only(server: LocalServer, name: str) -> None:
    fit = Fit()
    arrays = fit.arrays()
    with optd.connect(server.address, job=name, averages=optd.EMA(0.5)) as session:
        optimizer = optd.LBFGS(arrays, max_iter=4, lr=0.1, session=session)
        expected = None
        for _ in range(3):
            optimizer.step(fit.numpys(arrays))
            now = {key: array.copy() for key, array in arrays.items()}
            expected = now if expected is None else {key: 0.5 * (expected[key] + now[key]) for key in now}
        assert session.info().averages[0].updates == 3
        close(session.pull(weights="ema"), expected, 1e-12)


def test_by_its_name_it_steps_through_a_closure_too(server: LocalServer, name: str) -> None:
    fit, twin = Fit(), Fit()
    arrays, reference = fit.arrays(), torch.optim.LBFGS(twin.model.parameters(), max_iter=5)
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.Optimizer("lbfgs", arrays, max_iter=5, session=session)
        optimizer.step(fit.numpys(arrays))
        reference.step(twin.closure(reference))
        close(arrays, twin.arrays())
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        optimizer.step(fit.numpys(arrays))
        reference.step(twin.closure(reference))
        close(arrays, twin.arrays())


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_a_search_turns_round_where_there_are_no_numbers(server: LocalServer, name: str, lane: str) -> None:
    arrays = {"w": np.array([3.0, -1.0, 0.5])}

    def walled() -> Any:
        inside = bool((np.abs(arrays["w"]) < 3.5).all())
        gradient = 4 * (arrays["w"] - 1) ** 3
        return (float(((arrays["w"] - 1) ** 4).sum()) if inside else np.nan), {
            "w": gradient if inside else gradient * np.nan
        }

    options: dict[str, Any] = {"line_search_fn": "strong_wolfe", "lr": 50.0}
    with optd.connect(server.address, job=name, lane=lane) as session:
        optimizer = optd.LBFGS(arrays, session=session, **options)
        for _ in range(5):
            optimizer.step(walled)
        np.testing.assert_allclose(arrays["w"], 1, atol=0.1)
        (summary,) = [job for job in session._transport.list_jobs(5.0) if job.name == name]
        assert summary.gradients.nonfinite > 0


def test_rows_are_part_of_the_gradient(server: LocalServer, name: str) -> None:
    table = {"t": np.ones((4, 2))}
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.LBFGS(table, lr=0.5, max_iter=1, session=session)
        optimizer.step(lambda: (1.0, {"t": ([1, 3], np.ones((2, 2)))}))
        expected = np.ones((4, 2))
        expected[[1, 3]] -= 0.5 / 4  # torch's first step is no longer than one over the sum of the gradient
        np.testing.assert_allclose(table["t"], expected, rtol=1e-15)


Make = Callable[[optd.Session], Any]
ONE = {"w": np.ones(2)}
TWO: list[dict[str, Any]] = [{"params": ONE}, {"params": {"b": np.ones(1)}}]
REFUSED: dict[str, tuple[Make, str]] = {
    "two groups": (
        lambda session: optd.LBFGS(TWO, session=session),
        "lbfgs takes one group, of parameters of one dtype; got 2 groups, (group0, group1)",
    ),
    "two dtypes": (
        lambda session: optd.LBFGS({"w": np.ones(2), "b": np.ones(1, np.float32)}, session=session),
        "lbfgs takes one group, of parameters of one dtype; got float64 ('w') and float32 ('b')",
    ),
    "rules": (
        lambda session: optd.LBFGS(ONE, rules=[{"match": "w", "lr": 1}], session=session),
        "lbfgs: rules must be left out, as lbfgs looks at all parameters as one vector, got ",
    ),
    "lookahead": (
        lambda session: optd.LBFGS(ONE, lookahead_steps=2, session=session),
        "lbfgs: lookahead_steps must be left out, as lbfgs looks at all parameters as one vector, got 2",
    ),
    "a search without evaluations": (
        lambda session: optd.LBFGS(ONE, line_search_fn="strong_wolfe", max_eval=0, session=session),
        "lbfgs: max_eval must be at least 1 for line_search_fn='strong_wolfe', got 0",
    ),
    "no closure": (
        lambda session: optd.LBFGS(ONE, session=session).step({"w": np.ones(2)}),
        "lbfgs needs the loss with its gradients, as often as it asks for them: call step(closure)",
    ),
    "no step": (
        lambda session: optd.LBFGS(ONE, session=session).push({"w": np.ones(2)}),
        "lbfgs needs the loss with its gradients, as often as it asks for them: call step(closure)",
    ),
    "another group": (
        lambda session: optd.LBFGS(ONE, session=session).add_param_group({"params": {"b": np.ones(1)}}),
        "lbfgs takes one group, of parameters of one dtype; got 2 groups, (group0, group1)",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_take_is_refused(server: LocalServer, name: str, make: Make, message: str) -> None:
    with optd.connect(server.address, job=name) as session:
        with pytest.raises(errors.InvalidArgument) as caught:
            make(session)
        assert str(caught.value).startswith(message)


def test_pushes_are_not_added_up(server: LocalServer, name: str) -> None:
    message = "job: accumulate must be 1, as lbfgs asks for each loss and gradient by itself, got 2"
    with optd.connect(server.address, job=name, gradients=optd.Gradients(accumulate=2)) as session:
        with pytest.raises(errors.InvalidOption) as caught:
            optd.LBFGS(ONE, session=session)
        assert str(caught.value) == message
    with optd.connect(server.address, job=name) as session:
        optd.LBFGS(ONE, session=session)
        with pytest.raises(errors.InvalidOption) as caught:
            session.set_options(accumulate=2)
        assert str(caught.value) == message


def test_the_length_of_its_history_stays(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.LBFGS(ONE, history_size=5, session=session)
        optimizer.param_groups[0]["history_size"] = 6
        with pytest.raises(errors.InvalidOption) as caught:
            optimizer.step(lambda: (1.0, {"w": np.ones(2)}))
        assert str(caught.value) == "lbfgs: history_size must be 5, which it was at first and stays, got 6"


def test_who_evaluates_old_weights_is_told(server: LocalServer, name: str) -> None:
    """Two workers that do not wait for each other."""
    arrays, others = {"w": np.array([3.0, 1.0])}, {"w": np.array([3.0, 1.0])}

    def parabola(of: dict[str, np.ndarray]) -> Callable[[], Any]:
        return lambda: (float((of["w"] ** 2).sum()), {"w": 2 * of["w"]})

    with (
        optd.connect(server.address, job=name, worker="w0") as one,
        optd.connect(server.address, job=name, worker="w1") as two,
    ):
        first, second = optd.LBFGS(arrays, session=one), optd.LBFGS(others, session=two)
        first.step(parabola(arrays))
        with pytest.raises(errors.StaleEvaluation) as caught:
            second.step(parabola(others))
        assert str(caught.value).startswith(
            f"lbfgs asks about the weights of version {first.version} of job {name!r}, and worker 'w1' has evaluated "
            "those of version 0; pull() and step again"
        )
        second.pull()
        second.step(parabola(others))
        np.testing.assert_allclose(others["w"], 0, atol=1e-6)


def test_a_loss_is_for_those_that_ask_for_it(server: LocalServer, name: str) -> None:
    """Which our client knows; another one is told."""
    called = []
    with optd.connect(server.address, job=name) as session:
        arrays = {"w": np.ones(2)}
        optimizer = optd.SGD(arrays, lr=0.5, session=session)
        assert optimizer.step(lambda: called.append(1) or ("anything", {"w": np.ones(2)})) == "anything"
        assert called == [1]
        np.testing.assert_array_equal(arrays["w"], 0.5)


def test_its_numbers_are_seen(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        arrays = Fit().arrays()
        optimizer = optd.LBFGS(arrays, lr=0.1, max_iter=4, history_size=2, session=session)
        optimizer.step(Fit().numpys(arrays))
        first, *others = session.parameters("group0")
        numbers = {each.field: each.statistics for each in first.fields}
        assert numbers["func_evals"].max == 4
        assert {"d", "old_dirs.0", "old_dirs.1", "prev_flat_grad"} <= {*numbers}
        assert "func_evals" not in {each.field for each in others[0].fields}
        assert all(report.steps == 1 for report in (first, *others))
        info = session.algorithm("lbfgs")
        assert info.needs_closure
        assert not session.algorithm("adam").needs_closure


def test_the_program_shows_many_fields_below_each_other(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        arrays = {"w": np.ones(3)}
        optimizer = optd.LBFGS(arrays, lr=0.1, max_iter=4, session=session)
        optimizer.step(lambda: (float((arrays["w"] ** 4).sum()), {"w": 4 * arrays["w"] ** 3}))
        environment = {"NO_COLOR": "1", "COLUMNS": "80", "OPTD_SERVER": server.address}
        shown = CliRunner().invoke(app, ["group", name, "group0", "-p", "w"], env=environment).output.splitlines()
        heads = [line.split() for line in shown[shown.index("w: 3 float64, 1 steps") + 1 :: 11]]
        assert heads[0] == ["weights", "gradient", "func_evals", "n_iter"]
        assert [field for head in heads for field in head][-2:] == ["prev_flat_grad", "prev_loss"]
