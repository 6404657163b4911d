"""A call of every RPC of training, state and inspection, of health and reflection, with plain stubs."""

import re

import numpy as np
from contract.plain import (
    ALL_RPCS,
    OWN_RPCS,
    SECONDS,
    Plain,
    arrays,
    ending,
    frame,
    header,
    push_requests,
    refused,
)
from contract.two_groups import GRADIENT, B, W, assert_weights, create, ids_bytes
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from optd_wire.v1 import (
    inspection_service_pb2,
    option_pb2,
    state_service_pb2,
    tensor_pb2,
    training_service_pb2,
)

# Training


def push(plain: Plain, name: str) -> None:
    create(plain, name)
    epoch = plain.join(name)
    result = plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert (result.version.version, result.applied_version, result.staleness, result.repeat) == (1, 1, 0, False)
    again = plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert again.repeat
    again.repeat = False
    assert again == result
    assert plain.push(header(name, "w0", epoch, 2), GRADIENT).staleness == 1
    assert_weights(plain, name, steps=2)


def pull(plain: Plain, name: str) -> None:
    create(plain, name)
    result, _ = plain.pull(name)
    assert [told.group for told in result.options] == ["body", "head"]
    known = training_service_pb2.PullRequest(job=name, known_version=0, known_revision=0)
    (answer,) = plain.training.Pull(known, timeout=SECONDS)
    assert answer.result.not_modified
    assert not answer.frames
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT)
    answers = list(plain.training.Pull(known, timeout=SECONDS))
    assert (answers[0].result.not_modified, answers[0].result.version.version) == (False, 1)
    assert_weights(plain, name, steps=1)


def pull_rows(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT)
    request = training_service_pb2.PullRowsRequest(job=name, parameter="w", ids=ids_bytes(1, 0, 1))
    (answer,) = plain.training.PullRows(request, timeout=SECONDS)
    assert answer.version.version == 1
    (told,) = answer.rows
    assert (told.group, told.parameter, told.count) == (0, 0, 3)
    assert (told.encoding, told.ids) == (tensor_pb2.ENCODING_FLOAT32, ids_bytes(1, 0, 1))
    assert told.payload == (W - 0.5).reshape(2, 3)[[1, 0, 1]].tobytes()


def watch_versions(plain: Plain, name: str) -> None:
    """Also what belongs to it: a pull that waits for a version."""
    create(plain, name)
    epoch = plain.join(name)
    stream = plain.training.WatchVersions(training_service_pb2.WatchVersionsRequest(job=name), timeout=SECONDS)
    assert next(stream).version.version == 0
    known = training_service_pb2.WatchVersionsRequest(job=name, known_version=0)
    informed = plain.training.WatchVersions(known, timeout=SECONDS)
    plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert (next(stream).version.version, next(informed).version.version) == (1, 1)
    request = training_service_pb2.PullRequest(job=name, min_version=2, wait_ms=20)
    with refused("DEADLINE_EXCEEDED", f"version 2 of job '{name}' was asked for, and it is at version 1"):
        next(plain.training.Pull(request, timeout=SECONDS))
    request.wait_ms = int(1000 * SECONDS)
    waiting = plain.training.Pull(request, timeout=SECONDS)
    plain.push(header(name, "w0", epoch, 2), GRADIENT)
    assert next(waiting).result.version.version == 2
    request.delivery.none = True
    (answer,) = plain.training.Pull(request, timeout=SECONDS)
    assert (answer.result.version.version, list(answer.frames)) == (2, [])
    assert next(stream).version.version == 2
    plain.delete(name)
    for each in (stream, informed):
        with refused("UNKNOWN_JOB", name):
            list(each)


def step(plain: Plain, name: str) -> None:
    """Three steps on one stream, one answered before the next is sent, its frames in three messages."""
    create(plain, name)
    epoch = plain.join(name)
    info = plain.info(name)

    def requests() -> object:
        for sequence in (1, 2, 3):
            first, *rest = GRADIENT
            head = header(name, "w0", epoch, sequence)
            yield training_service_pb2.StepRequest(header=head, frames=[first])
            for sent in rest:
                yield training_service_pb2.StepRequest(frames=[sent])
            yield training_service_pb2.StepRequest(last=True)

    steps = 0
    frames: list[object] = []
    for answer in plain.training.Step(requests(), timeout=SECONDS):
        frames += answer.frames
        if answer.HasField("pushed"):
            steps += 1
            assert answer.pushed.applied_version == answer.pulled.version.version == steps
        if answer.last:
            assert arrays(info, frames)["b"].tolist() == (B - 0.5 * steps).tolist()
            frames = []
    assert steps == 3
    assert_weights(plain, name, steps=3)


# State


