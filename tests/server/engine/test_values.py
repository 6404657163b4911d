"""Groups whose algorithm takes values beside groups that take gradients: what a job does to gradients stops there."""

import numpy as np
import pytest
from tests.server.engine import rounds
from tests.server.engine.rounds import Rounds, same

from optd_wire import errors
from optd_wire.values import GroupSpec, JobUpdate, ParameterSpec

VALUES = GroupSpec(
    "values", {}, (ParameterSpec("mean", (3,), "float64"), ParameterSpec("count", (), "float64")), "assign"
)
GRADIENTS = rounds.GROUPS[:2]
BOTH = (*GRADIENTS, VALUES)
FIRST = {"mean": np.array([1.0, 2.0, 1e6]), "count": np.array(7.0)}
SECOND = {"mean": np.array([3.0, -2.0, 5e5]), "count": np.array(7.0)}


def play(scenario, workers=2, groups=BOTH, **options):
    async def changed(rounds):
        if options:
            await rounds.job.editor.update_job(JobUpdate("job", options))
        await rounds.join(*[f"w{number}" for number in range(workers or 1)])
        await scenario(rounds)

    rounds.play(changed, workers, groups=groups)


async def push(rounds: Rounds, gradients, *, lane="received", **header):
    uploads = []
    for number, gradient in enumerate(gradients):
        worker = f"w{number}"
        own = {name: value[number] if isinstance(value, list) else value for name, value in header.items()}
        if lane == "shared":
            uploads.append(rounds.share(worker, gradient))
        else:
            uploads.append(rounds.upload(worker, **own))
            uploads[-1].send_all(rounds.messages(gradient))
    return [(await upload).result for upload in uploads]


def gradients_of(seed):
    return rounds.random_arrays(seed, GRADIENTS)


def values_of(job):
    return {name: job.weights[name] for name in ("mean", "count")}


@pytest.mark.parametrize("lane", ["received", "shared"])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"clip_norm": 1e-3}, {"accumulate": 1}], ids=str)
def test_a_round_leaves_the_mean_of_its_values(lane, options):
    async def scenario(job):
        await push(job, [{**gradients_of(1), **FIRST}, {**gradients_of(2), **SECOND}], lane=lane)
        assert same(values_of(job), {"mean": np.array([2.0, 0.0, 7.5e5]), "count": np.array(7.0)})

    play(scenario, **options)


@pytest.mark.parametrize("lane", ["received", "shared"])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"clip_norm": 1e-3}], ids=str)
def test_without_rounds_the_last_values_count(lane, options):
    async def scenario(job):
        for values in (FIRST, SECOND):
            await push(job, [{**gradients_of(1), **values}], lane=lane)
            assert same(values_of(job), values)

    play(scenario, workers=0, **options)


def test_values_that_nobody_pushes_stay_and_those_of_one_worker_are_the_mean():
    async def scenario(job):
        before = values_of(job)
        await push(job, [gradients_of(1), gradients_of(2)])
        assert same(values_of(job), before)
        await push(job, [gradients_of(1), {**gradients_of(2), **SECOND}])
        assert same(values_of(job), SECOND)

    play(scenario)


@pytest.mark.parametrize("lane", ["received", "shared"])
@pytest.mark.parametrize(
    "options",
    [{"clip_norm": 0.5}, {"clip_norm": 0.5, "clip_norm_type": float("inf")}, {"reduction": "sum"}, {"ema_decay": 0.9}],
    ids=str,
)
def test_gradients_beside_values_have_the_bits_and_norms_that_they_have_alone(lane, options):
    found = []

    async def scenario(job):
        results = []
        for step in range(3):
            gradients = [gradients_of(step), gradients_of(step + 10)]
            if len(job.spec.groups) == 3:
                gradients = [{**gradient, **FIRST} for gradient in gradients]
            results.append((await push(job, gradients, lane=lane))[0])
        averages = [np.concatenate(row) for each in job.job.state.averages.kept.values() for row in each.buffers.slabs]
        found.append((results, job.weights, averages))

    for groups in (GRADIENTS, BOTH):
        play(scenario, groups=groups, **options)
    (alone, weights, _), (beside, others, _) = found
    assert same({name: others[name] for name in weights}, weights)
    assert [result.clipped for result in alone] == [result.clipped for result in beside]
    for one, other in zip(alone, beside, strict=True):
        norms = {each.group: (each.gradient, each.update) for each in other.norms}
        assert norms.pop("values", (0.0, 0.0)) == (0.0, 0.0)
        assert norms == {each.group: (each.gradient, each.update) for each in one.norms}
    assert any(result.norms for result in alone) == ("clip_norm" in options)


