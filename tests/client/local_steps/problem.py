"""A small problem with an inner optimizer, in float64, which a simulation and real workers train alike."""

import threading
from collections.abc import Callable

import numpy as np

SHAPES = {"a": (3, 2), "b": (5,), "c": (), "d": (4,), "e": (2, 2)}
Weights = dict[str, np.ndarray]


def initial() -> Weights:
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape) for name, shape in SHAPES.items()}


class Inner:
    """Adam, as a script may have written it: the state of one worker, whose gradients depend on worker and step."""

    def __init__(self, worker: int, lr: float = 0.05) -> None:
        random = np.random.default_rng(100 + worker)
        self._targets = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
        self._random = random
        self._lr, self._steps = lr, 0
        self._first = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        self._second = {name: np.zeros(shape) for name, shape in SHAPES.items()}

    def step(self, weights: Weights) -> None:
        """Changes the arrays in place."""
        self._steps += 1
        for name, array in weights.items():
            noise = 0.1 * self._random.normal(size=array.shape)
            gradient = np.tanh(array - self._targets[name]) + noise
            self._first[name] = 0.9 * self._first[name] + 0.1 * gradient
            self._second[name] = 0.99 * self._second[name] + 0.01 * gradient**2
            first = self._first[name] / (1 - 0.9**self._steps)
            second = self._second[name] / (1 - 0.99**self._steps)
            array[...] = array - self._lr * first / (np.sqrt(second) + 1e-8)


class Nesterov:
    """SGD with Nesterov momentum, as torch has it, of each parameter by itself."""

    def __init__(self, lr: float = 0.7, momentum: float = 0.9) -> None:
        self._lr, self._momentum = lr, momentum
        self._buffers: Weights = {}

    def step(self, weights: Weights, gradients: Weights) -> None:
        for name, gradient in gradients.items():
            if name in self._buffers:
                self._buffers[name] = self._momentum * self._buffers[name] + gradient
            else:
                self._buffers[name] = gradient.copy()
            weights[name] = weights[name] - self._lr * (gradient + self._momentum * self._buffers[name])


def together(works: list[Callable[[], None]]) -> None:
    """Runs each in a thread of its own; raises the first error."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def assert_equal(found: Weights, expected: Weights) -> None:
    """Equal but for rounding in float64."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-12, atol=1e-12, err_msg=name)
