"""Generates `optd_wire/v1` from `optd/v1/*.proto`, and the table of reasons in `README.md`.

With `--check` it writes nothing, and fails if a file is not current.

The contract's package is `optd.v1`, but in Python `optd` is the client's package. So the generated modules are in
`optd_wire.v1`, and this script rewrites their imports of one another.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

from reasons import README, with_table

PROTO = Path(__file__).resolve().parent
TARGET = PROTO / "optd_wire" / "v1"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
IMPORT = re.compile(r"^from optd\.v1 import ", re.MULTILINE)


def generate(into: Path) -> dict[str, str]:
    """Runs protoc with `into` as its output folder; returns the text of each generated file, its imports rewritten."""
    sources = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "optd" / "v1").glob("*.proto"))
    outputs = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{WELL_KNOWN}", *outputs, *sources]) != 0:
        raise SystemExit("protoc failed")
    generated = {}
    for path in sorted((into / "optd" / "v1").iterdir()):
        # protoc also writes a _pb2_grpc.py for files without a service, which is empty.
        if path.name.endswith("_pb2_grpc.py") and not path.name.endswith("_service_pb2_grpc.py"):
            continue
        generated[path.name] = IMPORT.sub("from optd_wire.v1 import ", path.read_text())
    generated["__init__.py"] = '"""Generated from proto/optd/v1 by proto/generate.py; not edited by hand."""\n'
    return generated


def main() -> int:
    """Writes the generated files, or compares them with those in place; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed files differ")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        wanted = generate(Path(scratch))
    present = {path.name: path.read_text() for path in TARGET.iterdir() if path.is_file()}
    readme = README.read_text()
    if check:
        stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
        if readme != with_table(readme):
            stale.append(README.name)
        if stale:
            sys.stderr.write(f"not current, run `make proto`: {', '.join(stale)}\n")
        return 1 if stale else 0
    for name in present.keys() - wanted.keys():
        (TARGET / name).unlink()
    for name, text in wanted.items():
        (TARGET / name).write_text(text)
    README.write_text(with_table(readme))
    return 0


if __name__ == "__main__":
    sys.exit(main())
