"""Generates the Python of the `.proto` files, and the table of reasons in `README.md`.

With `--check` it writes nothing, and fails if a file is not current.

The contract's package is `optd.v1`, but in Python `optd` is the client's package. So the generated modules are in
`optd_wire.v1`, and those of the server's storage, `optd.storage.v1`, in `optd_server.durability.v1`. This script
rewrites their imports of one another.
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
TARGETS = {
    Path("optd/v1"): PROTO / "optd_wire" / "v1",
    Path("optd/storage/v1"): PROTO.parent / "server" / "optd_server" / "durability" / "v1",
}
"""The folders of `.proto` files, and where the modules that are generated from them go."""
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
IMPORTS = {
    re.compile(r"^from optd\.v1 import ", re.MULTILINE): "from optd_wire.v1 import ",
    re.compile(r"^from optd\.storage\.v1 import ", re.MULTILINE): "from optd_server.durability.v1 import ",
}


def generate(folder: Path, into: Path) -> dict[str, str]:
    """Runs protoc on a folder, with `into` as its output; returns the text of each generated file, by name."""
    sources = sorted(str(path.relative_to(PROTO)) for path in (PROTO / folder).glob("*.proto"))
    outputs = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{WELL_KNOWN}", *outputs, *sources]) != 0:
        raise SystemExit("protoc failed")
    generated = {}
    for path in sorted((into / folder).glob("*.py*")):
        # protoc also writes a _pb2_grpc.py for files without a service, which is empty.
        if path.name.endswith("_pb2_grpc.py") and not path.name.endswith("_service_pb2_grpc.py"):
            continue
        text = path.read_text()
        for ours, theirs in IMPORTS.items():
            text = ours.sub(theirs, text)
        generated[path.name] = text
    generated["__init__.py"] = f'"""Generated from proto/{folder} by proto/generate.py; not edited by hand."""\n'
    return generated


def main() -> int:
    """Writes the generated files, or compares them with those in place; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed files differ")
    check = parser.parse_args().check
    stale = []
    for folder, target in TARGETS.items():
        with tempfile.TemporaryDirectory() as scratch:
            wanted = generate(folder, Path(scratch))
        target.mkdir(exist_ok=True)
        present = {path.name: path.read_text() for path in target.iterdir() if path.is_file()}
        names = wanted.keys() | present.keys()
        stale += [f"{folder}: {name}" for name in sorted(names) if wanted.get(name) != present.get(name)]
        if not check:
            for name in present.keys() - wanted.keys():
                (target / name).unlink()
            for name, text in wanted.items():
                (target / name).write_text(text)
    readme = README.read_text()
    if readme != with_table(readme):
        stale.append(README.name)
    if not check:
        README.write_text(with_table(readme))
        return 0
    if stale:
        sys.stderr.write(f"not current, run `make proto`: {', '.join(stale)}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
