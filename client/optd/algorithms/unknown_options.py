"""What a constructor accepts besides the arguments that its signature names."""

from typing import TypedDict


class UnknownOptions(TypedDict):
    """Nothing, to a type checker.

    At run time a misspelt option gets through to the server, whose `UnknownOption` names the nearest one.
    """
