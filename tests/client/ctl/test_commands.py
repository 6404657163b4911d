"""Every command as a real process, with tables and with JSON."""

import os
import re
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest

import optd
from optd.transport.server_calls import ServerCalls
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.group_options import GROUP_OPTIONS
from optd_server.optim.job_options import JOB
from optd_wire.errors import UnknownJob
from optd_wire.values import (
    AlgorithmInfo,
    GroupOptions,
    GroupSummary,
    JobSummary,
    ParameterReport,
    Rejection,
    ServerStatus,
    Statistics,
    WorkerInfo,
)

from .conftest import Optctl

pytestmark = pytest.mark.usefixtures("digits")


def names(value: type) -> list[str]:
    return [field.name for field in fields(value)]


def test_status(optctl):
    shown, document = optctl.both("status")
    facts = {line[:15].strip(): line[15:].strip() for line in shown.lines}
    assert facts["server"] == f"optd 0.1.0 at {optctl.environment['OPTD_SERVER']}"
    assert facts["state"].startswith("SERVING for ")
    assert facts["largest message"] == "16.0 MiB"
    assert (facts["authentication"], facts["tls"]) == ("none", "no")

    assert list(document) == names(ServerStatus)
    assert document["serving"] == "SERVING"
    assert document["limits"]["max_message_bytes"] == 16 << 20


@pytest.mark.slow
def test_health(optctl):
    shown, document = optctl.both("health")
    assert shown.out == "SERVING\n"
    assert document == {"status": "SERVING"}


@pytest.mark.slow
def test_jobs(optctl):
    shown, document = optctl.both("jobs")
    assert shown.lines[0].split()[:6] == ["job", "algorithm", "policy", "version", "workers", "refused"]
    assert "digits adamw async 3 1 1 27 3" in [" ".join(line.split()[:8]) for line in shown.lines]

    digits = next(job for job in document if job["name"] == "digits")
    assert list(digits) == names(JobSummary)
    assert digits["policy"] == {"async": {}}
    assert digits["version"] == {"version": 3, "durable_version": 0, "revision": 0}


def test_groups(optctl):
    shown, document = optctl.both("groups", "digits")
    assert [line.split() for line in shown.lines] == [
        ["#", "group", "parameters", "elements", "dtype", "steps", "lr", "weight_decay"],
        ["0", "hidden", "1", "12", "float32", "3", "0.01", "0.01"],
        ["1", "output", "2", "9", "float64", "3", "0.001", "0.01"],
        ["2", "biases", "2", "6", "float32,float64", "0-3", "0.001", "0"],
        ["in", "all", "groups:", "amsgrad=false", "betas=0.9,0.999", "eps=1e-08", "maximize=false"],
    ]

    hidden, *_ = document
    assert list(hidden) == names(GroupSummary)
    assert list(hidden["options"]) == names(GroupOptions)
    assert hidden["options"]["options"]["lr"] == 0.01
    assert hidden["options"]["options"]["betas"] == [0.9, 0.999]


@pytest.mark.slow
def test_group(optctl):
    shown, document = optctl.both("group", "digits", "biases")
    assert "options     lr=0.001 amsgrad=false betas=0.9,0.999 eps=1e-08 maximize=false weight_decay=0" in shown.lines
    cells = {line.split()[0]: line.split()[1:] for line in shown.lines[-2:]}
    assert cells["hidden.bias"][:3] == ["4", "float32", "3"]
    assert cells["output.bias"] == ["2", "float64", "0", "0", "0", "..", "0", "-", "-"]

    assert list(document) == ["group", "parameters", "gradient_version", "gradient_note"]
    assert document["group"]["options"]["group"] == "biases"
    bias, untouched = document["parameters"]
    assert list(bias) == names(ParameterReport)
    assert bias["parameter"] == {"name": "hidden.bias", "shape": [4], "dtype": "float32", "offset": 0}
    assert {field["field"] for field in bias["fields"]} == {"weights", "gradient", "exp_avg", "exp_avg_sq"}
    assert list(bias["fields"][0]["statistics"]) == names(Statistics)
    assert [field["field"] for field in untouched["fields"]] == ["weights"]


@pytest.mark.slow
def test_one_parameter(optctl):
    shown, document = optctl.both("group", "digits", "hidden", "--parameter", "hidden.weight")
    assert "hidden.weight: 3x4 float32, 3 steps" in shown.lines
    cells = {line[:10].strip(): line[10:].split() for line in shown.lines[-10:]}
    assert cells[""] == ["weights", "gradient", "exp_avg", "exp_avg_sq"]
    assert cells["elements"] == ["12"] * 4
    assert cells["max"][1] == "1"
    assert "█" in cells["min to max"][0]

    assert [report["parameter"]["name"] for report in document["parameters"]] == ["hidden.weight"]


