"""Generates the client's optimizer classes and option types from the server's declarations.

With `--check` it tells whether they are current, and writes nothing.

The server declares every option once: `server/optd_server/optim`. Client and server do not import each other, so this
script, which is part of neither, exports the declarations to `declarations.json` and writes the client's code from it.
"""

import argparse
import sys

from generation.export import exported
from generation.files import generated, stale, write


def main() -> int:
    """Writes the generated files, or compares them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed files differ")
    check = parser.parse_args().check
    wanted = generated(exported())
    if not check:
        write(wanted)
        return 0
    differing = stale(wanted)
    if differing:
        sys.stderr.write("the server's declarations have changed and these files of client/ have not; run ")
        sys.stderr.write(f"`make classes`: {', '.join(differing)}\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
