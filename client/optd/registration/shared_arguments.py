"""The arguments that all optimizer classes share: options of every group, the job, and how the optimizer behaves."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from optd.options.group_options import GROUP_OPTIONS, GroupOptionArguments
from optd.session.connect_arguments import SessionArguments

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def given(**options: Any) -> dict[str, Any]:
    """The group options that differ from their defaults; the job decides about the others.

    A number of another type, such as a float32, is a different value even if it is equal.
    """
    defaults = GROUP_OPTIONS
    return {
        name: value
        for name, value in options.items()
        if type(value) is not type(defaults[name]) or value != defaults[name]
    }


def shared_parameters(constructor: Callable[..., None]) -> list[inspect.Parameter]:
    """All shared arguments as keyword arguments of a signature, for a constructor that has some in its `**options`."""
    own = inspect.signature(constructor).parameters.values()
    session, *behaviour = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]
    types = get_type_hints(GroupOptionArguments)
    of_groups = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in GROUP_OPTIONS.items()
    ]
    return [*of_groups, session, *SessionArguments.parameters(), *behaviour]


def names_shared(constructor: Constructor) -> Constructor:
    """Decorates a constructor that has shared arguments in its `**options`: its signature then names each of them."""
    own = inspect.signature(constructor)
    positional = [each for each in own.parameters.values() if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    others = [each for each in own.parameters.values() if each.kind is inspect.Parameter.VAR_KEYWORD]
    parameters = [*positional, *shared_parameters(constructor), *others]
    constructor.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return constructor
