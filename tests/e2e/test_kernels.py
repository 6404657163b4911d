"""What a server compiles, and when: what a job needs, when it is created; nothing else."""

from pathlib import Path

import numpy as np
import pytest

import optd

pytestmark = pytest.mark.slow


def steps(folder: Path) -> list[str]:
    """The algorithms of which a step has been compiled, once for each dtype."""
    return sorted(path.name.split("-")[1] for path in folder.rglob("step-*.nbc"))


def test_a_server_compiles_no_algorithm_that_no_job_has_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with optd.local("--kernels", "numba") as server:
        assert steps(tmp_path) == []
        with optd.connect(server.address, job="one") as session:
            optd.SGD({"w": np.ones(3, np.float32)}, session=session)
        assert steps(tmp_path) == ["sgd"]
        with optd.connect(server.address, job="two") as session:
            optd.AdamW({"w": np.ones(3), "v": np.ones(3, np.float32)}, session=session)
        assert steps(tmp_path) == ["adam", "adam", "sgd"]  # AdamW's is Adam's
