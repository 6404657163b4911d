"""Rows of a parameter within the flat weights of a job."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optd_server.engine.apply import create
from optd_server.engine.events import Created
from optd_server.engine.fold import snapshot_of
from optd_server.engine.readers.selection import select_rows
from optd_server.store.extents import extent_of
from optd_server.store.flat import FlatBuffers
from optd_wire.layout import lay_out
from optd_wire.values import Async, GroupSpec, JobSpec, ParameterSpec

shapes = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
kinds = st.tuples(shapes, st.sampled_from(["float32", "float64"]))


@st.composite
def jobs(draw: st.DrawFn) -> JobSpec:
    groups = []
    for index, row in enumerate(draw(st.lists(st.lists(kinds, min_size=1, max_size=4), min_size=1, max_size=3))):
        parameters = [ParameterSpec(f"p{index}.{place}", *kind) for place, kind in enumerate(row)]
        groups.append(GroupSpec(f"g{index}", {}, tuple(parameters)))
    return JobSpec("job", "sgd", {}, tuple(groups), Async())


@given(jobs(), st.data())
def test_rows_are_those_of_the_parameter_wherever_it_lies(spec: JobSpec, data: st.DataObject):
    """Parameters of two dtypes, of any group and shape, empty ones included: each element is its own flat offset."""
    weights = FlatBuffers([extent_of([lay_out(group.parameters) for group in spec.groups])])
    state = create(Created(spec, Async(), "id", 0.0, 0, weights))
    job, groups, snapshot = SimpleNamespace(name="job", state=state), state.groups, snapshot_of(state)
    for index, layout in enumerate(groups.layouts):
        for segment, array in zip(layout.segments, snapshot.arrays(index), strict=True):
            array[:] = np.arange(segment.offset, segment.offset + segment.count)
    for index, layout in enumerate(groups.layouts):
        for number, parameter in enumerate(layout.parameters):
            rows = parameter.shape[0]
            ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=4) if rows else st.just([])), "u8")
            named = data.draw(st.sampled_from(["", f"g{index}"]))
            selected = select_rows(job, named, parameter.name, ids)
            assert (selected.group, selected.parameter) == (index, number)
            whole = np.arange(parameter.offset, parameter.offset + parameter.size).reshape(parameter.shape)
            columns = whole[0].size if whole.size else 0
            found = selected.of(snapshot)[selected.ids]
            assert found.shape == (len(ids), columns)
            assert np.array_equal(found, whole.reshape(rows, columns)[ids])
