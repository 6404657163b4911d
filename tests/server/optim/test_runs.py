"""The cut: every element is in exactly one piece, with the kind of its parameter."""

from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optd_server.optim import runs

FAMILIES = [0, 1, 1, 2]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 2, 30, 100]), st.integers(0, 3)), max_size=40),
    st.sampled_from([0, 3, 50, 1000]),
    st.sampled_from([0, 2, 8]),
)
def test_pieces_hold_every_element_once(parameters, short, many) -> None:
    sizes = np.array([size for size, _ in parameters], np.int64)
    kinds = np.array([kind for _, kind in parameters], np.int64)
    with mock.patch.multiple(runs, BLOCK=32, SHORT=short, MANY=many):
        pieces = list(runs.cut(runs.merge(sizes, np.cumsum(sizes) - sizes, kinds), FAMILIES))
    seen = np.full(sizes.sum(), -1)
    for piece in pieces:
        if isinstance(piece, runs.Span):
            index, kind = np.arange(piece.start, piece.stop), piece.kind
            assert piece.count <= 32
        else:
            index, kind = piece.elements(), np.repeat(piece.kinds, piece.lengths)
            assert len({FAMILIES[k] for k in piece.kinds}) == 1
            assert (piece.lengths < short).all()
            assert piece.count < 32 + short
        assert piece.count == len(index) > 0
        assert (seen[index] == -1).all()
        seen[index] = kind
    np.testing.assert_array_equal(seen, np.repeat(kinds, sizes))


def cut(sizes: list[int], kinds: list[int]) -> list[runs.Span | runs.Patchwork]:
    lengths = np.array(sizes, np.int64)
    return list(runs.cut(runs.merge(lengths, np.cumsum(lengths) - lengths, np.array(kinds)), FAMILIES))


def test_parameters_of_one_kind_are_one_run_across_an_empty_one_of_another() -> None:
    assert cut([5, 0, 7], [1, 2, 1]) == [runs.Span(0, 12, 1)]


def test_thousands_of_short_runs_are_few_pieces() -> None:
    pieces = cut([10] * 10_000, [0, 1] * 5_000)
    assert len(pieces) == 2


def test_a_few_short_runs_are_visited() -> None:
    assert cut([3, 3, 3], [0, 1, 0]) == [runs.Span(0, 3, 0), runs.Span(3, 6, 1), runs.Span(6, 9, 0)]
