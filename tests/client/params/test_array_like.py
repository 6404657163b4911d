"""What counts as an array, and whether its owner sees what is written to it."""

import array
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.client.frozen import Frozen

from optd import errors
from optd.params.array_like import as_array, read_parameter


class OnlyDlpack:
    """An array that shows nothing else."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __iter__(self) -> Any:
        return iter(self._values)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._values.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()


READ_ONLY = np.ones(2)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "leaf",
    [np.zeros(2), array.array("d", [0.0, 0.0]), memoryview(bytearray(16)).cast("d"), OnlyDlpack(np.zeros(2))],
    ids=["numpy", "array", "buffer", "dlpack"],
)
def test_what_can_be_written_to_is(leaf: Any) -> None:
    read, renew = read_parameter("w", leaf)
    read[:] = [1, 2]
    assert renew is None
    assert list(leaf) == [1, 2]


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (Frozen([1.0, 2.0]), Frozen),
        (memoryview(np.array([1.0, 2.0]).tobytes()).cast("d"), np.ndarray),
        (OnlyDlpack(READ_ONLY), np.ndarray),
        (np.float32(1.5), np.float32),
    ],
    ids=["namespace", "buffer", "dlpack", "scalar"],
)
def test_in_place_of_what_cannot_be_written_to_comes_another(leaf: Any, kind: type) -> None:
    before = np.array(as_array(leaf))
    read, renew = read_parameter("w", leaf)
    np.testing.assert_array_equal(read, before)
    read += 1
    assert renew is not None
    made = renew(read)
    read += 1
    assert type(made) is kind
    assert np.asarray(made).dtype == before.dtype
    np.testing.assert_array_equal(made, before + 1)
    np.testing.assert_array_equal(as_array(leaf), before)


@pytest.mark.parametrize(
    ("leaf", "error", "says"),
    [
        (1.0, errors.NotAnArray, "parameter 'a.b' must be an array, got float"),
        ("w", errors.NotAnArray, "parameter 'a.b' must be an array, got str"),
        (b"wwww", errors.NotAnArray, "parameter 'a.b' must be an array, got bytes"),
        (READ_ONLY, errors.NotAnArray, "parameter 'a.b' must be an array that can be written to, got a read-only one"),
        (Frozen([1, 2]), errors.UnsupportedDtype, "parameter 'a.b': dtype int64 is not supported"),
        (np.zeros(2, ">f8"), errors.UnsupportedDtype, "parameter 'a.b': dtype >f8 is not supported"),
    ],
)
def test_what_is_no_parameter_is_named(leaf: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        read_parameter("a.b", leaf)
    assert str(caught.value).startswith(says)


def test_an_array_that_does_not_let_itself_be_read_is_none() -> None:
    class Closed:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise RuntimeError("it requires a gradient")

    assert as_array(Closed()) is None
    assert as_array(ml_dtypes.bfloat16(1)).dtype == "bfloat16"
