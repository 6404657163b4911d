"""Small trainings of every kind, which give the same weights on a server that is killed as on one that is not.

Each takes a function that opens a session of its job, and the numbers of its steps; it returns arrays to compare.
Gradients depend on the weights, so that a wrong bit in any step shows at the end.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from tests.faults.processes import in_background

import optd
import optd.torch

SIZE = 300
Open = Callable[..., optd.Session]
Steps = Iterable[int]
Training = Callable[[Open, Steps], list[np.ndarray]]


def opener(address: str, job: str, **always: Any) -> Open:
    """What opens sessions of one job, of worker "w0" unless another one is named."""

    def open_session(worker: str = "w0", **how: Any) -> optd.Session:
        return optd.connect(address, **{"job": job, "worker": worker, "timeout": 60, **always, **how})

    return open_session


def target(number: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).normal(size=size).astype(np.float32)


def slope(weights: np.ndarray, number: int) -> np.ndarray:
    return (weights - target(number, weights.size)) * np.float32(0.5)


def start() -> dict[str, np.ndarray]:
    return {"w": np.ones(SIZE, np.float32), "b": np.zeros(7, np.float32)}


def slopes(weights: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    return {name: slope(array, number) for name, array in weights.items()}


# Numpy


def adam(open_session: Open, steps: Steps) -> list[np.ndarray]:
    """Options change and groups are added on the way."""
    weights = start()
    with open_session() as session:
        optimizer = optd.Adam(weights, lr=0.1, weight_decay=0.01, session=session)
        for number in steps:
            if number % 40 == 20:
                added = {f"more{number}": np.full(3, number, np.float32)}
                optimizer.add_param_group({"params": added})
                weights |= added
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + number // 3 % 5)
            optimizer.step(slopes(weights, number))
        state = optimizer.state_dict()["state"]
    return [*weights.values(), *(each["exp_avg"] for each in state.values())]


def large(open_session: Open, steps: Steps) -> list[np.ndarray]:
    """Gradients that no segment of a log has room for beside another one."""
    weights = np.ones(100_000, np.float32)
    with open_session() as session:
        optimizer = optd.SGD([weights], lr=0.1, momentum=0.9, session=session)
        for number in steps:
            optimizer.step([weights * np.float32(0.1 + number % 3)])
    return [weights]


def pushed_and_pulled(open_session: Open, steps: Steps) -> list[np.ndarray]:
    weights = start()
    with open_session() as session:
        optimizer = optd.SGD(weights, lr=0.1, momentum=0.9, session=session)
        for number in steps:
            optimizer.push(slopes(weights, number))
            optimizer.pull(only_if_newer=True)
    return list(weights.values())


def zero_copied(open_session: Open, steps: Steps) -> list[np.ndarray]:
    with open_session() as session:
        optimizer = optd.SGD(start(), lr=0.1, momentum=0.9, session=session, zero_copy=True)
        for number in steps:
            for name, gradient in optimizer.gradients.items():
                gradient[:] = slope(optimizer.weights[name], number)
            optimizer.step()
        return [array.copy() for array in optimizer.weights.values()]


def encoded(encoding: str) -> Training:
    """What the encoding leaves out of a gradient is added to the next one."""

    def train(open_session: Open, steps: Steps) -> list[np.ndarray]:
        weights = start()
        with open_session(encoding=encoding) as session:
            optimizer = optd.SGD(weights, lr=0.1, momentum=0.9, session=session)
            for number in steps:
                optimizer.step(slopes(weights, number))
        return list(weights.values())

    return train


def lbfgs(open_session: Open, steps: Steps) -> list[np.ndarray]:
    weights = start()
    with open_session() as session:
        optimizer = optd.LBFGS(weights, lr=0.3, max_iter=4, history_size=3, session=session)
        for number in steps:

            def closure(number: int = number) -> tuple[float, dict[str, np.ndarray]]:
                found = slopes(weights, number)
                return sum(float(np.square(each).sum()) for each in found.values()), found

            optimizer.step(closure)
    return list(weights.values())


def accumulated(open_session: Open, steps: Steps) -> list[np.ndarray]:
    weights = start()
    with open_session(gradients=optd.Gradients(accumulate=3)) as session:
        optimizer = optd.SGD(weights, lr=0.1, momentum=0.9, session=session)
        for number in steps:
            optimizer.step(slopes(weights, number))
            if number % 10 == 9:
                optimizer.flush()
        optimizer.flush()
    return list(weights.values())


def averaged(open_session: Open, steps: Steps) -> list[np.ndarray]:
    weights = start()
    with open_session(averages=optd.EMA(decay=0.9)) as session:
        optimizer = optd.SGD(weights, lr=0.1, lr_schedule=optd.schedules.Step(7, gamma=0.9), session=session)
        for number in steps:
            optimizer.step(slopes(weights, number))
        average = optimizer.session.pull(weights="ema")
    return [*weights.values(), *average.values()]


def buffered(open_session: Open, steps: Steps) -> list[np.ndarray]:
    weights, mean = start(), np.zeros(5)
    with open_session() as session:
        optimizer = optd.SGD(weights, lr=0.1, session=session, buffers={"mean": mean})
        for number in steps:
            mean += 0.1 * (target(number, 5) - mean)
            optimizer.step(slopes(weights, number))
    return [*weights.values(), mean]


def pair(open_session: Open, steps: Steps) -> list[np.ndarray]:
    """Two workers of a synchronous job."""

    def work(worker: str, factor: int) -> list[np.ndarray]:
        weights = start()
        with open_session(worker=worker, policy=optd.Sync(workers=2)) as session:
            optimizer = optd.Adam(weights, lr=0.05, session=session)
            for number in steps:
                optimizer.step(slopes(weights, factor * number))
        return list(weights.values())

    other = in_background(lambda: work("w1", 1009))
    mine = work("w0", 1)
    return [*mine, *other.result(60)]


# Torch


def model() -> torch.nn.Module:
    net = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    with torch.no_grad():  # not by torch's own generator, which the threads of all trainings share
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.from_numpy(target(number, parameter.numel())).reshape(parameter.shape))
    return net


def loss_of(net: torch.nn.Module, number: int) -> torch.Tensor:
    inputs = torch.from_numpy(target(number, 5 * 12).reshape(5, 12))
    loss: torch.Tensor = net(inputs).square().mean()
    return loss


def arrays_of(net: torch.nn.Module) -> list[np.ndarray]:
    return [tensor.detach().numpy().copy() for tensor in net.state_dict().values()]


def torch_scheduled(open_session: Open, steps: Steps) -> list[np.ndarray]:
    """With a scheduler of torch, and buffers."""
    net = model()
    with open_session() as session:
        optimizer = optd.torch.AdamW(net.parameters(), lr=0.05, session=session, buffers=net)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.98)
        for number in steps:
            optimizer.zero_grad()
            loss_of(net, number).backward()
            optimizer.step()
            scheduler.step()
    return arrays_of(net)


def torch_scheduled_by_server(open_session: Open, steps: Steps) -> list[np.ndarray]:
    net = model()
    schedule = optd.schedules.Cosine(steps=50)
    with open_session() as session:
        optimizer = optd.torch.SGD(net.parameters(), lr=0.05, momentum=0.9, lr_schedule=schedule, session=session)
        for number in steps:
            optimizer.zero_grad()
            loss_of(net, number).backward()
            optimizer.step()
    return arrays_of(net)


def torch_lbfgs(open_session: Open, steps: Steps) -> list[np.ndarray]:
    net = model()[0]
    with open_session() as session:
        optimizer = optd.torch.LBFGS(net.parameters(), lr=0.3, max_iter=4, session=session)
        for number in steps:

            def closure(number: int = number) -> float:
                optimizer.zero_grad()
                loss = loss_of(net, number)
                loss.backward()
                return float(loss.detach())

            optimizer.step(closure)
    return arrays_of(net)


TRAININGS: dict[str, tuple[Training, str]] = {
    "adam": (adam, "grpc"),
    "adam-shm": (adam, "shm"),
    "large": (large, "grpc"),
    "large-shm": (large, "shm"),
    "push-pull": (pushed_and_pulled, "grpc"),
    "push-pull-shm": (pushed_and_pulled, "shm"),
    "zero-copy": (zero_copied, "shm"),
    "topk": (encoded("topk:0.05"), "grpc"),
    "int8": (encoded("int8"), "grpc"),
    "lbfgs": (lbfgs, "grpc"),
    "lbfgs-shm": (lbfgs, "shm"),
    "accumulated": (accumulated, "grpc"),
    "accumulated-shm": (accumulated, "shm"),
    "averaged": (averaged, "grpc"),
    "buffered": (buffered, "grpc"),
    "buffered-shm": (buffered, "shm"),
    "pair": (pair, "grpc"),
    "pair-shm": (pair, "shm"),
    "torch": (torch_scheduled, "grpc"),
    "torch-shm": (torch_scheduled, "shm"),
    "torch-schedule": (torch_scheduled_by_server, "grpc"),
    "torch-lbfgs": (torch_lbfgs, "grpc"),
    "torch-lbfgs-shm": (torch_lbfgs, "shm"),
}
"""By name: the training, and its lane."""
