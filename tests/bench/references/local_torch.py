"""torch.optim in this process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bench.ours import GRADIENTS, WEIGHTS, processors
from bench.sizes import Shapes, arrays, joined

CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


class LocalTorch:
    """An optimizer of torch on parameters that have their gradients already."""

    def __init__(self, algorithm: str, options: Mapping[str, Any], shapes: Shapes, gradients: int = GRADIENTS) -> None:
        self.parameters = [torch.nn.Parameter(torch.from_numpy(array)) for array in arrays(shapes, WEIGHTS).values()]
        for parameter, gradient in zip(self.parameters, arrays(shapes, gradients).values(), strict=True):
            parameter.grad = torch.from_numpy(gradient)
        self._optimizer = CLASSES[algorithm](self.parameters, **options)

    def step(self) -> None:
        """One step."""
        self._optimizer.step()

    def weights(self) -> np.ndarray:
        """A copy."""
        return joined([parameter.detach().numpy() for parameter in self.parameters])


@contextmanager
def local_torch(algorithm: str, options: Mapping[str, Any], shapes: Shapes) -> Iterator[LocalTorch]:
    """torch with a thread for each processor, as it has by default where no two share a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(processors())
    try:
        yield LocalTorch(algorithm, options, shapes)
    finally:
        torch.set_num_threads(before)
