"""The compound operations of torch that optimizers are written in, with torch's order of operations.

torch's CPU kernels round once when they add a product (a fused multiply-add); numpy has no such operation and rounds
twice. torch's sqrt is not always correctly rounded. Apart from these two, results agree: they differ by an ulp or so of
the larger term for each operation.

`scratch` is overwritten; it must not share memory with any other argument. `out` may be `a` in all of them.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Array, Block, Number, Vector


def quotient(a: float, b: float) -> float:
    """Divide as IEEE 754 defines it: infinity or NaN if b is 0. In float32 if either number is a float32."""
    single = isinstance(a, np.float32) or isinstance(b, np.float32)
    kind = np.float32 if single else np.float64
    with np.errstate(all="ignore"):
        return float(kind(a) / kind(b))


def to_bfloat16(numbers: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Round to the nearest bfloat16, and to the even one if two are equally near. NaN stays NaN."""
    array = np.asarray(numbers, np.float32)
    bits = array.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(array), array, rounded.view(np.float32))


def norm(array: Array) -> np.floating[Any]:
    """``torch.norm(array)``, added up in float64: infinite if the sum of squares is beyond the array's dtype."""
    flat = array.reshape(-1)
    if flat.size == 1:  # torch does not square then
        return array.dtype.type(abs(flat[0]))
    return array.dtype.type(np.sqrt(np.einsum("i,i->", flat, flat, dtype=np.float64).astype(array.dtype)))


def add(a: Vector, b: Vector, alpha: Number, *, out: Vector, scratch: Vector) -> None:
    """``out = a + alpha * b``: ``torch.add(a, b, alpha=alpha)``."""
    np.multiply(b, alpha, out=scratch)
    np.add(a, scratch, out=out)


def addcmul(a: Vector, b: Vector, c: Vector, value: Number, *, out: Vector, scratch: Vector) -> None:
    """``out = a + (value * b) * c``: ``torch.addcmul(a, b, c, value=value)``."""
    np.multiply(b, value, out=scratch)
    np.multiply(scratch, c, out=scratch)
    np.add(a, scratch, out=out)


def minus_square(a: Vector, b: Vector, *, out: Vector) -> None:
    """``out = a - b * b``: ``torch.addcmul(a, b, b, value=-1)``.

    The difference may be small, or finite although the square is not. It is computed in float64, so float32 is rounded
    once, as in torch.
    """
    square = np.multiply(b, b, dtype=np.float64)
    np.subtract(a, square, out=out, dtype=np.float64, casting="same_kind")


def addcdiv(a: Vector, b: Vector, c: Vector, value: Number, *, out: Vector, scratch: Vector) -> None:
    """``out = a + (value * b) / c``: ``torch.addcdiv(a, b, c, value=value)``."""
    np.multiply(b, value, out=scratch)
    np.divide(scratch, c, out=scratch)
    np.add(a, scratch, out=out)


def lerp(a: Array, b: Array, weight: float, *, out: Array, scratch: Array) -> None:
    """``out = a + weight * (b - a)``: ``torch.lerp(a, b, weight)``, for a scalar weight.

    torch counts from the nearer end, so that a weight of 1 gives b exactly. `weight` has the data's dtype; torch, too,
    compares it and subtracts it from 1 in that dtype.
    """
    np.subtract(b, a, out=scratch)
    if abs(weight) < 0.5:
        np.multiply(scratch, weight, out=scratch)
        np.add(a, scratch, out=out)
    else:
        np.multiply(scratch, weight - 1, out=scratch)
        np.add(b, scratch, out=out)


def sign(a: Vector, *, out: Vector, scratch: Vector) -> Vector:
    """``out = torch.sign(a)``, which is 0 for NaN."""
    np.less(a, 0, out=scratch)
    np.greater(a, 0, out=out)
    return np.subtract(out, scratch, out=out)


def directed(block: Block, maximize: bool, weight_decay: float, *, out: Vector, scratch: Vector) -> Vector:
    """Return the gradient to descend along: negated to maximize, then with `weight_decay` times the weights added.

    The result lies in `out`, or is the block's own gradient if nothing changes it.
    """
    gradient = block.gradient
    if maximize:
        gradient = np.negative(gradient, out=out)
    if weight_decay != 0:
        add(gradient, block.weights, weight_decay, out=out, scratch=scratch)
        gradient = out
    return gradient
