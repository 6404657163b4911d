"""What a group's own algorithm does not take, or does not have, is refused: at registration, in updates, in state."""

from dataclasses import replace

import numpy as np
import pytest
from tests.server.engine.mixed import Mixed, group, random_arrays

from optd_server.engine.options.registration import check_job
from optd_server.engine.state_upload import StateUpload
from optd_wire import errors
from optd_wire.frames import Frame
from optd_wire.values import GroupState, GroupUpdate, JobSpec, JobUpdate, StateEntries, WriteStateHeader

JOB = JobSpec("job", "sgd", {"lr": 0.1}, ())
DEFAULTS = {"lr": 0.1, "momentum": 0.9}
GROUPS = (
    group("matrices", "muon", {"m": (3, 5)}),
    group("rest", "adamw", {"b": (7,), "c": (), "d": (2, 3)}),
    group("plain", "", {"p": (6,)}),
)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        (
            replace(JOB, groups=(group("g", "muon", {"w": (3,)}),)),
            errors.UnservedShape,
            "muon: parameter 'w' must have 2 dimensions, got shape (3,)",
        ),
        (
            replace(JOB, groups=(group("g", "adamm", {"w": (3,)}),)),
            errors.UnknownAlgorithm,
            "no algorithm 'adamm'; the nearest is 'adam'",
        ),
        (
            replace(JOB, groups=(group("g", "", {"w": (3,)}), group("h", "lbfgs", {"v": (2,)}))),
            errors.UnservedGroups,
            "lbfgs takes one group, of parameters of one dtype; got 2 groups, (g, h)",
        ),
        (
            replace(JOB, groups=(group("g", "lbfgs", {"w": (3,)}),), options={"accumulate": 2}, defaults={}),
            errors.InvalidOption,
            "job: accumulate must be 1, as lbfgs asks for each loss and gradient by itself, got 2",
        ),
        (
            replace(JOB, groups=(group("g", "adamw", {"w": (3,)}, betas=(1.5, 0.9)),)),
            errors.OptionOutOfRange,
            "adamw: betas[0] must be in [0, 1), got 1.5",
        ),
    ],
)
def test_what_a_groups_algorithm_does_not_take_is_refused(spec, error, says):
    with pytest.raises(error) as caught:
        check_job(spec)
    assert str(caught.value) == says


def test_an_option_of_another_algorithm_is_unknown_to_the_groups_own():
    spec = replace(
        JOB, groups=(group("g", "", {"w": (3,)}, momentum=0.5), group("h", "adamw", {"v": (3,)}, momentum=0.5))
    )
    with pytest.raises(errors.UnknownOption, match="^adamw: no option 'momentum'; did you mean .* are lr, betas, eps"):
        check_job(spec)


def test_an_update_is_checked_against_the_groups_algorithm(play):
    async def scenario(engine):
        job = (await Mixed(engine, GROUPS, random_arrays(GROUPS, np.random.default_rng(0)), defaults=DEFAULTS)).job
        for name, own in (("matrices", "muon"), ("rest", "adamw")):
            with pytest.raises(errors.UnknownOption, match=f"^{own}: no option 'dampening'"):
                await job.editor.update_group(GroupUpdate(name, {"dampening": 0.5}))
        options, _ = await job.editor.update_group(GroupUpdate("plain", {"dampening": 0.5}))
        assert (options.algorithm, options.options["dampening"]) == ("sgd", 0.5)
        with pytest.raises(errors.UnknownOption, match=r"^job: no option 'betas'; `betas` is a group option"):
            await job.editor.update_job(JobUpdate("job", {"betas": (0.5, 0.5)}))

    play(scenario)


def test_what_becomes_of_defaults_is_told_by_whose_options_they_are(play):
    async def scenario(engine):
        defaults = {"lr": 0.5, "momentum": 0.9, "clip_norm": 2.0}
        groups = (group("a", "adamw", {"a": (3,)}), group("s", "sgd", {"s": (3,)}), group("j", "", {"j": (3,)}))
        job = (await Mixed(engine, groups, random_arrays(groups, np.random.default_rng(0)), defaults=defaults)).job
        of = {each.group: each.options for each in job.state.groups.options}
        assert (of["a"]["lr"], of["a"]["clip_norm"]) == (1e-3, 2.0)
        assert (of["s"]["lr"], of["s"]["momentum"], of["s"]["clip_norm"]) == (0.5, 0.9, 2.0)
        assert of["j"] == of["s"]

    play(scenario)