@pytest.mark.slow
def test_values_are_those_of_the_job(optctl, server):
    shown = optctl("group", "digits", "output", "-p", "output.weight", "--values", "--limit", "3")
    assert "values at version 3" in shown.lines
    field, *numbers = shown.lines[-3].split()[1:]
    assert (field, len(numbers), numbers[3:]) == ("gradient", 6, ["and", "5", "more"])
    np.testing.assert_allclose([float(number) for number in numbers[:3]], np.linspace(-1, 1, 8)[:3], rtol=1e-5)

    document = optctl("group", "digits", "output", "--values", "--limit", "0", "-o", "json").document
    assert document["values"]["version"] == {"version": 3, "durable_version": 0, "revision": 0}
    read = {(one["parameter"], one["field"]): one for one in document["values"]["fields"]}
    assert {field for _, field in read} == {"weights", "gradient", "exp_avg", "exp_avg_sq"}
    expected = {}
    transport = ServerCalls.over_grpc(server.address)

    def take(frames):
        expected.update({frame.group: frame.values.tolist() for frame in frames})

    transport.read_state("digits", ("weights",), lambda _: take, 10)
    transport.close()
    assert read["output.weight", "weights"]["numbers"] == expected[1][:8]
    assert read["output.scale", "weights"]["numbers"] == expected[1][8:]
    assert read["output.weight", "weights"]["count"] == 8


@pytest.mark.slow
def test_workers(optctl):
    shown, (worker,) = optctl.both("workers", "digits")
    above, header, trainer, _, note = shown.lines
    assert above.split() == ["staleness", "dropped"]
    assert " ".join(header.split()) == (
        "worker lease waits last push p50/p99/max refused rounds epoch lane host:pid pushes sequence"
    )
    assert re.fullmatch(
        rf"trainer +[\d.]+ s +- +[\d.]+ (s|min) ago +0/0/0 +1 +0 +1 +grpc +\S+:{os.getpid()} +3 +3", trainer
    )
    assert note == "trainer: refused 1 NONFINITE_GRADIENT"

    assert list(worker) == names(WorkerInfo)
    assert worker["active"] is True


@pytest.mark.slow
def test_rejections(optctl):
    shown, document = optctl.both("rejections", "digits")
    assert shown.lines[:2] == ["reason              refused", "NONFINITE_GRADIENT        1"]
    assert shown.lines[-1].split(maxsplit=4)[2:] == [
        "3",
        "trainer",
        "gradient of parameter 'hidden.bias' has nan at flat index 1; the push was refused",
    ]

    assert document["counts"] == {"NONFINITE_GRADIENT": 1}
    assert [list(one) for one in document["recent"]] == [names(Rejection)]


@pytest.mark.slow
def test_algorithms(optctl):
    shown, document = optctl.both("algorithms")
    assert [line.split()[0] for line in shown.lines] == ["algorithm", *ALGORITHMS]
    assert [list(one) for one in document] == [names(AlgorithmInfo)] * len(ALGORITHMS)


@pytest.mark.slow
def test_one_algorithm(optctl):
    shown, (sgd,) = optctl.both("algorithms", "sgd")
    assert "rule       nesterov must be false unless momentum > 0 and dampening = 0" in shown.lines
    assert any(line.split()[:5] == ["momentum", "float", "0", "[0,", "inf)"] for line in shown.lines)
    assert sgd["options"][1]["default_value"] == 0.0


@pytest.mark.slow
def test_one_algorithm_with_what_every_group_and_every_job_has(optctl):
    shown, (adamw,) = optctl.both("algorithms", "adamw")
    for key, declared in (
        ("options", ALGORITHMS["adamw"].options),
        ("group_options", GROUP_OPTIONS),
        ("job_options", JOB.options),
    ):
        assert [option["name"] for option in adamw[key]] == [option.name for option in declared]
        assert [option["doc"] for option in adamw[key]] == [option.doc for option in declared]
        for option in declared:
            assert any(
                line.split()[:2] == [option.name, option.kind] and line.endswith(option.doc) for line in shown.lines
            )
    (accumulate,) = [line for line in shown.lines if line.startswith("accumulate")]
    assert accumulate.split()[:4] == ["accumulate", "int", "1", "[1,"]
    (nonfinite,) = [line for line in shown.lines if line.startswith("nonfinite")]
    assert nonfinite.split()[:6] == ["nonfinite", "text", "reject", "reject,", "skip,", "zero"]
    (steps,) = [line for line in shown.lines if line.startswith("lookahead_steps")]
    assert steps.split()[:7] == ["lookahead_steps", "int", "none", "[1,", "inf)", "or", "none"]


