from dataclasses import replace

import pytest

from optd_server.engine.options.registration import check_job, check_same
from optd_wire import errors
from optd_wire.layout import lay_out
from optd_wire.values import (
    Async,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    JobInfo,
    JobSpec,
    JobVersion,
    ParameterSpec,
    Sync,
)

W = ParameterSpec("w", (2, 3), "float32")
B = ParameterSpec("b", (3,), "float32")
SPEC = JobSpec("job", "sgd", {"lr": 0.1}, (GroupSpec("g", {}, (W,)), GroupSpec("h", {"lr": 0.2}, (B,))))


def group(name="g", *parameters, **options):
    return GroupSpec(name, options, parameters or (W,))


def groups(*given):
    return replace(SPEC, groups=given)


def test_a_right_spec_passes():
    check_job(SPEC)
    check_job(replace(SPEC, policy=Sync(4)))


BAD = [
    (replace(SPEC, name=""), errors.InvalidName, "job name '' must be 1 to 200"),
    (replace(SPEC, name="a/../b"), errors.InvalidName, "must not contain '..'"),
    (replace(SPEC, name="x" * 201), errors.InvalidName, "..."),
    (replace(SPEC, name="tab\t"), errors.InvalidName, r"'tab\t'"),
    (groups(group("g\0")), errors.InvalidName, "group name"),
    (groups(group("g", replace(W, name="ü\n"))), errors.InvalidName, r"parameter name '\xfc\n' must be 1 to 200 char"),
    (replace(SPEC, algorithm="adm"), errors.UnknownAlgorithm, "no algorithm 'adm'; the nearest is 'adam'"),
    (replace(SPEC, defaults={"momentun": 0.9}), errors.UnknownOption, "did you mean 'momentum'?"),
    (groups(group(learning_rate=1)), errors.UnknownOption, "sgd: no option 'learning_rate'; did you mean 'lr'?"),
    (replace(SPEC, defaults={"lr": -1}), errors.OptionOutOfRange, "sgd: lr must be in [0, inf), got -1"),
    (
        replace(SPEC, algorithm="adam", defaults={"betas": (1.3, 0.9)}),
        errors.OptionOutOfRange,
        "adam: betas[0] must be in [0, 1), got 1.3",
    ),
    (replace(SPEC, defaults={"lr": "high"}), errors.InvalidOption, "sgd: lr must be a number, got 'high'"),
    (replace(SPEC, defaults={"nesterov": True}), errors.InvalidOption, "sgd: nesterov must be"),
    (groups(), errors.EmptyGroup, "job 'job' has no parameters"),
    (groups(GroupSpec("g", {}, ())), errors.EmptyGroup, "job 'job' has no parameters"),
    (groups(group("g"), group("g", B)), errors.DuplicateName, "group name 'g' is used twice in job 'job'"),
    (groups(group("g", W, W)), errors.DuplicateName, "parameter name 'w' is used twice"),
    (groups(group("g", W), group("h", W)), errors.ParameterInTwoGroups, "'w' is in group 'g' and in group 'h'"),
    (groups(group("g", replace(W, dtype="int8"))), errors.UnsupportedDtype, "dtype int8 is not supported"),
    (groups(group("g", replace(W, shape=(2**40, 2)))), errors.InvalidShape, "1099511627776"),
    (groups(group("g", replace(W, shape=(1,) * 65))), errors.InvalidShape, "at most 64 dimensions"),
    (
        replace(groups(group("g", replace(W, shape=(3,)))), algorithm="muon", defaults={}),
        errors.UnservedShape,
        "muon: parameter 'w' must have 2 dimensions, got shape (3,)",
    ),
]


@pytest.mark.parametrize(("spec", "error", "says"), BAD, ids=[f"{e.__name__}-{i}" for i, (_, e, _) in enumerate(BAD)])
def test_what_is_wrong_with_a_spec_is_named(spec, error, says):
    with pytest.raises(error) as caught:
        check_job(spec)
    assert says in str(caught.value)


def found(spec, policy=Async()):  # noqa: B008 - a frozen value
    """The job that `spec` has created."""
    groups = [
        GroupInfo(
            i, GroupOptions(g.name, {}, algorithm=g.algorithm or spec.algorithm), lay_out(g.parameters).parameters
        )
        for i, g in enumerate(spec.groups)
    ]
    return JobInfo(spec.name, spec.algorithm, spec.defaults, policy, tuple(groups), JobVersion())


DIFFERENT = [
    (replace(SPEC, algorithm="adam"), "job 'job' has algorithm 'sgd', this registration has 'adam'"),
    (replace(SPEC, policy=Sync(3)), "job 'job' has policy Async(), this registration has Sync(workers=3)"),
    (groups(group("g")), "has 2 groups (g, h), this registration has (g); register the same, or take another job"),
    (groups(group("x"), group("h", B)), "has group 0 named 'g', this registration has 'x'"),
    (groups(group("g", W, B), group("h", B)), "in group 'g' 1 parameters (w), this registration has 2, (w, b)"),
    (groups(group("g", replace(W, name="v")), group("h", B)), "parameter 0 named 'w', this registration has 'v'"),
    (groups(group("g", replace(W, shape=(3, 2))), group("h", B)), "with shape (2, 3), this registration has (3, 2)"),
    (groups(group("g", replace(W, dtype="float64")), group("h", B)), "dtype float32, this registration has float64"),
]


@pytest.mark.parametrize(("spec", "says"), DIFFERENT)
def test_attaching_with_something_else_shows_both_sides(spec, says):
    with pytest.raises(errors.JobMismatch) as caught:
        check_same(spec, found(SPEC), created_with=2, first_policy=Async())
    assert says in str(caught.value)


def test_groups_that_were_added_later_may_be_registered_or_not():
    more = replace(SPEC, groups=(*SPEC.groups, group("i", ParameterSpec("c", (1,), "float64"))))
    check_same(SPEC, found(more), created_with=2, first_policy=Async())
    check_same(more, found(more), created_with=2, first_policy=Async())
    check_same(replace(SPEC, defaults={"lr": 9}), found(SPEC), created_with=2, first_policy=Async())


def test_who_names_no_policy_takes_the_jobs():
    check_same(SPEC, found(SPEC, Sync(2)), created_with=2, first_policy=Async())
    check_same(replace(SPEC, policy=Sync(2)), found(SPEC, Sync(2)), created_with=2, first_policy=Async())
    with pytest.raises(errors.JobMismatch, match=r"policy Sync\(workers=2\), this registration has Async\(\)"):
        check_same(replace(SPEC, policy=Async()), found(SPEC, Sync(2)), created_with=2, first_policy=Sync(2))
    check_same(replace(SPEC, policy=Async()), found(SPEC, Sync(2)), created_with=2, first_policy=Async())
