"""Room to add to, cleared where it is needed."""

import numpy as np

from optd_server.store.clearing import Clearing
from optd_server.store.extents import extent_of
from optd_server.store.flat import FlatBuffers
from optd_wire.layout import lay_out
from optd_wire.values import ParameterSpec

SIZES = (3, 0, 2, 4)
EXTENT = extent_of([lay_out([ParameterSpec(f"p{i}", (size,), "float32") for i, size in enumerate(SIZES)])])


def test_a_parameter_is_cleared_whole_and_once():
    buffers = FlatBuffers([EXTENT])
    slab = buffers.slabs[0][0]
    slab[:] = 7
    clearing = Clearing([EXTENT])
    clearing.prepare(buffers, 0, 0, 2, 4)
    assert slab.tolist() == [0] * 5 + [7] * 4
    assert np.signbit(slab[:5]).all()  # -0.0 is what changes no number that is added to it
    slab[:5] = 1
    clearing.prepare(buffers, 0, 0, 4, 9)
    assert slab.tolist() == [1] * 5 + [0] * 4
    clearing.prepare(buffers, 0, 0, 0, 9)
    clearing.prepare(buffers, 0, 0, 3, 3)
    assert slab.tolist() == [1] * 5 + [0] * 4
