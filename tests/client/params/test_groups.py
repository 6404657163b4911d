from array import array
from collections import namedtuple

import numpy as np
import pytest
import torch

from optd import errors
from optd.params.groups import plain_option, read_group, read_groups
from optd_wire.values import Single

State = namedtuple("State", "model scale")


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
        ({"w": W, "b": B}.values(), [("group0", ["param0", "param1"], {})]),
        ({"enc": {"w": W}, "layers": [{"b": B}, (V,)]}, [("group0", ["enc.w", "layers.0.b", "layers.1.0"], {})]),
        ([{"w": W, "b": None}, {"w": V}], [("group0", ["0.w", "1.w"], {})]),
        ([W, [B]], [("group0", ["0", "1.0"], {})]),
        ([W, None, B], [("group0", ["param0", "param2"], {})]),
        ([("enc", {"w": W}), B], [("group0", ["enc.w", "param1"], {})]),
        ({"params": {"w": W}}, [("group0", ["params.w"], {})]),
        (State({"params": {"w": W}}, B), [("group0", ["model.params.w", "scale"], {})]),
        (
            [{"params": [W, {"b": B}]}, {"params": iter([V])}],
            [("group0", ["0", "1.b"], {}), ("group1", ["param2"], {})],
        ),
    ],
)
def test_everything_that_people_pass(params, expected):
    groups, in_groups = read_groups(params)
    assert [(group.name, group.names, group.options) for group in groups] == expected
    assert in_groups == (isinstance(params, list) and isinstance(params[0], dict) and "params" in params[0])


def test_a_group_that_is_added_is_named_by_its_place():
    group = read_group({"params": [W, B]}, 2, 5)
    assert (group.name, group.names) == ("group2", ["param5", "param6"])


READ_ONLY = a(2)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        (
            W,
            errors.NotAnArray,
            "params must be a list, dict or other tree of arrays, or a list of group dicts, got ndarray",
        ),
        (3, errors.NotAnArray, "got int"),
        ([], errors.EmptyGroup, "params has no parameters"),
        ([{"params": []}], errors.EmptyGroup, "params has no parameters"),
        (None, errors.NotAnArray, "got NoneType"),
        ("w", errors.NotAnArray, "got str"),
        ({1, 2}, errors.NotAnArray, "got set"),
        ({"w": None}, errors.EmptyGroup, "params has no parameters"),
        ([{"params": [W]}, {"parms": [B]}], errors.StructureMismatch, "group 1 must have a dict with the key 'params'"),
        ([{"parms": [W], "lr": 0.1}], errors.NotAnArray, "parameter '0.lr' must be an array, got float"),
        ([[1.0, 2.0]], errors.NotAnArray, "parameter '0.0' must be an array, got float"),
        ([{"params": 3}], errors.NotAnArray, "parameter 'param0' must be an array, got int"),
        ([READ_ONLY], errors.NotAnArray, "an array that can be written to"),
        ([a(2, dtype="i4")], errors.UnsupportedDtype, "parameter 'param0': dtype int32 is not supported"),
        ({"a": {"b": [W]}, "a.b": {"c": B}}, errors.StructureMismatch, "params must have one entry at 'a.b', got two"),
        ({"a": {"b": [W]}, "a.b": B}, errors.StructureMismatch, "params must have one entry at 'a.b', got two"),
        ([W, W], errors.DuplicateParameter, "group 'group0' has one array twice, as 'param0' and as 'param1'"),
        ([{"params": [W]}, {"params": [W]}], errors.ParameterInTwoGroups, "in group 'group0' and in group 'group1'"),
    ],
)
def test_what_is_wrong_with_params_is_named(params, error, says):
    with pytest.raises(error) as caught:
        read_groups(params)
    assert says in str(caught.value)


OVERLAPPING = {
    "halves": lambda y: {"a": y[:4], "b": y[3:]},
    "a whole and a part": lambda y: {"a": y, "b": y[2:3]},
    "in two groups": lambda y: [{"params": {"a": y[:4]}}, {"params": {"b": y[3:]}}],
    "strides": lambda y: {"a": y[::2], "b": y[4:]},
}


@pytest.mark.parametrize("params", OVERLAPPING.values(), ids=OVERLAPPING)
def test_parameters_that_lie_in_one_memory_are_refused(params):
    with pytest.raises(errors.SharedParameters) as caught:
        read_groups(params(np.zeros(6)))
    assert str(caught.value).startswith("parameters 'a' and 'b' lie in the same memory, where each would overwrite")


def test_views_that_lie_apart_are_parameters():
    y, matrix = np.zeros(6), np.zeros((4, 4))
    params = {"a": y[:3], "b": y[3:], "c": matrix[:, :2], "d": matrix[:, 2:], "e": np.zeros(0), "f": y[6:]}
    assert read_groups(params)[0][0].names == list("abcdef")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), Single(0.5)),
        (np.array(3), 3),
        (np.array([[0.5]]), 0.5),
        (torch.tensor(0.25), Single(0.25)),
        (torch.tensor(0.25, dtype=torch.float64), 0.25),
        (np.array([], np.float32), ()),
        (array("d", [0.5, 0.25]), (0.5, 0.25)),
        (torch.tensor(0.25, dtype=torch.bfloat16), "tensor(0.2500, dtype=torch.bfloat16)"),
        (np.array([0.5, 0.25]), (0.5, 0.25)),
        (torch.tensor([0.5, 0.25]), (0.5, 0.25)),
        ((torch.tensor(0.5), np.float64(0.25), None), (0.5, 0.25, None)),
    ],
)
def test_options_may_be_numbers_arrays_and_tensors(value: object, plain: object) -> None:
    found = plain_option(value)
    assert (found, type(found)) == (plain, type(plain))


def test_numbers_in_a_tuple_stay_of_float32_too() -> None:
    for value in (torch.tensor([0.5, 0.25]), (torch.tensor([[0.5]]), np.float32(0.25)), np.array([0.5, 0.25], "f4")):
        found = plain_option(value)
        assert isinstance(found, tuple)
        assert [type(each) for each in found] == [Single, Single]
    assert plain_option((0.5, np.float64(0.25))) == (0.5, 0.25)
