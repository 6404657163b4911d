"""The classes of the numpy face against what the algorithms declare, and against torch's own classes."""

import inspect
import itertools

import pytest
import torch

import optd
import optd.torch
from optd.group_options import GROUP_OPTIONS, GroupOptionArguments
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.group_options import GROUP_OPTIONS as OF_EVERY_GROUP

IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
HERE = {"self", "params", "where"}
# What takes values for buffers instead of gradients has no class: a group names it.
EACH = pytest.mark.parametrize("name", [name for name, each in ALGORITHMS.items() if not each.takes_values])


def class_of(name: str) -> type:
    return getattr(optd, ALGORITHMS[name].title)


def torch_class_of(name: str) -> type:
    title = ALGORITHMS[name].title
    return getattr(torch.optim, title, None) or getattr(optd.torch, title)


def positional(cls: type) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


@EACH
def test_a_class_has_the_options_that_its_algorithm_declares(name):
    parameters = inspect.signature(class_of(name).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name not in HERE}
    assert defaults == {option.name: option.default for option in ALGORITHMS[name].options}
    assert class_of(name).__name__ in optd.__all__


@EACH
def test_positional_arguments_come_in_torchs_order(name):
    # Some classes of torch take an option by position after one that chooses an implementation.
    theirs = itertools.takewhile(lambda each: each not in IMPLEMENTATION, positional(torch_class_of(name)))
    assert positional(class_of(name)) == list(theirs)


@EACH
def test_there_is_a_class_for_torchs_parameters(name):
    assert ALGORITHMS[name].title in optd.torch.__all__


def test_every_group_has_the_options_here_that_it_has_on_the_server():
    assert list(GROUP_OPTIONS.items()) == [(option.name, option.default) for option in OF_EVERY_GROUP]
    assert list(GroupOptionArguments.__annotations__) == list(GROUP_OPTIONS)
