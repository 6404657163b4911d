"""Nothing that a client sends is ever unpickled: a pickle can run any code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
SOURCES = [
    path
    for folder in ("server/optd_server", "proto/optd_wire", "client/optd")
    for path in (ROOT / folder).rglob("*.py")
]

TRAINING = """
import sys, tempfile
found = []
sys.addaudithook(lambda event, arguments: found.append(arguments) if event.startswith("pickle.") else None)
import asyncio, threading, os, signal, time
from pathlib import Path
from optd_server.app import run
from optd_server.config import load

folder = Path(tempfile.mkdtemp())
address = folder / "address"

def train():
    import numpy as np, optd
    while not address.exists():
        time.sleep(0.01)
    with optd.connect(address.read_text().strip(), job="j", lane="grpc") as session:
        weights = np.zeros(4, "f4")
        optimizer = optd.Adam([weights], session=session)
        optimizer.step([np.ones(4, "f4")])
        optimizer.load_state_dict(optimizer.state_dict())
        session.save(folder / "checkpoint")
        optimizer.step([np.ones(4, "f4")])
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=train, daemon=True).start()
asyncio.run(run(load(["--port", "0", "--address-file", str(address), "--data-dir", str(folder / "data"),
                      "--durability", "log", "--kernels", "numpy"])))
import pickle
assert not found, found
pickle.loads(pickle.dumps(Path()))
assert found, "the hook sees nothing"
"""


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_35_no_file_imports_what_unpickles():
    found = {str(path.relative_to(ROOT)): imports(path) & PICKLES for path in SOURCES}
    assert len(found) > 300
    assert not {path: names for path, names in found.items() if names}
    assert not [path for path in SOURCES if "allow_pickle=True" in path.read_text()]


@pytest.mark.slow
def test_35_a_training_with_checkpoints_unpickles_nothing():
    """An audit hook watches client and server; at the end it is shown that it would have seen a pickle."""
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
