import numpy as np
import pytest

from optd import errors
from optd.params import read_gradients, read_groups


def a(*shape, dtype="f4"):
    return np.zeros(shape, dtype)


W, B, V = a(2, 3), a(3), a(3, 1, dtype="f8")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([W, B], [("group0", ["param0", "param1"], {})]),
        (iter([W, B]), [("group0", ["param0", "param1"], {})]),
        ({"w": W, "b": B}, [("group0", ["w", "b"], {})]),
        ([("w", W), ("b", B)], [("group0", ["w", "b"], {})]),
        (
            [{"params": {"w": W}, "lr": 1}, {"params": [B, V], "name": "rest"}],
            [("group0", ["w"], {"lr": 1}), ("rest", ["param1", "param2"], {})],
        ),
        ([{"params": W, "betas": [0.9, np.float64(0.5)]}], [("group0", ["param0"], {"betas": (0.9, 0.5)})]),
        ([{"params": [("w", W)], "lr": np.float32(0.5)}], [("group0", ["w"], {"lr": 0.5})]),
    ],
)
def test_everything_that_people_pass(params, expected):
    assert [(group.name, group.names, group.options) for group in read_groups(params)] == expected


READ_ONLY = a(2)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        (W, errors.NotAnArray, "params must be a list or dict of arrays, or a list of group dicts, got ndarray"),
        (3, errors.NotAnArray, "got int"),
        ([], errors.EmptyGroup, "params has no parameters"),
        ([{"params": []}], errors.EmptyGroup, "group 'group0' has no parameters"),
        ([{"parms": [W]}], errors.StructureMismatch, "group 0 must have a dict with the key 'params'"),
        ([[1.0, 2.0]], errors.NotAnArray, "parameter 'param0' must be a numpy array, got list"),
        ([READ_ONLY], errors.NotAnArray, "an array that can be written to"),
        ([a(2, dtype="i4")], errors.UnsupportedDtype, "parameter 'param0': dtype int32 is not supported"),
        ([W, W], errors.DuplicateParameter, "group 'group0' has one array twice, as 'param0' and as 'param1'"),
        ([{"params": [W]}, {"params": [W]}], errors.ParameterInTwoGroups, "in group 'group0' and in group 'group1'"),
    ],
)
def test_what_is_wrong_with_params_is_named(params, error, says):
    with pytest.raises(error) as caught:
        read_groups(params)
    assert says in str(caught.value)


GROUPS = read_groups([{"params": {"w": W, "b": B}}, {"params": {"v": V}}])
GW, GB, GV = np.ones((2, 3), "f4"), np.ones(3, "f4"), np.ones((3, 1))


@pytest.mark.parametrize(
    "gradients",
    [
        {"w": GW, "b": None, "v": GV},
        {"w": GW, "v": GV},
        [GW, None, GV],
        (GW, None, GV),
        [("w", GW), ("v", GV)],
        [{"w": GW}, [GV]],
        [{"params": [GW, None]}, {"params": {"v": GV}}],
    ],
)
def test_gradients_have_the_structure_of_the_params(gradients):
    (w, b), (v,) = read_gradients(gradients, GROUPS)
    assert w is GW
    assert b is None
    assert v is GV


@pytest.mark.parametrize(
    ("gradients", "error", "says"),
    [
        ({"x": GW}, errors.UnknownParameter, "this optimizer has no parameter 'x'"),
        ([GW], errors.StructureMismatch, "gradients must have 3 entries, got 1"),
        ([[GW, GB]], errors.StructureMismatch, "gradients must have 2 groups, got 1"),
        ([[GW], [GV]], errors.StructureMismatch, "gradients of group 'group0' must have 2 entries, got 1"),
        ({"w": GB}, errors.ShapeMismatch, "gradient of parameter 'w' must have shape (2, 3), got (3,)"),
        ({"w": GW.astype("f8")}, errors.DtypeMismatch, "must have dtype float32, got float64"),
        ({"w": 1.0}, errors.NotAnArray, "gradient of parameter 'w' must be a numpy array or None, got float"),
    ],
)
def test_what_is_wrong_with_gradients_is_named(gradients, error, says):
    with pytest.raises(error) as caught:
        read_gradients(gradients, GROUPS)
    assert says in str(caught.value)
