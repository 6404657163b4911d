"""Single-process simulations of the published algorithms, line by line, on the problem of these tests."""

from collections.abc import Sequence

import numpy as np
from tests.client.local_steps.problem import Inner, Nesterov, Weights, initial

ROUNDS = 4


def diloco(workers: int, every: int) -> tuple[Weights, list[Weights]]:
    """DiLoCo, https://arxiv.org/abs/2311.08105, algorithm 1: the global weights, and those of each worker."""
    theta, outer, inners = initial(), Nesterov(), [Inner(worker) for worker in range(workers)]
    for _ in range(ROUNDS):
        gradient = {name: np.zeros_like(array) for name, array in theta.items()}
        for inner in inners:
            local = {name: np.array(array) for name, array in theta.items()}
            for _ in range(every):
                inner.step(local)
            for name, array in local.items():
                gradient[name] = gradient[name] + (theta[name] - array) / workers
        outer.step(theta, gradient)
    return theta, [theta] * workers


def streaming(
    workers: int, every: int, fragments: Sequence[Sequence[str]], delay: int, alpha: float
) -> tuple[Weights, list[Weights]]:
    """Streaming DiLoCo, https://arxiv.org/abs/2501.18512, algorithm 2, with t_p = (p + 1) H / P."""
    theta, outer, inners = initial(), Nesterov(), [Inner(worker) for worker in range(workers)]
    locals_ = [initial() for _ in inners]
    under_way: dict[int, Weights] = {}
    for t in range(1, ROUNDS * every + 1):
        for inner, local in zip(inners, locals_, strict=True):
            inner.step(local)
        for p, names in enumerate(fragments):
            offset = (p + 1) * every // len(fragments)
            if t >= offset + delay and (t - offset - delay) % every == 0 and p in under_way:
                outer.step(theta, under_way.pop(p))
                for local in locals_:
                    for name in names:
                        local[name] = np.array(alpha * local[name] + (1 - alpha) * theta[name])
            if t >= offset and (t - offset) % every == 0:
                means = {name: sum(theta[name] - local[name] for local in locals_) / workers for name in names}
                if delay:
                    under_way[p] = means
                    continue
                outer.step(theta, means)
                for local in locals_:
                    for name in names:
                        local[name] = np.array(alpha * local[name] + (1 - alpha) * theta[name])
    for p, gradients in sorted(under_way.items(), key=lambda each: (each[0] + 1) * every // len(fragments)):
        outer.step(theta, gradients)
        for local in locals_:
            for name in fragments[p]:
                local[name] = np.array(alpha * local[name] + (1 - alpha) * theta[name])
    return theta, locals_


def delayed_nesterov(
    paces: Sequence[int], every: int, turns: int, *, n: int, c: float
) -> tuple[Weights, list[Weights]]:
    """Async Local-SGD, https://arxiv.org/abs/2401.09135, algorithms 2 and 3; worker i steps every paces[i] turns."""
    lr, beta = 0.7, 0.9
    theta, inners = initial(), [Inner(worker) for worker in range(len(paces))]
    locals_ = [initial() for _ in inners]
    bases = [initial() for _ in inners]
    counts = [0] * len(paces)
    m = {name: np.zeros_like(array) for name, array in theta.items()}
    delta = {name: np.zeros_like(array) for name, array in theta.items()}
    t = 0
    for turn in range(turns):
        for i, pace in enumerate(paces):
            if turn % pace:
                continue
            inners[i].step(locals_[i])
            counts[i] += 1
            if counts[i] % every:
                continue
            g = {name: bases[i][name] - locals_[i][name] for name in theta}
            for name in theta:
                delta[name] = delta[name] + g[name]
                if (t + 1) % n == 0:
                    m[name] = beta * m[name] + delta[name] / n
                    theta[name] = theta[name] - lr * ((1 - c * n + c) * beta * m[name] + g[name] / n)
                    delta[name] = np.zeros_like(delta[name])
                else:
                    theta[name] = theta[name] - lr * (c * beta * m[name] + g[name] / n)
            t += 1
            locals_[i] = {name: np.array(array) for name, array in theta.items()}
            bases[i] = {name: np.array(array) for name, array in theta.items()}
    return theta, locals_
