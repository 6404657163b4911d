"""Checkpoints on an object store: S3, served on loopback."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import optd
from optd.checkpoints.files import read_info, verify
from optd.checkpoints.place import place_of
from optd.local import LocalServer
from optd_wire.errors import CheckpointExists, NoCheckpoint, PlaceUnusable

pytestmark = pytest.mark.slow

moto = pytest.importorskip("moto.server", reason="moto is not installed")


@pytest.fixture(scope="module")
def storage() -> Iterator[dict[str, Any]]:
    """The options of a file system with the bucket `runs`."""
    served = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    options = {"key": "k", "secret": "s", "endpoint_url": f"http://{host}:{port}", "skip_instance_cache": True}
    try:
        place_of("s3://runs/x", options)._system.mkdir("runs")
        yield options
    finally:
        served.stop()


def test_a_job_goes_to_a_bucket_and_comes_back(server: LocalServer, name: str, storage: dict[str, Any]):
    weights = {"w": np.ones(300_000, np.float32), "b": np.ones(3, np.float32)}
    ones = {key: np.ones_like(value) for key, value in weights.items()}
    url = f"s3://runs/{name}/best"
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.Adam(weights, lr=0.1, session=session)
        optimizer.step(ones)
        assert session.save(url, storage_options=storage).version == 1
        with pytest.raises(CheckpointExists):
            session.save(url, storage_options=storage)
        optimizer.step(ones)
        assert session.save(url, overwrite=True, storage_options=storage).version == 2
    place = place_of(url, storage)
    assert verify(place).path == url
    (found,) = place_of(f"s3://runs/{name}", storage).children()
    assert read_info(found).version == 2
    restored = optd.restore(url, job=f"{name}-again", server=server.address, storage_options=storage)
    assert restored.version.version == 2
    place.remove()
    with pytest.raises(NoCheckpoint):
        optd.restore(url, server=server.address, storage_options=storage)


def test_a_bucket_that_is_missing_is_said(server: LocalServer, name: str, storage: dict[str, Any]):
    with optd.connect(server.address, job=name) as session:
        optd.SGD({"w": np.ones(3, np.float32)}, lr=0.1, session=session)
        with pytest.raises(PlaceUnusable, match="s3://nobodys/best cannot be used"):
            session.save("s3://nobodys/best", storage_options=storage)
