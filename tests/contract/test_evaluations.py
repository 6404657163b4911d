"""An algorithm that asks for loss and gradients several times in a step, as plain stubs answer it."""

from typing import Any

import numpy as np
import pytest
from contract.plain import SECONDS, Plain, ending, frame, group, header, job_spec, refused

from optd_wire.v1 import state_service_pb2

W = {"w": ((2,), "float64")}
START = np.array([3.0, 1.0])


def create(plain: Plain, name: str, workers: int = 0, **options: Any) -> int:
    spec = job_spec(name, [group("g", W)], algorithm="lbfgs", workers=workers, **options)
    plain.create(spec, [frame(START)])
    return plain.join(name)


def evaluate(plain: Plain, name: str, epoch: int, sequence: int, **more: Any) -> Any:
    """Pushes what half the sum of squares and its gradient are at the job's weights."""
    weights = plain.weights(name)["w"]
    given = {"base": sequence - 1, "loss": float((weights**2).sum() / 2), **more}
    return plain.push(header(name, "w0", epoch, sequence, **given), [frame(weights * (more.get("loss_scale") or 1))])


def test_a_step_is_at_its_end_when_the_answer_says_so(plain: Plain, name: str) -> None:
    epoch = create(plain, name, max_iter=3, lr=0.25)
    seen = []
    for sequence in range(1, 4):
        weights = plain.weights(name)["w"]
        head = header(name, "w0", epoch, sequence, base=sequence - 1, loss=float((weights**2).sum() / 2))
        result = plain.push(head, [frame(weights)])
        seen.append((result.unfinished, result.version.version))
        again = plain.push(head, [frame(weights)])
        assert (again.unfinished, again.repeat) == (result.unfinished, True)
    assert seen == [(True, 1), (True, 2), (False, 3)]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_loss_and_gradients_are_divided_by_the_loss_scale(plain: Plain, name: str, scale: float) -> None:
    epoch = create(plain, name, line_search_fn="strong_wolfe")
    loss = scale * float((START**2).sum() / 2)
    assert evaluate(plain, name, epoch, 1, loss=loss, loss_scale=scale).unfinished
    np.testing.assert_array_equal(plain.weights(name)["w"], START - START / 4)


def test_a_step_that_begins_ends_the_one_before_it_where_it_is(plain: Plain, name: str) -> None:
    epoch = create(plain, name, max_iter=3, lr=0.25)
    assert [evaluate(plain, name, epoch, sequence).unfinished for sequence in (1, 2)] == [True, True]
    finished = [evaluate(plain, name, epoch, sequence, begins=sequence == 3).unfinished for sequence in (3, 4, 5)]
    assert finished == [True, True, False]


def test_what_was_not_asked_for_is_refused(plain: Plain, name: str) -> None:
    epoch = create(plain, name, lr=0.1)
    with refused("LOSS_MISSING", "lbfgs"):
        plain.push(header(name, "w0", epoch, 1), [frame(START)])
    assert evaluate(plain, name, epoch, 1).unfinished
    with refused("STALE_EVALUATION", "version 1"):
        evaluate(plain, name, epoch, 2, base=0)
    assert evaluate(plain, name, epoch, 2).version.version == 2


def test_a_loss_that_nobody_asks_for_is_refused(plain: Plain, name: str) -> None:
    plain.create(job_spec(name, [group("g", W)], algorithm="sgd"), [frame(START)])
    with refused("INVALID_REQUEST", "sgd takes gradients alone"):
        plain.push(header(name, "w0", plain.join(name), 1, loss=1.0), [frame(START)])


def test_an_infinite_loss_is_one_to_come_back_from(plain: Plain, name: str) -> None:
    epoch = create(plain, name, line_search_fn="strong_wolfe", lr=1.0)
    assert evaluate(plain, name, epoch, 1).unfinished
    tried = plain.weights(name)["w"]
    assert evaluate(plain, name, epoch, 2, loss=float("inf")).unfinished
    nearer = plain.weights(name)["w"]
    assert np.linalg.norm(nearer - START) < np.linalg.norm(tried - START)


def test_a_gradient_that_is_no_number_begins_no_step(plain: Plain, name: str) -> None:
    epoch = create(plain, name, lr=0.1)
    with refused("NONFINITE_GRADIENT", "'w'"):
        plain.push(header(name, "w0", epoch, 1, loss=1.0), [frame([np.nan, 1.0])])
    assert evaluate(plain, name, epoch, 1).unfinished


def beyond(plain: Plain, name: str, epoch: int, sequence: int) -> Any:
    head = header(name, "w0", epoch, sequence, base=sequence - 1, loss=float("nan"))
    return plain.push(head, [frame([np.nan, 1.0])])


