"""A two-layer network in plain numpy, and the handwritten digits that it learns to read. Nothing here knows of optd."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

PIXELS, HIDDEN, DIGITS = 8 * 8, 48, 10
HELD_OUT = 360
SPLIT_SEED = 7

Arrays = dict[str, np.ndarray]
"""Weights or gradients by parameter name."""


class Examples(NamedTuple):
    """Images as rows of 64 numbers in [0, 1], and the digit that each one shows."""

    images: np.ndarray
    labels: np.ndarray


def load() -> tuple[Examples, Examples]:
    """1437 examples to train on and 360 held out; the same ones every time."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    return (
        Examples(images[HELD_OUT:], labels[HELD_OUT:]),
        Examples(images[:HELD_OUT], labels[:HELD_OUT]),
    )


def shard(examples: Examples, index: int, count: int) -> Examples:
    """Every `count`-th example, from the `index`-th on; `index` counts from 1."""
    return Examples(examples.images[index - 1 :: count], examples.labels[index - 1 :: count])


def batches(examples: Examples, size: int, seed: int) -> Iterator[Examples]:
    """Batches without end, in a new order for every pass over the examples."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(examples.labels))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield Examples(examples.images[chosen], examples.labels[chosen])


def initial_weights(seed: int = 0) -> Arrays:
    """Small random weights and biases of zero, as float32."""
    random = np.random.default_rng(seed)

    def layer(inputs: int, outputs: int) -> np.ndarray:
        return random.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)

    return {
        "hidden.weight": layer(PIXELS, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": layer(HIDDEN, DIGITS),
        "output.bias": np.zeros(DIGITS, np.float32),
    }


def forward(weights: Arrays, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The activations of the hidden units and the probability of each digit, with a row for each image."""
    hidden = np.maximum(images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    scores = hidden @ weights["output.weight"] + weights["output.bias"]
    likely = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, likely / likely.sum(axis=1, keepdims=True)


def backward(weights: Arrays, batch: Examples) -> tuple[float, Arrays]:
    """The mean cross-entropy of a batch, and its gradient for every parameter."""
    hidden, likely = forward(weights, batch.images)
    rows = np.arange(len(batch.labels))
    loss = -np.log(likely[rows, batch.labels] + 1e-12).mean()

    d_scores = likely
    d_scores[rows, batch.labels] -= 1
    d_scores /= len(rows)
    d_hidden = (d_scores @ weights["output.weight"].T) * (hidden > 0)
    return float(loss), {
        "hidden.weight": batch.images.T @ d_hidden,
        "hidden.bias": d_hidden.sum(axis=0),
        "output.weight": hidden.T @ d_scores,
        "output.bias": d_scores.sum(axis=0),
    }


def accuracy(weights: Arrays, examples: Examples) -> float:
    """The share of examples whose digit gets the highest probability."""
    _, likely = forward(weights, examples.images)
    return float((likely.argmax(axis=1) == examples.labels).mean())
