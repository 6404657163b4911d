"""A parameter server of torch.distributed.rpc: one process holds parameters and optimizer, a worker sends gradients.

As its tutorials build it, and as fast as it gets: all gradients in one call, all weights in its answer, which become
the worker's parameters without a copy. TensorPipe takes shared memory between processes of one host, and spins while
it waits: so both processes stand still when it is not their turn.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.ours import GRADIENTS, processors
from bench.processes import children
from bench.references.noise import quiet
from bench.row import Side, seconds
from bench.sizes import Shapes, arrays, joined

_SERVER, _WORKER = "server", "worker"
_held: Any = None
"""In the server's process: the parameters and their optimizer."""


@contextmanager
def torch_rpc(shapes: Shapes) -> Iterator[Side]:
    """Steps of fused Adam on the server; the worker measures them."""
    with tempfile.TemporaryDirectory(prefix="optd-bench-") as scratch:
        meeting = Path(scratch) / "rpc"
        with children((_server, meeting, shapes), (_worker, meeting, shapes)) as (server, worker):

            def pause() -> None:
                worker.pause()
                server.pause()

            def resume() -> None:
                server.resume()
                worker.resume()

            pause()
            yield Side(lambda: worker.ask("step"), lambda: worker.ask("weights"), resume, pause)
            resume()


@contextmanager
def _server(meeting: Path, shapes: Shapes) -> Iterator[Callable[..., Any]]:
    global _held  # noqa: PLW0603 - rpc calls functions of a module
    quiet()
    import torch

    from bench.references.local_torch import LocalTorch

    torch.set_num_threads(processors())
    _held = LocalTorch("adam", {"lr": 1e-3, "fused": True}, shapes)
    with _joined(_SERVER, 0, meeting):
        yield lambda: None


def _step(gradients: list[Any]) -> list[Any]:
    """Runs in the server's process."""
    for parameter, gradient in zip(_held.parameters, gradients, strict=True):
        parameter.grad = gradient
    _held.step()
    return [parameter.detach() for parameter in _held.parameters]


@contextmanager
def _worker(meeting: Path, shapes: Shapes) -> Iterator[Callable[..., Any]]:
    quiet()
    import torch
    from torch.distributed import rpc

    gradients = [torch.from_numpy(array) for array in arrays(shapes, GRADIENTS).values()]
    weights: list[Any] = []

    def step() -> None:
        weights[:] = rpc.rpc_sync(_SERVER, _step, args=(gradients,))

    measure = seconds(step)
    with _joined(_WORKER, 1, meeting):
        yield lambda what: measure() if what == "step" else joined([weight.numpy() for weight in weights])


@contextmanager
def _joined(name: str, rank: int, meeting: Path) -> Iterator[None]:
    from torch.distributed import rpc

    os.environ |= {"TP_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    where = rpc.TensorPipeRpcBackendOptions(init_method=meeting.as_uri())
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=where)
    yield
    # There is nothing to leave in good order, and waiting for the other side takes seconds.
    os._exit(0)