def read_state(plain: Plain, name: str) -> None:
    create(plain, name, momentum=0.5)
    epoch = plain.join(name)
    plain.push(header(name, "w0", epoch, 1), GRADIENT)
    plain.push(header(name, "w0", epoch, 2), GRADIENT[:1])
    result, frames = plain.read_state(name)
    assert [list(g.steps) for g in result.groups] == [[2, 2], [1, 1]]
    assert {entry.field for g in result.groups for entry in g.entries} == {"momentum_buffer"}
    assert {sent.field for sent in frames} == {"momentum_buffer"}
    assert arrays(plain.info(name), frames)["b"].tolist() == [1.5, 1.5, 1.5]
    _, weights = plain.read_state(name, "weights")
    _, pulled = plain.pull(name)
    info = plain.info(name)
    assert all(np.array_equal(a, arrays(info, pulled)[n]) for n, a in arrays(info, weights).items())
    request = state_service_pb2.ReadStateRequest(job=name, fields=["gradient"], group="body", parameter="b")
    one = [sent for answer in plain.state.ReadState(request, timeout=SECONDS) for sent in answer.frames]
    assert [(sent.field, sent.offset, sent.count) for sent in one] == [("gradient", 6, 3)]
    # Which state there is, without the numbers.
    assert plain.read_state(name, "step") == (result, [])


def write_state(plain: Plain, name: str) -> None:
    create(plain, name, momentum=0.5)
    head = state_service_pb2.WriteStateHeader(job=name, worker="w0", epoch=plain.join(name))
    state = head.groups.add(group=0, steps=[5, 6])
    state.entries.add(field="momentum_buffer", present=[True, True])
    head.updates.add(group="head").options["lr"].number = 0.125
    requests = [
        state_service_pb2.WriteStateRequest(header=head),
        state_service_pb2.WriteStateRequest(frames=[frame(np.full(9, 4, "f4"), field="momentum_buffer")]),
        state_service_pb2.WriteStateRequest(frames=[frame(np.full(3, 9, "f4"), offset=6, field="weights")]),
    ]
    answer = plain.state.WriteState(ending(requests), timeout=SECONDS)
    assert (answer.version.version, answer.version.revision) == (0, 1)
    assert [(group.group, group.options["lr"].number) for group in answer.options] == [("body", 0.5), ("head", 0.125)]
    result, frames = plain.read_state(name)
    assert [list(g.steps) for g in result.groups] == [[5, 6], [0, 0]]
    found = plain.weights(name)
    assert found["b"].tolist() == [9, 9, 9]
    assert found["w"].ravel().tolist() == W.tolist()
    assert arrays(plain.info(name), frames)["w"].ravel().tolist() == [4] * 6


# Inspection


def get_server_status(plain: Plain, name: str) -> None:
    before = plain.status()
    create(plain, name)
    status = plain.status()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", status.server_version)
    assert (status.serving, status.authentication, status.tls, status.durability) == ("SERVING", "none", False, "none")
    assert (status.jobs, status.requests) == (before.jobs + 1, 1)
    assert status.planned_bytes - before.planned_bytes == plain.summary(name).planned_bytes
    assert status.resident_bytes > 1 << 20
    assert status.limits.max_message_bytes == 16 << 20


def list_algorithms(plain: Plain, name: str) -> None:
    request = inspection_service_pb2.ListAlgorithmsRequest()
    known = {found.name: found for found in plain.inspection.ListAlgorithms(request, timeout=SECONDS).algorithms}
    assert {"sgd", "adam", "adamw"} <= set(known)
    lr, betas = (next(o for o in known["adam"].options if o.name == name) for name in ("lr", "betas"))
    assert (lr.kind, lr.default_value.number, lr.range) == ("float", 1e-3, "[0, inf)")
    assert (betas.kind, list(betas.default_value.numbers.numbers)) == ("floats", [0.9, 0.999])
    assert list(known["adam"].state) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


def list_groups(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT[:1])
    request = inspection_service_pb2.ListGroupsRequest(job=name)
    answer = plain.inspection.ListGroups(request, timeout=SECONDS)
    assert answer.version.version == 1
    assert [(g.options.group, g.parameters, g.elements, g.min_steps, g.max_steps) for g in answer.groups] == [
        ("body", 2, 9, 1, 1),
        ("head", 2, 6, 0, 0),
    ]
    assert len(answer.groups[1].dtypes) == 2


def inspect_group(plain: Plain, name: str) -> None:
    create(plain, name, momentum=0.5)
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT)
    request = inspection_service_pb2.InspectGroupRequest(job=name, group="body", statistics=True, bins=4)
    answers = list(plain.inspection.InspectGroup(request, timeout=SECONDS))
    assert (answers[0].group.options.group, answers[0].version.version) == ("body", 1)
    reports = {report.parameter.name: report for answer in answers for report in answer.parameters}
    assert (list(reports), reports["b"].steps) == (["w", "b"], 1)
    fields = {found.field: found.statistics for found in reports["b"].fields}
    assert set(fields) == {"weights", "gradient", "momentum_buffer"}
    weights = fields["weights"]
    assert (weights.min, weights.max, weights.count, weights.nonfinite) == (9.5, 29.5, 3, 0)
    assert (len(weights.histogram_edges), sum(weights.histogram_counts)) == (5, 3)
    one = inspection_service_pb2.InspectGroupRequest(job=name, group="head", parameter="v")
    reports = [r for answer in plain.inspection.InspectGroup(one, timeout=SECONDS) for r in answer.parameters]
    assert [report.parameter.name for report in reports] == ["v"]


