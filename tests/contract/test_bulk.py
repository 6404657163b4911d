"""Weights, gradients and rows with plain stubs: the numbers of our client, in every encoding and delivery."""

import numpy as np
import pytest
from contract.plain import (
    SECONDS,
    Frames,
    Plain,
    arrays,
    ending,
    frame,
    group,
    header,
    job_spec,
    option,
    push_requests,
    refused,
)
from contract.two_groups import BODY, GRADIENT, HEAD, INITIAL, B, U, V, W, assert_weights, create, ids_bytes

import optd
from optd.local import LocalServer
from optd_wire.v1 import (
    tensor_pb2,
    training_service_pb2,
)

# The same numbers as our client


def gradients(seed: int) -> dict[str, np.ndarray]:
    """Gradients of a step; some steps leave a parameter out."""
    random = np.random.default_rng(seed)
    made = {name: random.standard_normal(shape).astype(dtype) for name, (shape, dtype) in {**BODY, **HEAD}.items()}
    if seed % 3 == 1:
        del made["b"]
    if seed % 3 == 2:
        del made["v"]
    return made


def frames_of(given: dict[str, np.ndarray]) -> Frames:
    """A frame for each parameter, last one first; the places in the flat buffers are written down here by hand."""
    places = {"w": (0, 0), "b": (0, 6), "u": (1, 0), "v": (1, 4)}
    return [frame(given[name].ravel(), *places[name]) for name in reversed(places) if name in given]


