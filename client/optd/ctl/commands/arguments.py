"""The arguments that several commands have."""

from typing import Annotated

import typer

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.", show_default=False)]
Group = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.", show_default=False)]
