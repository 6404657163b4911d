"""Extents, buffers and ledger against a model that thinks of every element by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optd_server.store.extents import extent_of, in_compute_dtype
from optd_server.store.flat import FlatBuffers
from optd_server.store.ledger import Ledger, owner_of
from optd_server.store.memory import ALIGNMENT
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.errors import DtypeMismatch, FrameOutOfRange, FrameOverlap, IncompleteParameter, InvalidRequest
from optd_wire.layout import lay_out
from optd_wire.values import ParameterSpec

parameters = st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.integers(0, 3)), min_size=1, max_size=5)
jobs = st.lists(st.lists(parameters, min_size=1, max_size=4), min_size=1, max_size=3)
"""By extent, group and parameter: dtype and size."""


def laid_out(job):
    extents, layouts = [], []
    for groups in job:
        new = [
            lay_out([ParameterSpec(f"{len(layouts) + i}.{j}", (s,), d) for j, (d, s) in enumerate(group)])
            for i, group in enumerate(groups)
        ]
        extents.append(extent_of(new, len(layouts), [kind(group) for group in groups]))
        layouts += new
    return tuple(extents), layouts


def kind(group):
    """That of a group, so that some jobs have groups of several."""
    return "odd" if len(group) % 2 else "even"


class Model:
    """What has been claimed, by group and segment: places and elements."""

    def __init__(self, layouts):
        self.layouts = layouts
        self.claims = {}

    def claim(self, group, offset, count, dtype):
        """The segment that a range is counted in, or the error that it gets."""
        if not 0 <= group < len(self.layouts):
            return InvalidRequest
        holding = [
            number
            for number, segment in enumerate(self.layouts[group].segments)
            if segment.offset <= offset and offset + count <= segment.offset + segment.count
        ]
        if not holding:
            return FrameOutOfRange
        segments = self.layouts[group].segments
        number = next((n for n in holding if segments[n].dtype == dtype), holding[0])
        if dtype is not None and segments[number].dtype != dtype:
            return DtypeMismatch
        if set(range(offset, offset + count)) & self.written(group, number):
            return FrameOverlap
        self.claims.setdefault((group, number), []).append((offset, offset + count))
        return number

    def written(self, group, segment):
        return {element for start, stop in self.claims.get((group, segment), []) for element in range(start, stop)}

    def status(self, group, segment, parameter):
        written = self.written(group, segment)
        if not parameter.size:
            claims = self.claims.get((group, segment), [])
            return "whole" if any(start <= parameter.offset <= stop for start, stop in claims) else "missing"
        got = sum(e in written for e in range(parameter.offset, parameter.offset + parameter.size))
        return "missing" if not got else "whole" if got == parameter.size else "partial"

    def statuses(self, extent, slab):
        return [
            self.status(group, number, self.layouts[group].parameters[member])
            for group in slab.groups
            for number, segment in enumerate(self.layouts[group].segments)
            if segment.dtype == slab.dtype
            for member in segment.members
        ]


@given(jobs, st.data())
@settings(deadline=None, max_examples=200)
def test_a_ledger_says_what_the_model_says(job, data):
    extents, layouts = laid_out(job)
    model, buffers = Model(layouts), FlatBuffers(extents)
    ledger = Ledger(extents, "gradient", [f"g{index}" for index in range(len(layouts))])
    values = {(g, n): np.zeros(s.count, s.dtype) for g, lay in enumerate(layouts) for n, s in enumerate(lay.segments)}
    for tick in range(1, 1 + data.draw(st.integers(0, 12))):
        group = data.draw(st.integers(-1, len(layouts)))
        most = layouts[group].count if 0 <= group < len(layouts) else 2
        offset = data.draw(st.integers(0, most + 1))
        count = data.draw(st.integers(0, most + 1 - offset))
        dtype = data.draw(st.sampled_from([None, *DTYPES]))
        expected = model.claim(group, offset, count, dtype)
        claim = (group, offset, count, None if dtype is None else DTYPES[dtype])
        if isinstance(expected, type):
            with pytest.raises(expected):
                ledger.claim(*claim)
            continue
        extent, slab, start = ledger.claim(*claim)
        buffers.slabs[extent][slab][start : start + count] = tick
        first = offset - layouts[group].segments[expected].offset
        values[group, expected][first : first + count] = tick

    # What was written lies where the group's own arrays have it.
    for (group, number), array in values.items():
        assert buffers.arrays[group][number].tolist() == array.tolist()
    expected = [[model.statuses(extent, slab) for slab in extent.slabs] for extent in extents]
    flat = [status for row in expected for statuses in row for status in statuses]
    if "partial" in flat:
        with pytest.raises(IncompleteParameter):
            ledger.presence()
    else:
        found = ledger.presence()
        assert [[mask.tolist() for mask in row] for row in found] == [
            [[status == "whole" for status in statuses] for statuses in row] for row in expected
        ]
    needed = [
        model.status(g, n, lay.parameters[m])
        for g, lay in enumerate(layouts)
        for n, s in enumerate(lay.segments)
        for m in s.members
        if lay.parameters[m].size
    ]
    if set(needed) <= {"whole"}:
        ledger.require_all()
    else:
        with pytest.raises(IncompleteParameter):
            ledger.require_all()
    seen = [set() for _ in range(sum(len(extent.slabs) for extent in extents))]
    numbers = {pair: k for k, pair in enumerate((e, s) for e, x in enumerate(extents) for s in range(len(x.slabs)))}
    for extent, slab, start, stop in ledger.written():
        assert 0 <= start <= stop <= extents[extent].slabs[slab].count
        seen[numbers[extent, slab]] |= set(range(start, stop))
    for (extent, slab), number in numbers.items():
        assert seen[number] == set(np.flatnonzero(buffers.slabs[extent][slab]).tolist())


@given(jobs)
@settings(deadline=None, max_examples=50)
def test_every_element_has_one_place_and_its_owner_is_found(job):
    extents, layouts = laid_out(job)
    buffers = FlatBuffers(extents)
    assert sum(array.size for array in buffers.all_slabs()) == sum(layout.count for layout in layouts)
    for extent, slabs in zip(extents, buffers.slabs, strict=True):
        for slab, array in zip(extent.slabs, slabs, strict=True):
            array[:] = np.arange(array.size)
            assert slab.byte_offset % ALIGNMENT == 0
            assert slab.byte_offset + array.nbytes <= extent.bytes
    for group, layout in enumerate(layouts):
        extent = next(e for e in extents if e.first_group <= group < e.first_group + len(e.layouts))
        for number, segment in enumerate(layout.segments):
            slab = extent.slabs[extent.places[group - extent.first_group][number].slab]
            for member in segment.members:
                parameter = layout.parameters[member]
                start = parameter.offset - segment.offset
                for place, element in enumerate(buffers.arrays[group][number][start : start + parameter.size]):
                    assert owner_of(extent, slab, int(element)) == (parameter, place)


@given(jobs)
@settings(max_examples=100)
def test_a_slab_has_all_parameters_of_a_dtype_and_kind(job):
    extents, layouts = laid_out(job)
    groups = [group for extent in job for group in extent]
    ledger = Ledger(extents, "gradient", [f"g{index}" for index in range(len(layouts))])
    for extent in extents:
        assert len({(slab.kind, slab.dtype) for slab in extent.slabs}) == len(extent.slabs)
        for slab in extent.slabs:
            members = [
                (index, member)
                for index in range(extent.first_group, extent.first_group + len(extent.layouts))
                for member, parameter in enumerate(layouts[index].parameters)
                if (kind(groups[index]), parameter.dtype) == (slab.kind, slab.dtype)
            ]
            assert list(extent.members(slab)) == members
            assert [p.name for p in extent.parameters(slab)] == [layouts[g].parameters[m].name for g, m in members]
            assert slab.sizes.tolist() == [layouts[g].parameters[m].size for g, m in members]
    for index, layout in enumerate(layouts):
        for segment in layout.segments:
            ledger.claim(index, segment.offset, segment.count, DTYPES[segment.dtype])
    assert ledger.parameters() == {(g, m) for g, layout in enumerate(layouts) for m in range(len(layout.parameters))}


def test_a_ledger_of_an_added_group_is_addressed_by_its_index():
    extent = extent_of([lay_out([ParameterSpec("w", (2,), "float32")])], 3)
    ledger = Ledger((extent,), "weights", ["g"], first_group=3)
    for group in (0, 2, 4):
        with pytest.raises(InvalidRequest, match=r"must be in \[3, 4\)"):
            ledger.claim(group, 0, 2, None)
    assert ledger.claim(3, 0, 2, None) == (0, 0, 0)
    ledger.require_all()


@given(jobs)
@settings(max_examples=50)
def test_what_is_computed_lies_in_the_same_order(job):
    extents, layouts = laid_out(job)
    buffers = FlatBuffers(in_compute_dtype(extents))
    for extent, other in zip(extents, buffers.extents, strict=True):
        # Where nothing is narrower than the arithmetic, it is the same one.
        assert (extent is other) == all(COMPUTED[slab.dtype] == slab.dtype for slab in extent.slabs)
        assert other.places is extent.places
        end = 0
        for slab, wide in zip(extent.slabs, other.slabs, strict=True):
            assert (wide.dtype, wide.count, wide.groups) == (slab.dtype, slab.count, slab.groups)
            assert wide.element_dtype == DTYPES[COMPUTED[slab.dtype]]
            assert wide.byte_offset >= end
            assert wide.byte_offset % ALIGNMENT == 0
            end = wide.byte_offset + wide.count * wide.element_dtype.itemsize
        assert end <= other.bytes
    for layout, arrays in zip(layouts, buffers.arrays, strict=True):
        for segment, array in zip(layout.segments, arrays, strict=True):
            assert (array.size, array.dtype) == (segment.count, DTYPES[COMPUTED[segment.dtype]])