def test_a_default_that_every_group_has_must_suit_every_algorithm():
    schedules = '{"momentum": "constant(warmup=5)"}'
    with pytest.raises(errors.UnknownOption, match="^adamw: no option 'momentum'"):
        check_job(replace(JOB, groups=(group("g", "adamw", {"w": (3,)}),), defaults={"schedules": schedules}))
    own = group("g", "adamw", {"w": (3,)}, schedules=None)
    check_job(replace(JOB, groups=(own,), defaults={"schedules": schedules}))


def test_who_attaches_names_the_same_algorithms(play):
    async def scenario(engine):
        job = (await Mixed(engine, GROUPS, random_arrays(GROUPS, np.random.default_rng(0)), defaults=DEFAULTS)).job
        await job.join("w", JobSpec("job", "sgd", {}, GROUPS))
        spelled = (*GROUPS[:2], replace(GROUPS[2], algorithm="sgd"))
        await job.join("w", JobSpec("job", "sgd", {}, spelled))
        with pytest.raises(errors.JobMismatch) as caught:
            await job.join("w", JobSpec("job", "sgd", {}, (GROUPS[0], replace(GROUPS[1], algorithm=""), GROUPS[2])))
        assert str(caught.value) == (
            "job 'job' has in group 'rest' algorithm 'adamw', this registration has 'sgd'; "
            "register the same, or take another job (job=, OPTD_JOB)"
        )
        with pytest.raises(errors.JobMismatch, match="in group 'rest' algorithm 'adamw', this registration has 'adam'"):
            job.editor.existing_group(replace(GROUPS[1], algorithm="adam"))

    play(scenario)


def test_groups_that_are_added_are_checked_like_the_first(play):
    async def scenario(engine):
        mixed = await Mixed(engine, GROUPS, random_arrays(GROUPS, np.random.default_rng(0)), defaults=DEFAULTS)
        for spec, error, says in (
            (group("x", "lbfgs", {"x": (3,)}), errors.UnservedGroups, "lbfgs takes one group, .*; got 4 groups"),
            (group("x", "muon", {"x": (3,)}), errors.UnservedShape, "muon: parameter 'x' must have 2 dimensions"),
            (group("x", "adamw", {"x": (3,)}, momentum=1.0), errors.UnknownOption, "adamw: no option 'momentum'"),
        ):
            with pytest.raises(error, match=says):
                mixed.job.editor.check_new_group(spec)
        alone = await Mixed(engine, [group("g", "lbfgs", {"w": (3,)})], {"w": np.zeros(3)}, name="alone")
        with pytest.raises(errors.UnservedGroups, match="lbfgs takes one group, .*; got 2 groups"):
            alone.job.editor.check_new_group(group("x", "sgd", {"x": (3,)}))

    play(scenario)


def test_an_algorithm_that_wants_the_loss_may_be_that_of_the_group_alone(play):
    async def scenario(engine):
        mixed = await Mixed(engine, [group("g", "lbfgs", {"w": (3,)})], {"w": np.ones(3)}, defaults=DEFAULTS)
        with pytest.raises(errors.LossMissing, match="^lbfgs needs the loss"):
            await mixed.push({"w": np.ones(3)})
        assert (await mixed.push({"w": np.ones(3)}, loss=3.0)).applied_version == 1
        plain = await Mixed(engine, GROUPS, random_arrays(GROUPS, np.random.default_rng(0)), name="plain")
        with pytest.raises(errors.InvalidRequest, match="muon, adamw, sgd take gradients alone, and a push has a loss"):
            await plain.push({}, loss=1.0)

    play(scenario)


def test_state_of_another_algorithm_is_refused(play):
    async def scenario(engine):
        mixed = await Mixed(engine, GROUPS, random_arrays(GROUPS, np.random.default_rng(0)), defaults=DEFAULTS)
        await mixed.push({})
        says = "group 'rest' of adamw keeps no momentum_buffer; it keeps exp_avg, exp_avg_sq, max_exp_avg_sq, "
        entry = StateEntries("momentum_buffer", (True,) * 3)
        with pytest.raises(errors.InvalidRequest, match=says):
            StateUpload(mixed.job, WriteStateHeader("job", "w", 1, (GroupState(1, (0,) * 3, (entry,)),)), 0.0)
        upload = StateUpload(mixed.job, WriteStateHeader("job", "w", 1, ()), 0.0)
        with pytest.raises(errors.InvalidRequest, match=says):
            upload.write([Frame.of(1, 0, np.zeros(14), "momentum_buffer")])
        with pytest.raises(
            errors.UnknownField, match="job 'job' keeps no 'square_avg'; it keeps weights, momentum_buffer"
        ):
            upload.write([Frame.of(1, 0, np.zeros(14), "square_avg")])

    play(scenario)
