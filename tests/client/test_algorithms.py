"""The classes of the numpy face against what the algorithms declare, and against torch's own classes."""

import inspect

import pytest
import torch

import optd
from optd_server.optim.algorithms.registry import ALGORITHMS

CLASSES = {"sgd": optd.SGD, "adam": optd.Adam, "adamw": optd.AdamW}
HERE = {"self", "params", "where"}


def defaults_of(cls) -> dict:
    parameters = inspect.signature(cls.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in HERE}


def test_every_algorithm_has_a_class():
    assert CLASSES.keys() == ALGORITHMS.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_options_that_its_algorithm_declares(name):
    assert defaults_of(CLASSES[name]) == {option.name: option.default for option in ALGORITHMS[name].options}


@pytest.mark.parametrize("name", CLASSES)
def test_positional_arguments_come_in_torchs_order(name):
    def positional(cls):
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    assert positional(CLASSES[name]) == positional(getattr(torch.optim, ALGORITHMS[name].title))
