"""The checksum of a push: equal for the same push, and another one for whatever differs."""

from dataclasses import replace

import numpy as np
import pytest

from optd_server.engine.rounds.digest import SAMPLE_BYTES, SAMPLES, Digest, differs
from optd_server.store.extents import extent_of
from optd_server.store.gradients import Gradient
from optd_wire.frames import Frame
from optd_wire.layout import lay_out
from optd_wire.values import GroupUpdate, ParameterSpec, PushHeader

HEADER = PushHeader("job", "w", 1, 1, 7, weight=2.0, updates=(GroupUpdate("g", {"lr": 0.5, "momentum": 0.9}),))
FRAMES = (Frame.of(0, 0, np.ones(4, "f4")), Frame.of(1, 0, np.zeros(2)))


def checksum(header: PushHeader = HEADER, frames=FRAMES) -> int:
    digest = Digest(header)
    digest.add(frames)
    return digest.checksum


@pytest.mark.parametrize(
    "same",
    [
        {"epoch": 9},
        {"sequence": 3},
        {"known_revision": 5},
        {"durable": True},
        {"updates": (GroupUpdate("g", {"momentum": 0.9, "lr": 0.5}),)},
    ],
    ids=str,
)
def test_what_does_not_belong_to_the_content_makes_no_difference(same):
    assert checksum(replace(HEADER, **same)) == checksum()


@pytest.mark.parametrize(
    "other",
    [
        {"base_version": 8},
        {"weight": 3.0},
        {"weight": None},
        {"loss_scale": 2.0},
        {"loss": 0.0},
        {"begins": True},
        {"fragment": 1},
        {"updates": ()},
        {"updates": (GroupUpdate("g", {"lr": 0.25, "momentum": 0.9}),)},
    ],
    ids=str,
)
def test_another_header_is_another_content(other):
    assert differs(checksum(replace(HEADER, **other)), checksum())


@pytest.mark.parametrize(
    "frames",
    [
        FRAMES[:1],
        FRAMES[::-1],
        (Frame.of(0, 0, np.full(4, 2.0, "f4")), FRAMES[1]),
        (Frame.of(0, 1, np.ones(4, "f4")), FRAMES[1]),
        (Frame.of(0, 0, np.array([1, 1, 1, -1], "f4")), FRAMES[1]),
    ],
)
def test_other_frames_are_another_content(frames):
    assert differs(checksum(frames=frames), checksum())


def test_frames_in_other_messages_are_the_same_content():
    digest = Digest(HEADER)
    for frame in FRAMES:
        digest.add([frame])
    assert digest.checksum == checksum()


@pytest.mark.parametrize("size", [5, SAMPLES * SAMPLE_BYTES])
def test_a_gradient_in_shared_memory_has_a_checksum_of_another_kind(size):
    parameters = (ParameterSpec("a", (size,), "float32"), ParameterSpec("b", (3,), "float32"))
    extents = (extent_of([lay_out(parameters)]),)

    def shared(values: np.ndarray, *has: bool) -> int:
        digest = Digest(HEADER)
        digest.add_shared(Gradient([[values]], [[np.array(has)]]), extents)
        return digest.checksum

    values = np.ones(size + 3, "f4")
    assert shared(values, True, True) == shared(values.copy(), True, True)
    assert differs(shared(values, True, True), shared(values * 2, True, True))
    assert differs(shared(values, True, True), shared(values, True, False))
    assert not differs(shared(values, True, True), checksum()), "the two do not compare"
    beside = values.copy()
    beside[size:] = 7
    assert shared(values, True, False) == shared(beside, True, False), "what lies beside the gradient does not count"


@pytest.mark.parametrize("unknown", [(0, 4), (4, 0), (0, 0)])
def test_an_unknown_checksum_tells_nothing(unknown):
    assert not differs(*unknown)
