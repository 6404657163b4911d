"""Groups with their own algorithms, as `optctl` shows and changes them."""

from collections.abc import Iterator

import numpy as np
import pytest

import optd

from .conftest import Optctl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixed(server) -> Iterator[str]:
    """The name of a job with Muon and AdamW, at version 1."""
    groups = [
        {"name": "matrices", "params": {"w": np.ones((3, 2))}, "algorithm": "muon", "lr": 0.02},
        {"name": "rest", "params": {"b": np.ones(2)}, "algorithm": "adamw", "lr": 3e-4},
    ]
    with optd.connect(server.address, job="mixed", worker="trainer") as session:
        optd.Optimizer(groups, session=session).step({"w": np.ones((3, 2)), "b": np.ones(2)})
        yield "mixed"


def test_groups_shows_each_algorithm_and_a_dash_for_options_that_it_lacks(optctl: Optctl, mixed: str) -> None:
    optctl = Optctl(optctl.environment["OPTD_SERVER"], {"COLUMNS": "300"})
    shown, document = optctl.both("groups", mixed)
    header, matrices, rest = [line.split() for line in shown.lines]
    assert header[:7] == ["#", "group", "algorithm", "parameters", "elements", "dtype", "steps"]
    assert matrices[:8] == ["0", "matrices", "muon", "1", "6", "float64", "1", "0.02"]
    assert rest[:8] == ["1", "rest", "adamw", "1", "2", "float64", "1", "0.0003"]
    cells = dict(zip(header, zip(matrices, rest, strict=True), strict=True))
    assert cells["betas"] == ("-", "0.9,0.999")
    assert cells["momentum"] == ("0.95", "-")
    assert cells["adjust_lr_fn"] == ("none", "-")
    assert cells["eps"] == ("1e-07", "1e-08")
    assert [group["options"]["algorithm"] for group in document] == ["muon", "adamw"]
    assert "betas" not in document[0]["options"]["options"]


def test_where_room_is_short_a_group_has_its_options_by_name(optctl: Optctl, mixed: str) -> None:
    optctl = Optctl(optctl.environment["OPTD_SERVER"], {"COLUMNS": "100"})
    text = " ".join(" ".join(optctl("groups", mixed).lines).split())
    assert "group algorithm" in text
    assert "betas=0.9,0.999" in text
    assert "betas=-" not in text


def test_one_group(optctl: Optctl, mixed: str) -> None:
    shown, document = optctl.both("group", mixed, "matrices")
    assert "algorithm   muon" in shown.lines
    assert document["group"]["options"]["algorithm"] == "muon"


def test_jobs_and_job_tell_all_algorithms(optctl: Optctl, mixed: str) -> None:
    lines = [line.split() for line in optctl("jobs").lines]
    assert ["mixed", "muon,adamw", "async"] in [line[:3] for line in lines]
    shown, document = optctl.both("job", mixed)
    assert "mixed  muon (matrices), adamw (rest)  async" in shown.lines[0]
    assert document["algorithms"] == {"matrices": "muon", "rest": "adamw"}


def test_watch_tells_all_algorithms(optctl: Optctl, mixed: str) -> None:
    (report,) = [line for line in optctl("watch", mixed, "--count", "1").lines if line]
    assert "lr matrices=0.02 rest=0.0003" in report or "0.02 0.0003" in report


def test_set_checks_options_against_the_algorithm_of_the_group(optctl: Optctl, mixed: str) -> None:
    changed = optctl("set", mixed, "matrices", "ns_steps=6")
    assert "ns_steps 5 -> 6" in changed.out
    refused = optctl("set", mixed, "rest", "momentum=0.5")
    assert refused.code != 0
    assert "adamw: no option 'momentum'" in refused.err
