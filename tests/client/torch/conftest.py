import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.client.torch.mixed import Block, groups_of

import optd
import optd.torch
from optd.local import LocalServer


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    with optd.local() as running:
        yield running


@pytest.fixture(scope="session")
def job_names() -> Iterator[str]:
    return (f"job-{number}" for number in itertools.count())


@pytest.fixture
def where(server: LocalServer, job_names: Iterator[str]) -> dict[str, str]:
    """The arguments that tie an optimizer to a job of its own."""
    return {"server": server.address, "job": next(job_names), "worker": "w0"}


@pytest.fixture
def serve(server: LocalServer, job_names: Iterator[str]) -> Iterator[Callable[..., Any]]:
    """Constructs an optimizer that trains in a job of its own, and closes it after the test."""
    opened: list[Any] = []

    def construct(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
        kwargs = {"server": server.address, "worker": "w0", **kwargs}
        kwargs["job"] = kwargs.get("job") or next(job_names)
        opened.append(kind(*args, **kwargs))
        return opened[-1]

    yield construct
    for optimizer in opened:
        optimizer.close()


@pytest.fixture
def make_mixed(server: LocalServer, job_names: Iterator[str], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes an optimizer with Muon and AdamW for a model, with a session of its own on some lane."""

    def construct(model: Block, lane: str = "grpc", **options: Any) -> Any:
        how = {name: options.pop(name) for name in ("gradients", "job", "worker") if name in options}
        how = {"job": next(job_names), "worker": "w0", **how}
        session = optd.connect(server.address, lane=lane, **how)
        request.addfinalizer(session.close)
        return optd.torch.Optimizer(groups_of(model), session=session, **options)

    return construct


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> Iterator[None]:
    """Threads of torch's own gain nothing on tensors of this size, and wait for each other on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPTD_SERVER", "OPTD_JOB", "OPTD_WORKER"):
        monkeypatch.delenv(name, raising=False)
