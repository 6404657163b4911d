"""Parameters of 16 bits, as plain stubs see them: which encoding carries what."""

import ml_dtypes
import numpy as np
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refused

from optd_wire.v1 import tensor_pb2

pytestmark = pytest.mark.slow

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
PARAMETERS = {"brain": ((2,), "bfloat16"), "half": ((3,), "float16")}
# float16 lies first, as its number is the lower one.
HALF, BRAIN = 0, 3


def create(plain: Plain, name: str, **options: object) -> int:
    numbers = [frame(np.ones(2, BFLOAT16), offset=BRAIN), frame(np.ones(3, "f2"), offset=HALF)]
    plain.create(job_spec(name, [group("g", PARAMETERS)], algorithm="sgd", lr=1.0, **options), numbers)
    return plain.join(name)


def test_weights_travel_in_their_16_bits_and_gradients_in_these_or_in_float32(plain: Plain, name: str):
    epoch = create(plain, name)
    given = [frame(np.full(3, 2.0**-12, "f4"), offset=HALF), frame(np.full(2, 0.5, BFLOAT16), offset=BRAIN)]
    _, weights = plain.step(header(name, "w0", epoch, 1), given)
    assert [(sent.offset, sent.count, sent.encoding) for sent in weights] == [
        (HALF, 3, tensor_pb2.ENCODING_FLOAT16),
        (BRAIN, 2, tensor_pb2.ENCODING_BFLOAT16),
    ]
    # Half a unit below 1: a tie, which goes to the even neighbour.
    assert plain.weights(name)["half"].tolist() == [1.0] * 3
    assert plain.weights(name)["brain"].tolist() == [0.5] * 2
    _, gradient = plain.read_state(name, "gradient")
    assert [sent.encoding for sent in gradient] == [tensor_pb2.ENCODING_FLOAT32] * 2
    assert np.frombuffer(gradient[0].payload, "<f4").tolist() == [2.0**-12] * 3
    with refused("DTYPE_MISMATCH", "gradient of parameter 'half' must have dtype float32, got float64"):
        plain.push(header(name, "w0", epoch, 2), [frame(np.ones(3), offset=HALF)])


def test_master_weights_are_a_field_of_float32(plain: Plain, name: str):
    epoch = create(plain, name, master_weights=True)
    given = [frame(np.full(3, 2.0**-12, "f4"), offset=HALF)]
    for sequence in (1, 2, 3):
        plain.push(header(name, "w0", epoch, sequence), given)
    result, frames = plain.read_state(name)
    (entries,) = [entry for entry in result.groups[0].entries if entry.field == "master_weights"]
    assert list(entries.present) == [False, True]
    # Those of `brain`, which has had no gradient, do not exist.
    assert [(sent.field, sent.encoding) for sent in frames] == [("master_weights", tensor_pb2.ENCODING_FLOAT32)]
    assert np.frombuffer(frames[0].payload, "<f4").tolist() == [1 - 3 * 2.0**-12] * 3
    assert plain.weights(name)["half"].tolist() == [np.float16(1 - 3 * 2.0**-12)] * 3
