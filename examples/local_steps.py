"""A small language model, trained by two workers behind slow links: with local steps, and data-parallel beside it.

    python examples/local_steps.py                   # some minutes
    python examples/local_steps.py --steps 200 --every 20 --megabits 20

The model is one of transformers' configuration classes; it learns the characters of Python's own documentation, which
ships with Python. Both trainings begin with a model that one process has trained for `--warmup` steps, as in DiLoCo's
paper: at first a model changes too fast for workers to go apart. Data-parallel workers exchange gradients and weights
at every step. Workers with local steps exchange one difference every `--every` steps, in the encoding `--encoding`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from slow_link import SlowLink
from transformers import LlamaConfig, LlamaForCausalLM

import optd
import optd.torch

WORKERS = 2
LENGTH, BATCH = 64, 8
WARMUP_LR, LR = 3e-3, 1e-3
HELD_OUT = 20_000


@dataclass
class Result:
    """How a training went."""

    loss: float
    """The mean cross-entropy of the characters that were held out."""
    bytes_per_step: float
    """What passed the link of one worker, in both directions, for each step; without what registering takes."""
    seconds: float


class Text:
    """Python's documentation as numbers: characters to train on, and some that are held out."""

    def __init__(self) -> None:
        text = "\n".join(topics[name] for name in sorted(topics))
        text = "".join(character for character in text if character.isascii())
        self.characters = sorted(set(text))
        number = {character: index for index, character in enumerate(self.characters)}
        every = torch.tensor([number[character] for character in text])
        self.training, self.held_out = every[:-HELD_OUT], every[-HELD_OUT:]

    def batches(self, worker: int) -> Iterator[torch.Tensor]:
        """Random pieces of the text without end, of shape (BATCH, LENGTH); each worker has pieces of its own."""
        random = torch.Generator().manual_seed(worker)
        while True:
            starts = torch.randint(len(self.training) - LENGTH, (BATCH,), generator=random)
            yield torch.stack([self.training[start : start + LENGTH] for start in starts.tolist()])


def make_model(text: Text) -> LlamaForCausalLM:
    """The same one each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(text.characters),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def backward(model: LlamaForCausalLM, batch: torch.Tensor) -> None:
    model.zero_grad()
    model(input_ids=batch, labels=batch).loss.backward()


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, text: Text) -> float:
    pieces = text.held_out[: len(text.held_out) // LENGTH * LENGTH].view(-1, LENGTH)
    return model(input_ids=pieces, labels=pieces).loss.item()


def warm_up(text: Text, steps: int) -> dict[str, torch.Tensor]:
    """The weights that both trainings begin with."""
    model = make_model(text)
    optimizer = torch.optim.AdamW(model.parameters(), lr=WARMUP_LR)
    for _, *batches in zip(range(steps), text.batches(100), text.batches(101), strict=False):
        backward(model, torch.cat(batches))
        optimizer.step()
    return model.state_dict()


def train_in_parallel(
    session: optd.Session, model: LlamaForCausalLM, batches: Iterator, steps: int, link: SlowLink
) -> None:
    """Each step is one of all workers, on the server."""
    optimizer = optd.torch.AdamW(model.named_parameters(), lr=LR, session=session)
    link.reset()
    for _ in range(steps):
        backward(model, next(batches))
        optimizer.step()


def train_locally(
    session: optd.Session, model: LlamaForCausalLM, batches: Iterator, steps: int, link: SlowLink, **options: object
) -> None:
    """Each worker steps on its own, and from time to time all take the global weights."""
    inner = torch.optim.AdamW(model.named_parameters(), lr=LR)
    with optd.torch.LocalSteps(inner, session=session, **options) as local:
        link.reset()
        for _ in range(steps):
            backward(model, next(batches))
            inner.step()
        if local.unsent:
            local.sync()


def run(
    text: Text,
    start: dict[str, torch.Tensor],
    steps: int,
    megabits: float,
    train: Callable[..., None],
    **options: object,
) -> Result:
    """Trains with two workers in threads, each behind a link of its own."""
    models = [make_model(text) for _ in range(WORKERS)]

    def work(worker: int, link: SlowLink) -> None:
        models[worker].load_state_dict(start)
        policy = optd.Sync(workers=WORKERS)
        with optd.connect(link.address, job="characters", worker=f"w{worker}", policy=policy, lane="grpc") as session:
            train(session, models[worker], text.batches(worker), steps, link, **options)

    began = time.monotonic()
    with optd.local() as server, ExitStack() as stack:
        links = [stack.enter_context(SlowLink(server.address, megabits * 1e6)) for _ in range(WORKERS)]
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(work, range(WORKERS), links))
        passed = sum(link.bytes for link in links) / WORKERS
    return Result(evaluate(models[0], text), passed / steps, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=1000, help="steps of one process before")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each worker")
    parser.add_argument("--every", type=int, default=100, help="local steps between two syncs")
    parser.add_argument("--encoding", default="int8", help="of the differences, as optd.connect() takes it")
    parser.add_argument("--megabits", type=float, default=100, help="what each link carries in a second")
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = Text()
    parameters = sum(each.numel() for each in make_model(text).parameters())
    print(f"{parameters:,} parameters, {len(text.training):,} characters, {WORKERS} workers")
    start = warm_up(text, given.warmup)
    how = {"every": given.every, "encoding": given.encoding}
    parallel = run(text, start, given.steps, given.megabits, train_in_parallel)
    local = run(text, start, given.steps, given.megabits, train_locally, **how)
    for name, result in (("data-parallel", parallel), (f"every {given.every} steps", local)):
        print(
            f"{name:18} loss {result.loss:.4f}   {result.bytes_per_step:12,.0f} bytes a step   {result.seconds:6.1f} s"
        )
    print(
        f"1/{parallel.bytes_per_step / local.bytes_per_step:.0f} of the bytes, "
        f"{100 * (local.loss / parallel.loss - 1):+.1f} % in the loss"
    )


if __name__ == "__main__":
    main()