def test_a_loss_scale_divides_gradients_only():
    async def scenario(job):
        scaled = {name: gradient * 1024 for name, gradient in gradients_of(1).items()}
        before = job.weights
        await push(job, [{**scaled, **FIRST}], loss_scale=1024.0)
        assert same(values_of(job), FIRST)
        for name, gradient in gradients_of(1).items():
            assert np.array_equal(job.weights[name], before[name] - gradient), name

    play(scenario, workers=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weights_of_pushes_weigh_values_too_and_leave_those_of_one_push_alone(reduction):
    async def together(job):
        await push(job, [{**gradients_of(1), **FIRST}, {**gradients_of(2), **SECOND}], weight=[1.0, 3.0])
        assert np.array_equal(job.weights["mean"], (FIRST["mean"] + 3 * SECOND["mean"]) / 4)

    async def alone(job):
        await push(job, [{**gradients_of(1), **FIRST}], weight=0.3)
        assert same(values_of(job), FIRST)

    play(together, reduction=reduction)
    play(alone, workers=0, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_rounds_leave_the_mean_of_all_their_values(reduction):
    async def scenario(job):
        before = values_of(job)
        await push(job, [{**gradients_of(1), **FIRST}, {**gradients_of(2), **SECOND}])
        assert same(values_of(job), before)
        await push(job, [{**gradients_of(3), **FIRST}, {**gradients_of(4), **FIRST}])
        assert same(values_of(job), {"mean": (3 * FIRST["mean"] + SECOND["mean"]) / 4, "count": np.array(7.0)})

    play(scenario, reduction=reduction, accumulate=2)


@pytest.mark.parametrize("lane", ["received", "shared"])
@pytest.mark.parametrize("nonfinite", ["reject", "zero"])
def test_a_nan_among_values_is_refused_where_one_in_a_gradient_may_count_as_zero(lane, nonfinite):
    async def scenario(job):
        before = job.weights
        wrong = {"mean": np.array([1.0, np.nan, 2.0])}
        with pytest.raises(errors.NonfiniteGradient, match="'mean'"):
            await push(job, [{**gradients_of(1), **FIRST, **wrong}], lane=lane)
        assert same(job.weights, before)

    play(scenario, workers=0, nonfinite=nonfinite)


def test_a_step_that_is_skipped_leaves_values_as_they_are():
    async def scenario(job):
        before = job.weights
        wrong = {"a": np.full(5, np.inf, np.float32)}
        assert (await push(job, [{**gradients_of(1), **FIRST, **wrong}]))[0].skipped
        assert same(job.weights, before)

    play(scenario, workers=0, nonfinite="skip")


def test_averages_of_the_weights_have_the_newest_values():
    async def scenario(job):
        for step, values in enumerate((FIRST, SECOND, FIRST)):
            await push(job, [{**gradients_of(step), **values}])
        (average,) = job.job.state.averages.kept.values()
        slab = next(i for i, slab in enumerate(average.buffers.extents[0].slabs) if slab.kind == "assign")
        assert average.buffers.slabs[0][slab].tolist() == [*FIRST["mean"], 7.0]
        assert not np.array_equal(average.buffers.slabs[0][0][:5], job.weights["a"])

    play(scenario, workers=0, ema_decay=0.5)
