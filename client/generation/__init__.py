"""Generates the client's optimizer classes and option types from the server's declarations.

`make classes` runs it (`client/generate.py`). Start at `files.py`, which lists every generated file. `export.py` alone
imports the server; `options.py` turns the export into arguments with a type, a default and a docstring; the other
modules write one kind of file each. Nothing here imports `optd`, and the package `optd` does not contain it.
"""
