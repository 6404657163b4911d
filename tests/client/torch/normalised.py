"""A model with BatchNorm whose loss is wildly wrong without its running statistics, and steps of several workers."""

from concurrent.futures import ThreadPoolExecutor

import torch

CLASSES = 3


def model_of(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6, momentum=0.5), torch.nn.ReLU(), torch.nn.Linear(6, CLASSES)
    )
    return model.to(dtype)


def batch_of(seed, dtype=torch.float64):
    """Inputs far from mean 0 and variance 1, so that statistics that have not been learnt are wildly wrong."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(32, 4, generator=generator, dtype=torch.float64) * 500 + 30_000
    return inputs.to(dtype), torch.randint(CLASSES, (32,), generator=generator)


def backward(model, seed):
    model.train()
    inputs, targets = batch_of(seed, next(model.parameters()).dtype)
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), targets).backward()


def loss_of(model):
    model.eval()
    with torch.no_grad():
        inputs, targets = batch_of(99, next(model.parameters()).dtype)
        return torch.nn.functional.cross_entropy(model(inputs), targets).item()


def buffers_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_close(model, twin):
    for (name, mine), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11, msg=name)


def both(*steps):
    """Runs the steps of the workers of a round, each of which waits for the others."""
    with ThreadPoolExecutor(len(steps)) as threads:
        for running in [threads.submit(step) for step in steps]:
            running.result(60)