def list_rejections(plain: Plain, name: str) -> None:
    create(plain, name)
    epoch = plain.join(name)
    with refused("NONFINITE_GRADIENT", "'b'"):
        plain.push(header(name, "w0", epoch, 1), [frame(np.full(3, np.nan, "f4"), offset=6)])
    with refused("OPTION_OUT_OF_RANGE", "lr"):
        plain.update_group(name, "body", lr=-1.0)
    answer = plain.rejections(name)
    assert dict(answer.counts) == {"NONFINITE_GRADIENT": 1, "OPTION_OUT_OF_RANGE": 1}
    assert [(r.worker, r.reason, r.version) for r in answer.recent] == [
        ("w0", "NONFINITE_GRADIENT", 0),
        ("", "OPTION_OUT_OF_RANGE", 0),
    ]
    assert plain.summary(name).rejections == 2


def list_option_changes(plain: Plain, name: str) -> None:
    create(plain, name)
    before = plain.update_group(name, "body", lr=0.125).options.since_version
    update = option_pb2.GroupUpdate(group="head", options={"lr": option_pb2.OptionValue(number=0.0625)})
    plain.push(header(name, "w0", plain.join(name), 1, updates=[update]), GRADIENT)
    request = inspection_service_pb2.ListOptionChangesRequest(job=name)
    answer = plain.inspection.ListOptionChanges(request, timeout=SECONDS)
    body, head = answer.changes
    assert (body.group, body.option, body.after.number, body.version, body.worker) == ("body", "lr", 0.125, before, "")
    assert (head.group, head.option, head.after.number, head.version, head.worker) == ("head", "lr", 0.0625, 0, "w0")
    assert body.before.number != 0.125
    assert answer.version.version == 1
    request.group = "head"
    assert list(plain.inspection.ListOptionChanges(request, timeout=SECONDS).changes) == [head]
    request.group = "nope"
    with refused("UNKNOWN_GROUP", "nope"):
        plain.inspection.ListOptionChanges(request, timeout=SECONDS)


def list_rounds(plain: Plain, name: str) -> None:
    create(plain, name, workers=2)
    epochs = [plain.join(name, worker) for worker in ("w0", "w1")]
    request = inspection_service_pb2.ListRoundsRequest(job=name)
    assert not plain.inspection.ListRounds(request, timeout=SECONDS).rounds
    first = plain.training.Push.future(
        ending(push_requests(header(name, "w0", epochs[0], 1), GRADIENT)), timeout=SECONDS
    )
    while not (rounds := plain.inspection.ListRounds(request, timeout=SECONDS).rounds) or not rounds[0].arrived:
        assert not first.done()  # it is answered after its deadline at the latest
    (found,) = rounds
    assert (found.step, found.fragment, found.places, found.deadline_unix_ms) == (1, 0, 0, 0)
    assert ([*found.arrived], [*found.arriving], found.release) == (["w0"], [], "pushes of w1")
    assert [(worker.name, worker.active) for worker in found.missing] == [("w1", True)]
    assert 0 < found.missing[0].joined_unix_ms <= found.opened_unix_ms <= found.unix_ms
    plain.push(header(name, "w1", epochs[1], 1), GRADIENT)
    assert first.result().result.applied_version == 1
    assert not plain.inspection.ListRounds(request, timeout=SECONDS).rounds


def watch_job(plain: Plain, name: str) -> None:
    create(plain, name)
    epoch = plain.join(name)
    request = inspection_service_pb2.WatchJobRequest(job=name, interval_ms=50)
    stream = plain.inspection.WatchJob(request, timeout=SECONDS)
    first = next(stream)
    assert (first.job.version.version, len(first.groups), len(first.workers)) == (0, 2, 1)
    plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert next(stream).job.version.version == 1
    plain.delete(name)
    with refused("UNKNOWN_JOB", name):
        next(stream)


# Health and reflection


def check(plain: Plain, name: str) -> None:
    for service in ("", *{method.containing_service.full_name for method in OWN_RPCS}):
        answer = plain.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def watch(plain: Plain, name: str) -> None:
    stream = plain.health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
    stream.cancel()


def server_reflection_info(plain: Plain, name: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    (answer,) = plain.reflection.ServerReflectionInfo(iter([request]), timeout=SECONDS)
    listed = {service.name for service in answer.list_services_response.service}
    assert listed == {method.containing_service.full_name for method in ALL_RPCS}
