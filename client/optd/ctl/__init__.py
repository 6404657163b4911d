"""`optctl`: everything that a person does to a server. `main` is the program.

The commands are in `commands`, a file for each topic; the files here parse the command line and write the output. What
workers do is in the other folders of `optd`. Open `app.py` first.
"""

from optd.ctl.app import main

__all__ = ["main"]
