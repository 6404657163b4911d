"""Groups of one job that have algorithms of their own: equal to optimizers of torch side by side."""

import numpy as np
import pytest
from tests.server.engine.mixed import Beside, Mixed, group, no_patience, random_arrays, row_frame, same_bits

from optd_server.engine.readers.state import read_state, select, selected_bytes
from optd_wire import errors
from optd_wire.values import GroupUpdate, JobSpec

JOB = JobSpec("job", "sgd", {"lr": 0.1}, ())
GROUPS = (
    group("matrices", "muon", {"m": (3, 5), "n": (4, 2)}, lr=0.02, weight_decay=0.05),
    group("rest", "adamw", {"b": (7,), "c": (), "d": (2, 3)}, lr=3e-3, betas=(0.8, 0.99)),
    group("plain", "", {"p": (6,), "q": (2, 2)}),
)
DEFAULTS = {"lr": 0.1, "momentum": 0.9}
UPDATES = {
    4: GroupUpdate("matrices", {"lr": 0.01, "momentum": 0.9}),
    7: GroupUpdate("rest", {"lr": 1e-2, "weight_decay": 0.1}),
    9: GroupUpdate("plain", {"momentum": 0.5, "lr": 0.05}),
    13: GroupUpdate("rest", {"eps": 1e-4}),
}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_a_job_of_four_algorithms_is_four_optimizers_of_torch(play, clip_norm):
    async def scenario(engine):
        rng = np.random.default_rng(3)
        groups = (*GROUPS, group("factored", "adafactor", {"f": (3, 4), "g": (5,)}, lr=0.02))
        first = random_arrays(groups, rng)
        mixed, beside = await Mixed(engine, groups, first, defaults=DEFAULTS, clip_norm=clip_norm), Beside()
        for spec in groups:
            beside.add(spec, first, **({} if spec.algorithm else DEFAULTS))
        for step in range(20):
            gradient = random_arrays(groups, rng, computed=True)
            if step in (5, 11):
                gradient = {name: gradient[name] for name in ("b", "d", "q")}
            updates = (UPDATES[step],) if step in UPDATES else ()
            for update in updates:
                beside.set(update)
            result = await mixed.push(gradient, updates=updates)
            beside.step(gradient, clip_norm)
            assert result.applied_version == step + 1
            beside.assert_weights(mixed.weights, 1e-12)
        beside.assert_state(await mixed.state(), 1e-12)

    play(scenario)


def test_accumulated_rounds_and_averages_are_over_all_groups(play):
    async def scenario(engine):
        rng = np.random.default_rng(4)
        first = random_arrays(GROUPS, rng)
        mixed = await Mixed(
            engine, GROUPS, first, defaults=DEFAULTS, clip_norm=1.0, accumulate=2, ema_decay=0.9, swa_start=3
        )
        beside = Beside()
        for spec in GROUPS:
            beside.add(spec, first, **({} if spec.algorithm else DEFAULTS))
        ema, entered = None, []
        for step in range(1, 11):
            gradients = [random_arrays(GROUPS, rng, computed=True) for _ in range(2)]
            assert (await mixed.push(gradients[0])).accumulated == 1
            assert (await mixed.push(gradients[1])).applied_version == step
            beside.step({name: (gradients[0][name] + gradients[1][name]) * 0.5 for name in first}, 1.0)
            now = {name: parameter.numpy().copy() for name, parameter in beside.parameters.items()}
            ema = now if ema is None else {name: ema[name] + 0.1 * (now[name] - ema[name]) for name in now}
            entered += [now] if step >= 3 else []
        beside.assert_weights(mixed.weights, 1e-12)
        for name, found in (await mixed.average("ema")).items():
            np.testing.assert_allclose(found, ema[name], rtol=0, atol=1e-12)
        for name, found in (await mixed.average("swa")).items():
            np.testing.assert_allclose(found, np.mean([each[name] for each in entered], axis=0), rtol=0, atol=1e-12)

    play(scenario)