def test_a_search_turns_round_where_the_gradient_is_no_number(plain: Plain, name: str) -> None:
    epoch = create(plain, name, line_search_fn="strong_wolfe", lr=1.0)
    assert evaluate(plain, name, epoch, 1).unfinished
    tried = plain.weights(name)["w"]
    assert beyond(plain, name, epoch, 2).unfinished
    nearer = plain.weights(name)["w"]
    assert np.linalg.norm(nearer - START) < np.linalg.norm(tried - START)
    sequence = 3
    while evaluate(plain, name, epoch, sequence).unfinished:
        sequence += 1
    np.testing.assert_allclose(plain.weights(name)["w"], 0, atol=1e-6)
    gradients = plain.summary(name).gradients
    assert (gradients.nonfinite, gradients.nonfinite_parameter, gradients.nonfinite_version) == (1, "w", 1)


def test_a_step_without_search_goes_back_from_there(plain: Plain, name: str) -> None:
    epoch = create(plain, name, lr=0.25)
    assert evaluate(plain, name, epoch, 1).unfinished
    there = plain.weights(name)["w"]
    assert evaluate(plain, name, epoch, 2).unfinished
    assert not beyond(plain, name, epoch, 3).unfinished
    np.testing.assert_array_equal(plain.weights(name)["w"], there)
    assert evaluate(plain, name, epoch, 4).unfinished


def test_where_entries_that_are_no_numbers_count_as_zeros_they_do(plain: Plain, name: str) -> None:
    ends = []
    for number, policy in ((np.nan, "zero"), (0.0, "reject")):
        job = f"{name}-{policy}"
        spec = job_spec(job, [group("g", W)], algorithm="lbfgs", lr=0.5)
        spec.options["nonfinite"].text = policy
        plain.create(spec, [frame(START)])
        epoch = plain.join(job)
        plain.push(header(job, "w0", epoch, 1, loss=1.0), [frame([1.0, 0.0])])
        assert plain.push(header(job, "w0", epoch, 2, base=1, loss=0.9), [frame([number, 1.0])]).unfinished
        ends.append(plain.weights(job)["w"].tolist())
    assert ends[0] == ends[1]


def write(plain: Plain, name: str, epoch: int, *numbers: Any, **more: Any) -> Any:
    head = state_service_pb2.WriteStateHeader(job=name, worker="w0", epoch=epoch, **more)
    frames = [state_service_pb2.WriteStateRequest(frames=[each]) for each in numbers]
    requests = [state_service_pb2.WriteStateRequest(header=head), *frames]
    return plain.state.WriteState(ending(requests), timeout=SECONDS).version


def test_a_step_goes_on_from_weights_that_are_written_while_it_is_under_way(plain: Plain, name: str) -> None:
    """As torch's does from what a closure writes; and it ends after as many evaluations as without."""
    epoch = create(plain, name, max_iter=3, lr=0.25)
    assert evaluate(plain, name, epoch, 1).unfinished
    np.testing.assert_allclose(plain.weights(name)["w"], START * 15 / 16)  # a quarter of the sum of the gradient
    written = write(plain, name, epoch, frame(START, field="weights"))
    np.testing.assert_array_equal(plain.weights(name)["w"], START)
    with refused("STALE_EVALUATION", "before they were written anew"):
        evaluate(plain, name, epoch, 2)  # of the weights that the search had asked about
    head = header(name, "w0", epoch, 2, base=1, known_revision=written.revision, loss=4.5)
    assert plain.push(head, [frame(START)]).unfinished
    # The gradient is what it was, so that there is no curvature: minus the gradient, and lr times that.
    np.testing.assert_allclose(plain.weights(name)["w"], START * 3 / 4)
    assert not evaluate(plain, name, epoch, 3, known_revision=written.revision).unfinished


@pytest.mark.parametrize("begins", [False, True])
def test_state_that_is_written_ends_what_was_under_way(begins: bool, plain: Plain, name: str) -> None:
    """With the next evaluation, unless that begins a step: who writes state in each closure is not asked for ever."""
    epoch = create(plain, name, max_iter=3, lr=0.25)
    assert evaluate(plain, name, epoch, 1).unfinished
    forgotten = state_service_pb2.GroupState(group=0, steps=[0])
    written = write(plain, name, epoch, groups=[forgotten])
    there, known = plain.weights(name)["w"], {"known_revision": written.revision}
    sequence = 2
    if not begins:
        assert not evaluate(plain, name, epoch, 2, **known).unfinished
        np.testing.assert_array_equal(plain.weights(name)["w"], there)
        result, _ = plain.read_state(name)
        assert not result.groups[0].entries
        sequence = 3
    first = evaluate(plain, name, epoch, sequence, begins=begins, **known).unfinished
    rest = [evaluate(plain, name, epoch, each, **known).unfinished for each in (sequence + 1, sequence + 2)]
    assert [first, *rest] == [True, True, False]
    result, _ = plain.read_state(name)
    entries = {entry.field: list(entry.present) for entry in result.groups[0].entries}
    assert entries["func_evals"] == entries["d"] == [True]
