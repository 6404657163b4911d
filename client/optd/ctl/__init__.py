"""`optctl`: everything that a person does to a server. `main` is the program."""

from optd.ctl.app import main

__all__ = ["main"]
