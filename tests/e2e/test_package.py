"""What the built packages hold besides code: the contract, for other languages."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ["README.md", *(f"optd/v1/{path.name}" for path in sorted((ROOT / "proto" / "optd" / "v1").glob("*.proto")))]


def build(target: str, folder: Path) -> Path:
    """Builds a package of the checkout with what is installed; nothing is fetched."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    (built,) = folder.iterdir()
    return built


def test_the_wheel_has_the_contract_and_says_where(tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(build("wheel", tmp_path / "dist")) as wheel:
        wheel.extractall(installed)
    command = [sys.executable, "-c", "import optd_wire; print(optd_wire.PROTO_DIR)"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    folder = Path(shown.strip())
    assert folder == installed / "optd_wire" / "proto"
    assert len(FILES) > 5
    for name in FILES:
        assert (folder / name).read_bytes() == (ROOT / "proto" / name).read_bytes()


def test_stubs_can_be_generated_from_what_the_wheel_has(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools are of the dev extra")
    with zipfile.ZipFile(build("wheel", tmp_path / "dist")) as wheel:
        wheel.extractall(tmp_path)
    include, out = tmp_path / "optd_wire" / "proto", tmp_path / "out"
    out.mkdir()
    sources = [name for name in FILES if name.endswith(".proto")]
    assert protoc.main(["protoc", f"-I{include}", f"--python_out={out}", *sources]) == 0
    assert (out / "optd" / "v1" / "training_service_pb2.py").exists()


def test_the_source_package_has_the_contract_and_the_examples(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path / "dist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    examples = {f"examples/node/{name}" for name in ("train.mjs", "package.json", "package-lock.json", ".npmrc")}
    assert {f"proto/{name}" for name in FILES} | examples <= names
