import json
import math

import pytest

from optd.ctl.documents import document, dump
from optd_wire.values import Async, Bounded, GroupOptions, JobVersion, Policy, Statistics, Sync


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Sync(workers=4), {"sync": {"workers": 4}}),
        (Async(), {"async": {}}),
        (JobVersion(3, 2, 1), {"version": 3, "durable_version": 2, "revision": 1}),
        (
            GroupOptions("g", {"betas": (0.9, 0.99), "flag": True, "nothing": None}),
            {
                "group": "g",
                "options": {"betas": [0.9, 0.99], "flag": True, "nothing": None},
                "revision": 0,
                "since_version": 0,
                "algorithm": "",
            },
        ),
        ((math.nan, math.inf, -math.inf, 1.5), ["NaN", "Infinity", "-Infinity", 1.5]),
        ({"versions": [JobVersion()]}, {"versions": [{"version": 0, "durable_version": 0, "revision": 0}]}),
    ],
)
def test_values_become_plain(value: object, expected: object):
    assert document(value) == expected
    assert json.loads(dump(value)) == expected


def test_every_policy_has_its_arm():
    arms = {"async": Async(), "sync": Sync(workers=1), "bounded": Bounded(staleness=1)}
    assert {type(policy) for policy in arms.values()} == set(Policy.__args__)
    assert all(list(document(policy)) == [arm] for arm, policy in arms.items())


def test_statistics_of_nothing_are_json():
    nothing = Statistics(0, 0, 0, min=math.nan, max=math.nan, mean=math.nan, std=math.nan, norm=0.0)
    assert json.loads(dump(nothing, indent=None))["min"] == "NaN"
