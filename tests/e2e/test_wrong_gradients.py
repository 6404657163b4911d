"""Gradients that are wrong in one place, anywhere: refused with the parameter's name, and nothing has changed.

Drawn at random; `test_bad_input` has the cases one by one, with their messages.
"""

from dataclasses import dataclass
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refusal_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

PARAMETERS = {
    "w": (0, 0, 6, np.dtype("f4")),
    "b": (0, 6, 3, np.dtype("f4")),
    "d": (1, 0, 5, np.dtype("f8")),
    "h": (2, 0, 4, np.dtype(ml_dtypes.bfloat16)),
    "k": (2, 4, 2, np.dtype(ml_dtypes.bfloat16)),
}
"""By name: group, offset, count and dtype."""
names = st.sampled_from(sorted(PARAMETERS))
with_a_server = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Target:
    plain: Plain
    job: str
    epoch: int

    def everything(self) -> dict[str, Any]:
        return self.plain.everything(self.job)

    def refusal(self, frames: list[Any]) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            self.plain.push(header(self.job, "w0", self.epoch, 1), frames)
        return refusal_of(caught.value)


@pytest.fixture
def target(plain: Plain, name: str) -> Target:
    groups = [
        group("a", {"w": ((2, 3), "float32"), "b": ((3,), "float32")}),
        group("c", {"d": ((5,), "float64")}),
        group("e", {"h": ((4,), "bfloat16"), "k": ((2,), "bfloat16")}),
    ]
    plain.create(job_spec(name, groups, lr=0.5, momentum=0.9), gradients())
    return Target(plain, name, plain.join(name))


def gradients(**changed: np.ndarray) -> list[Any]:
    """A frame for each parameter, in order; all ones where it is not changed."""
    return [
        frame(changed.get(name, np.ones(count, dtype)), group=group, offset=offset)
        for name, (group, offset, count, dtype) in PARAMETERS.items()
    ]


@given(st.data())
@with_a_server
def test_26_a_number_that_is_none_anywhere_is_refused_and_changes_nothing(target: Target, data: st.DataObject):
    before = target.everything()
    culprit = data.draw(names)
    _, _, count, dtype = PARAMETERS[culprit]
    index = data.draw(st.integers(0, count - 1))
    values = np.ones(count, dtype)
    values[index] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    found = target.refusal(gradients(**{culprit: values}))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NONFINITE_GRADIENT")
    assert repr(culprit) in found.text
    assert target.everything() == before


def spoiled(data: st.DataObject, culprit: str) -> tuple[list[Any], set[str]]:
    """A push of whose frames one is wrong, and the reasons that it may be refused for."""
    group, offset, count, dtype = PARAMETERS[culprit]
    good = gradients()
    at = list(PARAMETERS).index(culprit)
    match data.draw(st.sampled_from(["short", "twice", "dtype", "bytes", "beyond"])):
        case "short":
            good[at] = frame(np.ones(count - 1, dtype), group=group, offset=offset)
            return good, {"INCOMPLETE_PARAMETER"}
        case "twice":
            good.insert(at + 1, frame(np.ones(1, dtype), group=group, offset=offset + count - 1))
            return good, {"FRAME_OVERLAP"}
        case "dtype":
            # Numbers of 16 bits may come in float32, too.
            other = "f4" if dtype == np.float64 else "f8"
            good[at] = frame(np.ones(count, other), group=group, offset=offset)
            return good, {"DTYPE_MISMATCH"}
        case "bytes":
            good[at].payload = good[at].payload[: data.draw(st.integers(0, len(good[at].payload) - 1))]
            return good, {"FRAME_LENGTH"}
        case _:
            good[at] = frame(np.ones(count + 100, dtype), group=group, offset=offset)
            return good, {"FRAME_OUT_OF_RANGE", "FRAME_OVERLAP"}


@given(st.data())
@with_a_server
def test_27_a_gradient_that_is_wrong_in_one_group_changes_no_group(target: Target, data: st.DataObject):
    before = target.everything()
    culprit = data.draw(names)
    frames, reasons = spoiled(data, culprit)
    found = target.refusal(data.draw(st.permutations(frames)))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT, found
    assert found.reason in reasons, found
    if found.reason in ("INCOMPLETE_PARAMETER", "DTYPE_MISMATCH"):
        assert repr(culprit) in found.text
    else:  # a frame of more or less than a parameter: its place or its parameter is named
        assert found.values.keys() & {"group", "parameter"}
    assert target.everything() == before


sizes = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]))


@given(sizes, sizes, st.integers(0, 2**32 - 1), st.integers(1, 12), st.binary(max_size=64))
@with_a_server
def test_28_a_size_that_overflows_is_refused_before_anything_is_allocated(
    target: Target, offset: int, count: int, number: int, encoding: int, payload: bytes
):
    """Nothing of such a size could be allocated, so that the answer comes is the proof."""
    lie = frame(np.ones(1, "f4"))
    lie.group, lie.offset, lie.count, lie.encoding, lie.payload = number % 4, offset, max(count, 100), encoding, payload
    before = target.everything()
    found = target.refusal([lie])
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT, found
    assert target.everything() == before