@pytest.mark.parametrize(
    ("algorithm", "defaults"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        ("adam", {"lr": 0.01, "betas": (0.8, 0.99), "amsgrad": True}),
        ("adamw", {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("rpc", ["Push", "Step"])
def test_weights_and_state_are_those_of_our_client(
    server: LocalServer, plain: Plain, name: str, algorithm: str, defaults: dict[str, object], rpc: str
):
    ours, theirs = f"{name}.client", f"{name}.plain"
    initial = {"w": W.reshape(2, 3).copy(), "b": B.copy(), "v": V.copy(), "u": U.copy()}
    groups = [
        {"name": "body", "params": {n: initial[n] for n in BODY}},
        {"name": "head", "params": {n: initial[n] for n in HEAD}, "lr": 0.05},
    ]
    spec = job_spec(theirs, [group("body", BODY), group("head", HEAD, lr=0.05)], algorithm=algorithm, **defaults)
    plain.create(spec, INITIAL)
    info = plain.info(theirs)
    epoch = plain.join(theirs)
    with optd.connect(server.address, job=ours, worker="w0") as session:
        optimizer = optd.Optimizer(algorithm, groups, session=session, **defaults)
        for sequence in range(1, 6):
            given = gradients(sequence)
            optimizer.step(given)
            head = header(theirs, "w0", epoch, sequence)
            if rpc == "Push":
                plain.push(head, frames_of(given))
                found = plain.weights(theirs)
            else:
                found = arrays(info, plain.step(head, frames_of(given))[1])
            for parameter, array in initial.items():
                assert found[parameter].tobytes() == array.tobytes(), parameter
    result, frames = plain.read_state(theirs)
    expected, expected_frames = plain.read_state(ours)
    assert result.groups == expected.groups
    assert [sent.SerializeToString() for sent in frames] == [sent.SerializeToString() for sent in expected_frames]


def test_a_push_in_one_message_and_in_many_are_the_same(plain: Plain, name: str):
    """Frames split to single elements, in any order, over any number of messages."""
    create(plain, name + ".one", momentum=0.9)
    create(plain, name + ".many", momentum=0.9)
    given = gradients(3)
    frames = frames_of(given)
    whole = [training_service_pb2.PushRequest(header=header(name + ".one", "w0", plain.join(name + ".one"), 1))]
    whole[0].frames.extend(frames)
    plain.training.Push(ending(whole), timeout=SECONDS)
    pieces = [
        frame(values, sent.group, sent.offset + place)
        for sent in frames
        for place, values in enumerate(np.frombuffer(sent.payload, "f8" if sent.encoding == 2 else "f4").reshape(-1, 1))
    ]
    np.random.default_rng(0).shuffle(pieces)
    many = push_requests(header(name + ".many", "w0", plain.join(name + ".many"), 1), pieces)
    plain.training.Push(ending(many), timeout=SECONDS)
    one, other = (plain.weights(name + end) for end in (".one", ".many"))
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}


def upper_halves(values: np.ndarray) -> bytes:
    """bfloat16 of numbers that need no rounding."""
    return b"".join(value.tobytes()[2:] for value in values.astype("<f4"))


def test_gradients_come_in_fewer_bytes(plain: Plain, name: str):
    """bfloat16 for both dtypes, int8 and topk, all in one push."""
    create(plain, name)
    sparse = np.array([1, 3], "<u4").tobytes() + np.array([8, 16], "<f4").tobytes()
    scaled = np.array([2], "<f4").tobytes() + np.array([1, -1, 2], "i1").tobytes()
    frames = [
        tensor_pb2.Frame(count=6, encoding=tensor_pb2.ENCODING_BFLOAT16, payload=upper_halves(W)),
        tensor_pb2.Frame(offset=6, count=3, encoding=tensor_pb2.ENCODING_INT8, payload=scaled),
        tensor_pb2.Frame(group=1, count=4, encoding=tensor_pb2.ENCODING_TOPK, payload=sparse),
        tensor_pb2.Frame(group=1, offset=4, count=2, encoding=tensor_pb2.ENCODING_BFLOAT16, payload=upper_halves(V)),
    ]
    plain.push(header(name, "w0", plain.join(name), 1), frames)
    found = plain.weights(name)
    assert found["w"].tolist() == (W - 0.5 * W).reshape(2, 3).tolist()
    assert found["b"].tolist() == [9, 21, 28]
    assert found["u"].tolist() == [-1, -4, -3, -8]
    assert found["v"].tolist() == (V - 0.25 * V).tolist()


@pytest.mark.parametrize(
    ("encoding", "payload"),
    [
        (tensor_pb2.ENCODING_BFLOAT16, upper_halves(np.array([0, np.inf]))),
        (tensor_pb2.ENCODING_INT8, np.array([np.nan], "<f4").tobytes() + b"\0\1"),
        (tensor_pb2.ENCODING_TOPK, np.array([1], "<u4").tobytes() + np.array([np.nan], "<f4").tobytes()),
    ],
)
def test_numbers_that_are_not_finite_are_seen_in_every_encoding(plain: Plain, name: str, encoding: int, payload: bytes):
    create(plain, name)
    sent = tensor_pb2.Frame(group=1, offset=4, count=2, encoding=encoding, payload=payload)
    with refused("NONFINITE_GRADIENT", "parameter 'v'"):
        plain.push(header(name, "w0", plain.join(name), 1), [sent])
    assert_weights(plain, name, steps=0)


def test_weights_do_not_come_as_topk(plain: Plain, name: str):
    sent = tensor_pb2.Frame(count=9, encoding=tensor_pb2.ENCODING_TOPK)
    with refused("INVALID_REQUEST", "weights cannot be sent in encoding topk"):
        plain.create(job_spec(name, [group("body", BODY)]), [sent])
    assert name not in plain.job_names()


def frames_pulled(plain: Plain, name: str, **wanted: object) -> list[tensor_pb2.Frame]:
    request = training_service_pb2.PullRequest(job=name, **wanted)
    return [told for answer in plain.training.Pull(request, timeout=SECONDS) for told in answer.frames]


def test_some_of_the_weights_are_read(plain: Plain, name: str):
    create(plain, name)
    places = [(told.group, told.offset, told.count) for told in frames_pulled(plain, name, groups=["head"])]
    assert places == [(1, 0, 4), (1, 4, 2)]
    places = [(told.group, told.offset, told.count) for told in frames_pulled(plain, name, parameters=["v", "b"])]
    assert places == [(0, 6, 3), (1, 4, 2)]
    both = frames_pulled(plain, name, groups=["head"], parameters=["u", "w"])
    assert [(told.group, told.offset, told.count) for told in both] == [(0, 0, 6), (1, 0, 4), (1, 4, 2)]
    assert b"".join(told.payload for told in both) == W.tobytes() + U.tobytes() + V.tobytes()
    with refused("UNKNOWN_GROUP", "'tail'", "body, head"):
        frames_pulled(plain, name, groups=["head", "tail"])
    with refused("UNKNOWN_PARAMETER", "'z'"):
        frames_pulled(plain, name, parameters=["z", "w"])


def test_weights_come_in_fewer_bytes(plain: Plain, name: str):
    create(plain, name)
    wanted = training_service_pb2.Delivery(encoding=tensor_pb2.ENCODING_BFLOAT16)
    told = frames_pulled(plain, name, groups=["body"], delivery=wanted)
    assert {each.encoding for each in told} == {tensor_pb2.ENCODING_BFLOAT16}
    assert b"".join(each.payload for each in told) == upper_halves(np.concatenate([W, B]))
    for refused_one in (tensor_pb2.ENCODING_TOPK, 99):
        wanted = training_service_pb2.Delivery(encoding=refused_one)
        with refused("INVALID_REQUEST", "weights cannot travel in"):
            frames_pulled(plain, name, delivery=wanted)
        step = training_service_pb2.StepRequest(header=header(name, "w0", 1, 1), last=True, delivery=wanted)
        with refused("INVALID_REQUEST", "weights cannot travel in"):
            list(plain.training.Step(iter([step]), timeout=SECONDS))


def test_steps_of_one_stream_are_delivered_each_as_it_asks(plain: Plain, name: str):
    """Nothing, fewer bytes, everything, and a release of what nobody holds between them."""
    create(plain, name)
    who = {"job": name, "worker": "w0", "epoch": plain.join(name)}
    wanted = [
        training_service_pb2.Delivery(none=True),
        training_service_pb2.Delivery(encoding=tensor_pb2.ENCODING_BFLOAT16),
        # Shared and in place, of a worker that shares no memory: then it is messages.
        training_service_pb2.Delivery(shared=True, in_place=True),
    ]

    def requests() -> object:
        for sequence, delivery in enumerate(wanted, 1):
            head = header(name, "w0", who["epoch"], sequence)
            yield training_service_pb2.StepRequest(header=head, frames=GRADIENT, last=True, delivery=delivery)
            yield training_service_pb2.StepRequest(release=training_service_pb2.Release(**who))

    told: list[list[tensor_pb2.Frame]] = [[]]
    for answer in plain.training.Step(requests(), timeout=SECONDS):
        told[-1] += answer.frames
        if answer.HasField("pushed"):
            assert answer.pushed.applied_version == answer.pulled.version.version == len(told)
            assert not answer.pulled.HasField("shared")
        if answer.last:
            told.append([])
    none, halves, whole, _ = told
    assert none == []
    assert {each.encoding for each in halves} == {tensor_pb2.ENCODING_BFLOAT16}
    assert arrays(plain.info(name), whole)["b"].tolist() == (B - 1.5).tolist()
    assert_weights(plain, name, steps=3)


def test_a_push_whose_gradient_is_shared_has_nothing_else(plain: Plain, name: str):
    create(plain, name)
    epoch = plain.join(name)
    head = header(name, "w0", epoch, 1, shared=training_service_pb2.SharedGradient(whole=True))
    with refused("INVALID_REQUEST", "without frames"):
        plain.push(head, GRADIENT)
    with refused("SHARED_MEMORY_UNAVAILABLE", "none open"):
        plain.push(head, [])
    plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert_weights(plain, name, steps=1)


def test_option_values_of_every_kind_are_read(plain: Plain, name: str):
    """A number may come as an integer, and a list of numbers as such; nothing set is torch's None."""
    spec = job_spec(name, [group("body", BODY)], algorithm="adam", betas=(0.5, 0.75), amsgrad=True)
    spec.defaults["lr"].CopyFrom(option(2))
    info = plain.create(spec, [frame(np.concatenate([W, B]))])
    resolved = info.groups[0].options.options
    assert (resolved["lr"].number, resolved["amsgrad"].flag) == (2.0, True)
    assert list(resolved["betas"].numbers.numbers) == [0.5, 0.75]
    with refused("INVALID_OPTION", "lr must be a number, got None"):
        plain.update_group(name, "body", lr=None)
    with refused("INVALID_OPTION", "lr must be a number", "'fast'"):
        plain.update_group(name, "body", lr="fast")


def test_rows_come_in_fewer_bytes_and_of_the_group_that_is_named(plain: Plain, name: str):
    create(plain, name)
    request = training_service_pb2.PullRowsRequest(
        job=name, group="head", parameter="v", ids=ids_bytes(1), encoding=tensor_pb2.ENCODING_BFLOAT16
    )
    (answer,) = plain.training.PullRows(request, timeout=SECONDS)
    (told,) = answer.rows
    assert (told.group, told.parameter, told.payload) == (1, 0, upper_halves(V[1:].astype("f4")))


def test_no_rows_are_an_answer_too(plain: Plain, name: str):
    create(plain, name)
    request = training_service_pb2.PullRowsRequest(job=name, parameter="w")
    (answer,) = plain.training.PullRows(request, timeout=SECONDS)
    assert [(told.count, told.ids, told.payload) for told in answer.rows] == [(0, b"", b"")]


@pytest.mark.parametrize(
    ("wanted", "reason", "parts"),
    [
        ({"parameter": "w", "ids": ids_bytes(0, 2)}, "ROW_OUT_OF_RANGE", ["'w'", "[0, 2)", "got 2"]),
        ({"parameter": "w", "ids": b"\xff" * 8}, "ROW_OUT_OF_RANGE", ["[0, 2)", 2**64 - 1]),
        ({"parameter": "w", "ids": b"1234567"}, "MALFORMED_MESSAGE", ["7 bytes", "multiple of 8"]),
        ({"parameter": "z"}, "UNKNOWN_PARAMETER", ["'z'"]),
        ({"parameter": "v", "group": "body"}, "UNKNOWN_PARAMETER", ["'v'", "'body'"]),
        ({"parameter": "w", "group": "tail"}, "UNKNOWN_GROUP", ["'tail'", "body, head"]),
        ({"parameter": "w", "encoding": tensor_pb2.ENCODING_TOPK}, "INVALID_REQUEST", ["topk"]),
        ({"parameter": "w", "encoding": 99}, "INVALID_REQUEST", ["encoding 99"]),
        ({"parameter": "w", "weights": "ema"}, "UNKNOWN_AVERAGE", ["'ema'", "none"]),
        ({"parameter": "w", "job": "nobody"}, "UNKNOWN_JOB", ["nobody"]),
    ],
)
def test_rows_that_cannot_be_had(plain: Plain, name: str, wanted: dict, reason: str, parts: list):
    create(plain, name)
    request = training_service_pb2.PullRowsRequest(**{"job": name, **wanted})
    with refused(reason, *parts):
        list(plain.training.PullRows(request, timeout=SECONDS))


def test_a_parameter_of_no_dimension_has_no_rows(plain: Plain, name: str):
    spec = job_spec(name, [group("body", {"scale": ((), "float32")})])
    plain.create(spec, [frame(np.ones(1, "f4"))])
    request = training_service_pb2.PullRowsRequest(job=name, parameter="scale", ids=ids_bytes(0))
    with refused("INVALID_REQUEST", "'scale'", "()"):
        list(plain.training.PullRows(request, timeout=SECONDS))


def test_a_push_has_terms_and_averages_are_pulled(plain: Plain, name: str) -> None:
    spec = job_spec(name, [group("body", BODY), group("head", HEAD)], lr=1.0)
    spec.options["ema_decay"].number = 0.5
    spec.options["accumulate"].integer = 2
    plain.create(spec, INITIAL)
    epoch = plain.join(name)
    first = plain.push(header(name, "w0", epoch, 1, weight=3.0, loss_scale=4.0), GRADIENT)
    assert (first.accumulated, first.applied_version, first.version.version) == (1, 1, 0)
    second = plain.push(header(name, "w0", epoch, 2), GRADIENT)
    assert (second.accumulated, second.version.version) == (0, 1)
    found = plain.weights(name)
    assert found["b"].tolist() == (B - (3 / 4 + 1) / 4).tolist()
    plain.push(header(name, "w0", epoch, 3), GRADIENT)
    plain.push(header(name, "w0", epoch, 4), GRADIENT)
    request = training_service_pb2.PullRequest(job=name, weights="ema", parameters=["b"])
    answers = list(plain.training.Pull(request, timeout=SECONDS))
    average = arrays(plain.info(name), [sent for answer in answers for sent in answer.frames])["b"]
    assert average.tolist() == (found["b"] - 0.5).tolist()
    assert [(each.name, each.updates) for each in plain.info(name).averages] == [("ema", 2)]
    request.weights = "swa"
    with refused("UNKNOWN_AVERAGE", name, "swa", "ema"):
        list(plain.training.Pull(request, timeout=SECONDS))
