"""How parameters are divided among fragments. No server."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optd.local_steps.fragments import partition
from optd_wire.errors import InvalidRequest


@pytest.mark.parametrize(
    ("sizes", "fragments", "expected"),
    [
        ([5], 1, [[0]]),
        ([1, 2, 3], 1, [[0, 1, 2]]),
        ([4, 4, 4, 4], 2, [[0, 2], [1, 3]]),
        ([1, 9, 1, 1], 2, [[1], [0, 2, 3]]),
        ([0, 0, 0], 2, [[0, 2], [1]]),
    ],
)
def test_parameters_have_these_fragments(sizes, fragments, expected):
    assert partition(sizes, fragments) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 40))
def test_no_fragment_is_empty_and_none_has_more_than_the_mean_and_a_parameter(sizes, fragments):
    if fragments > len(sizes):
        with pytest.raises(InvalidRequest, match=f"fragments must be at most {len(sizes)}"):
            partition(sizes, fragments)
        return
    parts = partition(sizes, fragments)
    assert sorted(place for part in parts for place in part) == list(range(len(sizes)))
    assert all(parts)
    most = max(sum(sizes[place] for place in part) for part in parts)
    assert most <= sum(sizes) / fragments + max(sizes)
