"""`python -m optd_server.doctor DIR [--repair]`: prints what is in a data directory as one JSON document.

Exit with 0 if nothing is damaged, with 1 if something is, and with 2 and one line on stderr if nobody can tell.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from optd_server import plugins
from optd_server.doctor.examination import examine
from optd_server.doctor.repair import repair
from optd_server.durability.data_dir import DataDir
from optd_server.durability.problems import Damage, StorageProblem

GOOD, DAMAGED, REFUSED = 0, 1, 2


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser("python -m optd_server.doctor")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--repair", action="store_true", help="cut off torn tails")
    given = parser.parse_args()
    try:
        plugins.load()
        return _run(given.data_dir, cuts=given.repair)
    except (StorageProblem, OSError, plugins.PluginError) as problem:
        sys.stderr.write(f"{problem}\n")
        return DAMAGED if isinstance(problem, Damage) else REFUSED


def _run(path: Path, *, cuts: bool) -> int:
    opened = DataDir.look(path, alone=cuts)
    try:
        found = examine(opened)
        cut = repair(found) if cuts else ()
        found = examine(opened) if cut else found
    finally:
        opened.close()
    json.dump({**asdict(found), "cut": [asdict(each) for each in cut]}, sys.stdout)
    return DAMAGED if found.is_damaged else GOOD


if __name__ == "__main__":
    sys.exit(main())