def test_a_group_that_is_added_later_brings_its_algorithm(play):
    async def scenario(engine):
        rng = np.random.default_rng(5)
        later = (
            group("late", "rmsprop", {"x": (5,), "y": (2,)}, lr=1e-3, momentum=0.5),
            group("late matrices", "muon", {"z": (3, 3)}, lr=0.01),
        )
        first = random_arrays((*GROUPS, *later), rng)
        mixed, beside = await Mixed(engine, GROUPS[:2], first, defaults=DEFAULTS, clip_norm=1.0, accumulate=2), Beside()
        for spec in GROUPS[:2]:
            beside.add(spec, first)
        planned = mixed.job.memory.bytes
        for step in range(12):
            if step in (4, 8):
                await mixed.add(later[step // 4 - 1], first)
                beside.add(later[step // 4 - 1], first)
            one, two = (random_arrays(mixed.groups, rng, computed=True) for _ in range(2))
            await mixed.push(one)
            await mixed.push(two)
            beside.step({name: (one[name] + two[name]) * 0.5 for name in one}, 1.0)
            beside.assert_weights(mixed.weights, 1e-12)
        beside.assert_state(await mixed.state(), 1e-12)
        algorithms = [info.options.algorithm for info in mixed.job.info().groups]
        assert algorithms == ["muon", "adamw", "rmsprop", "muon"]
        assert mixed.job.info().algorithm == "sgd"
        assert mixed.job.memory.bytes > planned

    play(scenario)


OF_TWO_DTYPES = (
    group("matrices", "muon", {"m": (3, 5)}, "float32", lr=0.02, weight_decay=0.05),
    group("rest", "adamw", {"b": (7,), "c": ()}, "float32", lr=3e-3),
    group("wide", "adamw", {"d": (3,)}, "float64", lr=1e-3),
    group("plain", "", {"p": (6,), "q": (2, 2)}, "float32"),
)


def test_dtypes_may_differ_too(play):
    async def scenario(engine):
        rng = np.random.default_rng(6)
        first = random_arrays(OF_TWO_DTYPES, rng)
        mixed, beside = await Mixed(engine, OF_TWO_DTYPES, first, defaults=DEFAULTS, clip_norm=1.0), Beside()
        for spec in OF_TWO_DTYPES:
            beside.add(spec, first, **({} if spec.algorithm else DEFAULTS))
        for _ in range(20):
            gradient = random_arrays(OF_TWO_DTYPES, rng, computed=True)
            await mixed.push(gradient)
            beside.step(gradient, 1.0)
        beside.assert_weights(mixed.weights, 1e-5)
        beside.assert_state(await mixed.state(), 1e-5)

    play(scenario)


MANY = (
    group("a", "adamw", {"a1": (7,), "a2": (3,)}, "bfloat16", lr=0.01, master_weights=True),
    group("m", "muon", {"m1": (3, 5)}, "bfloat16", lr=0.02),
    group("s", "", {"s1": (6,)}, "bfloat16", momentum=0.9),
    group("f", "adafactor", {"f1": (4, 6), "f2": (5,)}, "float32"),
    group("n", "nadam", {"n1": (5,)}, "float32", lookahead_steps=3),
    group("a64", "adamw", {"w1": (2, 2)}, "float64", rules='[{"match": "w*", "weight_decay": 0.5}]'),
    group("e", "adamw", {}, "float32"),
    group("m2", "muon", {"m2": (2, 2)}, "float32", lr_schedule="cosine(steps=10)"),
)


def test_a_group_has_the_bits_that_it_has_in_a_job_of_its_own(play):
    async def scenario(engine):
        rng = np.random.default_rng(7)
        first = random_arrays(MANY, rng)
        mixed = await Mixed(engine, MANY, first, defaults={"lr": 0.05})
        alone = [
            await Mixed(engine, [spec], first, name=spec.name, algorithm=spec.algorithm or "sgd", defaults=own)
            for spec in MANY
            if spec.parameters
            for own in [{} if spec.algorithm else {"lr": 0.05}]
        ]
        for step in range(12):
            gradient = random_arrays(MANY, rng, computed=True)
            gradient = {name: numbers for name, numbers in gradient.items() if step % 4 or name[0] != "a"}
            await mixed.push(gradient)
            for each in alone:
                names = {parameter.name for spec in each.groups for parameter in spec.parameters}
                await each.push({name: gradient[name] for name in names & gradient.keys()})
        together, state = mixed.weights, await mixed.state()
        for each in alone:
            for name, numbers in each.weights.items():
                assert numbers.tobytes() == together[name].tobytes(), name
            for name, own in (await each.state()).items():
                assert same_bits(own, state[name]), name

    play(scenario)


def test_state_is_read_and_put_into_another_job(play):
    async def scenario(engine):
        rng = np.random.default_rng(8)
        first = random_arrays(MANY, rng)
        one, other = [await Mixed(engine, MANY, first, name=name, defaults={"lr": 0.05}) for name in ("one", "other")]
        for _ in range(5):
            await one.push(random_arrays(MANY, rng, computed=True))
        await one.copy_state_to(other)
        assert same_bits(one.weights, other.weights)
        for _ in range(5):
            gradient = random_arrays(MANY, rng, computed=True)
            await one.push(gradient)
            await other.push(gradient)
        # `other` is at another version: what a schedule makes of lr is not the same.
        for name, numbers in other.weights.items():
            assert name == "m2" or numbers.tobytes() == one.weights[name].tobytes(), name
        theirs = await other.state()
        for name, own in (await one.state()).items():
            assert same_bits(own, theirs[name]), name

    play(scenario)


def test_a_state_has_the_shape_that_it_has_in_the_algorithm_of_its_group(play):
    async def scenario(engine):
        rng = np.random.default_rng(9)
        mixed = await Mixed(engine, MANY, random_arrays(MANY, rng))
        await mixed.push(random_arrays(MANY, rng, computed=True))
        reading = await read_state(mixed.job, select(mixed.job, (), "", ""), no_patience)
        found = {
            MANY[read.group].name: {entry.field for entry in read.entries if any(entry.present)}
            for read in reading.result.groups
        }
        assert found == {
            "a": {"exp_avg", "exp_avg_sq", "master_weights"},
            "m": {"momentum_buffer"},
            "s": {"momentum_buffer"},
            "f": {"row_var", "col_var", "variance"},
            "n": {"exp_avg", "exp_avg_sq", "mu_product", "slow_weights"},
            "a64": {"exp_avg", "exp_avg_sq"},
            "e": set(),
            "m2": {"momentum_buffer"},
        }
        kept = selected_bytes(mixed.job, select(mixed.job, ("momentum_buffer",), "", ""))
        assert kept == 4 * (15 + 6 + 4), "of the groups that may have it"

    play(scenario)


def test_rows_are_for_the_groups_whose_algorithm_takes_them(play):
    async def scenario(engine):
        groups = (
            group("table", "sparse_adam", {"t": (6, 2)}, "float32", lr=0.1),
            group("other", "muon", {"m": (3, 2)}, "float32"),
        )
        rng = np.random.default_rng(10)
        mixed = await Mixed(engine, groups, random_arrays(groups, rng))
        before = mixed.weights
        rows = rng.standard_normal((2, 2)).astype("f4")
        await mixed.push({"m": rng.standard_normal((3, 2)).astype("f4")}, rows=[row_frame(0, 0, [1, 4], rows)])
        after = mixed.weights
        changed = np.flatnonzero((before["t"] != after["t"]).any(axis=1))
        assert changed.tolist() == [1, 4]
        assert (before["m"] != after["m"]).all()
        with pytest.raises(errors.RowsOnly) as caught:
            await mixed.push({"t": np.zeros((6, 2), "f4")})
        assert str(caught.value) == (
            "sparse_adam takes no dense gradients, and got one of parameter 't'; send its rows, or take adam"
        )
        with pytest.raises(errors.RowsNotTaken) as caught:
            await mixed.push({}, rows=[row_frame(1, 0, [0], rows[:1])])
        assert str(caught.value).startswith("muon takes no sparse gradients, and got rows of parameter 'm'; ")

    play(scenario)


def test_memory_is_planned_by_what_each_group_keeps(play):
    async def scenario(engine):
        async def planned(name, *algorithms):
            groups = [group(f"g{i}", algorithm, {f"p{i}": (10, 10)}) for i, algorithm in enumerate(algorithms)]
            made = await Mixed(engine, groups, random_arrays(groups, np.random.default_rng(0)), name=name)
            return made.job.memory.bytes

        none, one, two = 800 * 0, 800 * 1, 800 * 2
        base = await planned("plain", "sgd", "sgd") - 2 * none
        assert await planned("mixed", "sgd", "adamw") == base + two
        assert await planned("three", "muon", "adamw") == base + one + two

    play(scenario)


def test_kernels_are_made_ready_for_every_algorithm_and_its_dtypes(play):
    async def scenario(engine):
        found = []

        async def prepare(algorithm, dtypes):
            found.append((algorithm.name, sorted(dtypes)))

        engine.offload.prepare = prepare
        await engine.catalog.prepare("sgd", OF_TWO_DTYPES)
        assert found == [("muon", ["float32"]), ("adamw", ["float32", "float64"]), ("sgd", ["float32"])]

    play(scenario)
