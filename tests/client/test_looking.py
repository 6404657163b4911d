"""Gradient statistics on both lanes, as people ask for them."""

import json
import threading

import numpy as np
import pytest
from faults.processes import wait_for
from typer.testing import CliRunner

import optd
from optd.ctl.app import app
from optd.local import LocalServer

pytestmark = pytest.mark.slow

SIZE = 70_000


def optctl(server: LocalServer, *arguments: str) -> str:
    environment = {"NO_COLOR": "1", "COLUMNS": "160", "OPTD_SERVER": server.address}
    done = CliRunner().invoke(app, list(arguments), env=environment)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_while_a_job_trains_its_gradient_is_shown(server: LocalServer, name: str, lane: str, zero_copy: bool):
    """The gradient of step n is n everywhere, and what is shown is that of one step."""
    done = threading.Event()
    with optd.connect(server.address, job=name, worker="w", lane=lane) as session:
        optimizer = optd.SGD({"w": np.zeros(SIZE, "f4")}, lr=0.0, session=session, zero_copy=zero_copy)

        def train() -> None:
            while not done.is_set():
                optimizer.gradients["w"].fill(optimizer.version + 1)
                optimizer.step()

        thread = threading.Thread(target=train)
        thread.start()
        try:
            wait_for(lambda: optimizer.version > 0, "the first step")
            for _ in range(5):
                answer = json.loads(optctl(server, "-o", "json", "group", name, "group0"))
                (report,) = answer["parameters"]
                found = {field["field"]: field["statistics"] for field in report["fields"]}["gradient"]
                assert found["min"] == found["max"] == answer["gradient_version"] == report["steps"] > 0
                assert found["norm"] == pytest.approx(found["max"] * SIZE**0.5)
                assert answer["gradient_note"] == ""
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_a_job_at_rest_shows_its_gradient_and_says_what_it_is(server: LocalServer, name: str, lane: str):
    with optd.connect(server.address, job=name, worker="w", lane=lane) as session:
        optimizer = optd.SGD({"w": np.zeros(SIZE, "f4")}, lr=1.0, session=session)
        optimizer.step({"w": np.full(SIZE, 2.0, "f4")})
        (report,) = session.parameters("group0")
        found = {field.field: field.statistics for field in report.fields}
        assert found["gradient"].norm == pytest.approx(2 * SIZE**0.5)
        said = optctl(server, "group", name, "group0", "--values", "--limit", "2")
        assert ("the memory of worker 'w' has now" in " ".join(said.split())) is (lane == "shm")
        values = said[said.index("values at version") :]
        assert ("gradient" in values) is (lane == "grpc")  # in numbers only what is certain
