"""How large the rows are: as the aims mean it, or tiny, to prove that they run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Elements of the rows' parameters, and how often the short ones are repeated within a sample."""

    name: str
    kernel: int
    """One parameter, for kernels alone."""
    many: int
    """Elements of `parameters` small parameters."""
    parameters: int
    model: int
    """A model that is stepped as a whole."""
    grouped: int
    """Elements in `groups` groups, or in one."""
    groups: int
    few: int
    """The smaller one of two sizes whose time per element is compared."""
    plenty: int
    """The larger one; also the parameters of which the server's memory is measured."""
    small: int
    """A job whose steps are all latency."""
    small_steps: int
    """Steps of it in a sample."""
    clients: int
    """Processes that push at the same time."""
    few_rows: int
    """Rows of a table of which `touched` have a gradient."""
    some_rows: int
    """Of a larger one."""
    plenty_rows: int
    """Of one that is much larger."""
    touched: int
    row_steps: int
    """Steps of such a table in a sample."""
    kept_steps: int
    """Steps of a small job that is kept on disk, in a sample: some seconds of them, so that syncs are among them."""
    logged_steps: int
    """Steps of the model in a sample that writes their gradients to a log."""
    replayed_steps: int
    """Steps of a small job that are recovered from its log."""
    snapshot_steps: int
    """Steps of the model beside snapshots, in a sample."""
    day_steps: int
    """Steps of a small job from which a day is told: so many that its log is compacted."""
    push_seconds: float
    """How long they push for a sample."""

    def words(self) -> dict[str, str]:
        """Every number as people write it: 25.6 M."""
        return {name: in_words(value) for name, value in asdict(self).items() if isinstance(value, int)}


FULL = Size(
    name="full",
    kernel=64_000_000,
    many=10_000_000,
    parameters=10_000,
    model=25_600_000,
    grouped=10_000_000,
    groups=1_000,
    few=1_000_000,
    plenty=100_000_000,
    small=5_000,
    small_steps=500,
    clients=8,
    few_rows=10_000,
    some_rows=1_000_000,
    plenty_rows=10_000_000,
    touched=1_000,
    row_steps=200,
    kept_steps=2_000,
    logged_steps=8,
    replayed_steps=3_000,
    snapshot_steps=100,
    day_steps=40_000,
    push_seconds=1.0,
)
TINY = Size(
    name="tiny",
    kernel=100_000,
    many=20_000,
    parameters=100,
    model=50_000,
    grouped=20_000,
    groups=20,
    few=10_000,
    plenty=100_000,
    small=500,
    small_steps=20,
    clients=2,
    few_rows=1_000,
    some_rows=2_000,
    plenty_rows=10_000,
    touched=100,
    row_steps=10,
    kept_steps=20,
    logged_steps=2,
    replayed_steps=20,
    snapshot_steps=10,
    day_steps=50,
    push_seconds=0.1,
)
SIZES = {size.name: size for size in (FULL, TINY)}


def in_words(number: int) -> str:
    """64 M, 25.6 M, 10 k, 1,000."""
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if number >= unit * 10 or (number >= unit and letter == "M"):
            return f"{number / unit:g} {letter}"
    return f"{number:,}"


def model(elements: int) -> Shapes:
    """The parameters of a model of so many elements: square layers with a bias each, and what is left."""
    width = 1024 if elements > 1 << 22 else 64
    shapes: Shapes = {}
    left = elements
    while left >= width * width + width:
        shapes |= {f"layer{len(shapes) // 2}.weight": (width, width), f"layer{len(shapes) // 2}.bias": (width,)}
        left -= width * width + width
    return shapes | ({"rest": (left,)} if left else {})


def single(elements: int) -> Shapes:
    """The same in one parameter."""
    return {"w": (elements,)}


def mixed(elements: int, parameters: int) -> Shapes:
    """So many small parameters of mixed shapes: sizes from the mean's tenth to twice the mean, in no order."""
    rng = np.random.default_rng(0)
    mean = elements // parameters
    sizes = rng.integers(max(mean // 10, 1), mean * 2 - mean // 10, parameters)
    sizes = np.maximum(sizes * elements // sizes.sum(), 1)
    sizes[-1] += elements - sizes.sum()
    return {f"p{index}": _shape(int(size)) for index, size in enumerate(sizes)}


def _shape(size: int) -> tuple[int, ...]:
    """Of two dimensions where its size allows, as most parameters are."""
    rows = next((rows for rows in (8, 4, 2) if size % rows == 0), 1)
    return (size,) if rows == 1 else (rows, size // rows)


def count(shapes: Shapes) -> int:
    """The elements of all."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def arrays(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Normal float32 numbers of these shapes; the same ones for the same seed, in every process."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """All elements, one array after the other."""
    return np.concatenate([array.reshape(-1) for array in arrays])
