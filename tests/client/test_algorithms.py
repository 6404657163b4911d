"""The classes of the numpy face against what the algorithms declare, and against torch's own classes."""

import ast
import dataclasses
import inspect
import itertools

import pytest
import torch

import optd
import optd.torch
from optd.options.group_options import GROUP_OPTIONS, GroupOptionArguments
from optd.session.connect_arguments import SessionArguments
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.group_options import GROUP_OPTIONS as OF_EVERY_GROUP
from optd_server.optim.job_options import JOB

IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
OF_SESSION = [each.name for each in SessionArguments.parameters()]
JOB_AND_BEHAVIOUR = ["session", *OF_SESSION, "zero_copy", "local_changes", "norms", "buffers"]
HERE = {"self", "params", "others", *GROUP_OPTIONS, *JOB_AND_BEHAVIOUR}
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


@EACH
def test_every_signature_shows_what_all_algorithms_share(name):
    for face in (optd, optd.torch):
        parameters = inspect.signature(getattr(face, ALGORITHMS[name].title)).parameters
        shared = [each for each in parameters if each in {*GROUP_OPTIONS, *JOB_AND_BEHAVIOUR}]
        assert shared == [*GROUP_OPTIONS, *JOB_AND_BEHAVIOUR]
        assert {option: parameters[option].default for option in GROUP_OPTIONS} == GROUP_OPTIONS
        kinds = {parameters[each].kind for each in shared}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("cls", [optd.Optimizer, optd.torch.Optimizer], ids=["numpy", "torch"])
def test_so_do_those_of_optimizers_by_name(cls):
    parameters = list(inspect.signature(cls).parameters)
    assert parameters == ["algorithm", "params", *GROUP_OPTIONS, *JOB_AND_BEHAVIOUR, "options"]


@EACH
def test_help_tells_meaning_range_and_default_of_every_option(name):
    for face in (optd, optd.torch):
        text = " ".join(getattr(face, ALGORITHMS[name].title).__doc__.split())
        for option in (*ALGORITHMS[name].options, *OF_EVERY_GROUP):
            assert f" {option.name}: {option.doc}" in text
            if option.kind in ("float", "int") and str(option.range) != "(-inf, inf)":
                assert f"n {option.range}" in text
        for argument in JOB_AND_BEHAVIOUR:
            assert f" {argument}: " in text


@EACH
def test_editors_see_the_signature_that_torchs_class_has(name):
    """At run time it is torch's; what a type checker reads is written down."""
    cls = getattr(optd.torch, ALGORITHMS[name].title)
    tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))
    (written,) = [node.args for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    shown = inspect.signature(cls).parameters
    assert [each.arg for each in (*written.args, *written.kwonlyargs)] == ["self", *shown]
    defaults = [ast.literal_eval(default) for default in (*written.defaults, *written.kw_defaults)]
    assert defaults == [each.default for each in shown.values()][1:]


def test_the_options_of_jobs_have_their_defaults_here():
    declared = {option.name: option.default for option in JOB.options}
    gradients = {field.name: field.default for field in dataclasses.fields(optd.Gradients)}
    assert gradients == {name: default for name, default in declared.items() if name in gradients}
    assert {*gradients, *optd.EMA().options(), *optd.SWA().options()} == declared.keys()