def test_set(optctl, train: Callable):
    job = train()
    version = job.step()
    shown = optctl("set", job.name, "group0", "lr=0.01", "momentum=0.9", "nesterov=true", "dampening=0")
    assert (shown.code, shown.err) == (0, "")
    assert shown.lines == [
        f"{job.name} group0: lr 0.1 -> 0.01, since version {version}",
        f"{job.name} group0: momentum 0 -> 0.9, since version {version}",
        f"{job.name} group0: nesterov false -> true, since version {version}",
        f"{job.name} group0: dampening is 0 already",
    ]

    document = optctl("set", job.name, "group0", "lr=0.001", "-o", "json").document
    assert list(document) == ["options", "previous", "version"]
    assert document["previous"]["options"]["lr"] == 0.01
    assert document["options"]["options"]["lr"] == 0.001
    assert document["options"]["revision"] == document["previous"]["revision"] + 1
    assert document["version"]["version"] == version
    (group,) = job.session.groups()
    assert dict(group.options.options) == document["options"]["options"]


@pytest.mark.slow
def test_set_for_the_whole_job(optctl, train: Callable):
    job = train()
    version = job.step()
    shown = optctl("set", job.name, "clip_norm=1e-6", "clip_norm_type=2")
    assert shown.lines == [
        f"{job.name}: clip_norm none -> 1e-06, since version {version}",
        f"{job.name}: clip_norm_type is 2 already",
    ]
    assert optctl("set", job.name, "ema_decay=0.5").code == 0
    job.step()
    document = optctl("set", job.name, "clip_norm=none", "-o", "json").document
    assert (document["previous"]["options"]["clip_norm"], document["options"]["options"]["clip_norm"]) == (1e-06, None)
    shown, document = optctl.both("job", job.name)
    assert any(line.startswith("options") and "clip_norm=none" in line for line in shown.lines)
    assert any(line.startswith("gradients") and "clipped 1" in line for line in shown.lines)
    assert document["options"] == optctl("set", job.name, "clip_norm=none", "-o", "json").document["options"]
    assert document["job"]["gradients"]["clipped_steps"] == 1
    assert any(line.split() == ["averages", "ema", "of", "1"] for line in shown.lines)
    assert document["averages"] == [{"name": "ema", "updates": 1}]


@pytest.mark.slow
def test_delete(optctl, train: Callable):
    job = train()
    version = job.step()
    assert optctl("delete", job.name, "--yes").out == f"deleted {job.name} at version {version}\n"
    with pytest.raises(UnknownJob):
        job.session.info()


@pytest.mark.slow
def test_delete_in_json(optctl, train: Callable):
    job = train()
    document = optctl("delete", job.name, "-y", "-o", "json").document
    assert list(document) == names(JobSummary)
    assert document["name"] == job.name


@pytest.mark.slow
def test_groups_of_many_options_keep_names_and_numbers_whole(optctl, server):
    """Options that differ have one column where there is no room for a column each."""
    groups = [
        {"params": {"a": np.zeros(3072)}, "name": "hidden", "lookahead_alpha": 0.8, "clip_norm": 1.0},
        {"params": {"b": np.zeros(480)}, "name": "output", "lookahead_steps": 2, "lr": 0.009221639627510077},
    ]
    with optd.connect(server.address, job="options") as session:
        optd.SGD(groups, lr=0.05, lr_schedule="cosine(steps=1000)", session=session)
        wide = Optctl(server.address, {"COLUMNS": "160"})("groups", "options").out
        small = Optctl(server.address, {"COLUMNS": "80"})("groups", "options").out
    assert re.search(r"^1  output +1 +480 +float64 +0 +0\.00922164 +none +0\.5 +2$", wide, re.M), wide
    assert re.search(r"^0  hidden +1 +0 +0\.05 +clip_norm=1 lookahead_alpha=0\.8$", small, re.M), small
    assert re.search(r"^1  output +1 +0 +0\.00922164 +lookahead_steps=2$", small, re.M), small
    assert all("lr_schedule=cosine(steps=1000)" in shown for shown in (wide, small))


@pytest.mark.slow
def test_an_option_of_groups_is_said_to_be_one(optctl, train):
    job = train()
    refused = optctl("set", job.name, "lr=0.1")
    assert "`lr` is a group option: `optctl set JOB GROUP lr=…`; the job's own options are" in refused.err
