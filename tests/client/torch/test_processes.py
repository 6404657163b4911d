"""Several threads, several workers, and forks beside an open session."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

import optd
from optd.torch import SGD, Adam

THREADS = 6
STEPS_EACH = 20


def test_steps_of_several_threads_all_count_once(serve: Callable) -> None:
    weights = [nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2, 3).t())]
    optimizer = serve(SGD, weights, lr=1.0)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    together = threading.Barrier(THREADS)

    def steps(_: int) -> None:
        together.wait()
        for number in range(STEPS_EACH):
            optimizer.step()
            if number % 10 == 0:
                optimizer.pull()
                optimizer.state_dict()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(steps, range(THREADS)))
    expected = -THREADS * STEPS_EACH
    assert optimizer.version == -expected
    assert [weight.unique().tolist() for weight in weights] == [[expected], [expected]]
    assert {group.min_steps for group in optimizer.session.groups()} == {-expected}


def test_a_round_of_two_workers_is_a_step_with_the_mean_of_their_gradients(where: dict[str, str]) -> None:
    inputs = torch.randn(6, 2, 8, 3)
    expected = nn.Linear(3, 1)
    models = [nn.Linear(3, 1), nn.Linear(3, 1)]
    models[0].load_state_dict(expected.state_dict())
    joined = threading.Barrier(2)

    def work(rank: int) -> None:
        address, job = where["server"], where["job"]
        if rank == 1:
            joined.wait()  # the first one creates the job
        with optd.connect(address, job=job, worker=f"w{rank}", policy=optd.Sync(workers=2)) as session:
            optimizer = Adam(models[rank].parameters(), lr=0.1, session=session)
            scheduler = ExponentialLR(optimizer, 0.8)  # the same one in each worker: they agree
            if rank == 0:
                joined.wait()
            for batch in inputs:
                optimizer.zero_grad()
                models[rank](batch[rank]).square().mean().backward()
                optimizer.step()
                scheduler.step()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    reference = torch.optim.Adam(expected.parameters(), lr=0.1)
    scheduler = ExponentialLR(reference, 0.8)
    for batch in inputs:
        reference.zero_grad()
        expected(batch.flatten(0, 1)).square().mean().backward()
        reference.step()
        scheduler.step()
    for model in models:
        torch.testing.assert_close(list(model.parameters()), list(expected.parameters()), rtol=1e-5, atol=1e-6)


# A session is open before the loader forks, and training goes on beside the loader's processes.
TRAINING = """
import os, sys
import torch
import optd
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from optd.errors import ForkedSession
from optd.torch import SGD

torch.manual_seed(0)
torch.set_num_threads(1)
model, other = nn.Linear(4, 2), nn.Linear(4, 2)
other.load_state_dict(model.state_dict())
session = optd.connect(sys.argv[1], job=sys.argv[2], lane=sys.argv[3])
optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, session=session, zero_copy=sys.argv[3] == "shm")
reference = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
optimizer.step()
data = TensorDataset(torch.randn(48, 4), torch.randint(2, (48,)))
loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork")
for epoch in range(2):
    for inputs, targets in loader:
        for network, each in ((model, optimizer), (other, reference)):
            each.zero_grad()
            nn.functional.cross_entropy(network(inputs), targets).backward()
            each.step()
torch.testing.assert_close(list(model.parameters()), list(other.parameters()))
assert optimizer.version == 25, optimizer.version

child = os.fork()
if child == 0:
    caught = 0
    for call in (optimizer.step, optimizer.push, optimizer.pull, optimizer.state_dict, optimizer.push_weights):
        try:
            call()
        except ForkedSession as error:
            caught += f"belongs to process {os.getppid()}, not to {os.getpid()}" in str(error)
    optimizer.close()
    os._exit(caught)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
optimizer.step()
assert optimizer.version == 26
print("done")  # and leaves the job, although nothing is closed
"""


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_a_loader_forks_beside_an_open_session(lane: str, where: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    command = [sys.executable, "-W", "error", str(script), where["server"], where["job"], lane]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("done\n", "", 0)
    with optd.connect(where["server"], job=where["job"]) as session:
        assert [(worker.pushes, worker.active) for worker in session.workers()] == [(26, False)]
