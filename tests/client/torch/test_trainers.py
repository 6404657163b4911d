"""Training loops of other libraries, whose checkpoints bring a crashed run back: beside torch's AdamW.

Each trains for some steps, saves, and goes on; a second program then resumes from what was saved, in the same job,
which stands past it.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optd.torch
from optd.local import LocalServer

os.environ["HF_HUB_OFFLINE"] = "1"

import pytorch_lightning as lightning
from accelerate import Accelerator
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

pytestmark = pytest.mark.slow

LR = 0.01
SAVED, STEPS = 3, 6
Make = Callable[..., torch.optim.Optimizer]
Train = Callable[[Make, Path, bool], nn.Module]
"""Trains with an optimizer for `STEPS` steps, and saves after `SAVED` in a folder; or resumes from there."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The libraries have advice about devices, loggers and how they are going to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="job ")  # what we would say of weights that are not the checkpoint's
        yield


def with_trainer(make: Make, folder: Path, resume: bool) -> nn.Module:
    """Hugging Face's Trainer with a tiny GPT-2."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).double()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 16, (4 * STEPS, 8), generator=generator)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=SAVED,
        per_device_train_batch_size=4,
        lr_scheduler_type="linear",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model, arguments, train_dataset=data, optimizer_cls_and_kwargs=(make, {"lr": LR}))
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if resume else None)
    return model


def network() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    return model, [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def with_accelerate(make: Make, folder: Path, resume: bool) -> nn.Module:
    """A loop of one's own around accelerate's save_state and load_state."""
    model, batches = network()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, make(model.parameters(), lr=LR))
    if resume:
        accelerator.load_state(str(folder))
    for number, batch in enumerate(batches[SAVED:] if resume else batches):
        if not resume and number == SAVED:
            accelerator.save_state(str(folder))
        optimizer.zero_grad()
        accelerator.backward(model(batch).square().mean())
        optimizer.step()
    return accelerator.unwrap_model(model)


def with_ignite(make: Make, folder: Path, resume: bool) -> nn.Module:
    """ignite's engine and its checkpoints."""
    model, batches = network()
    optimizer = make(model.parameters(), lr=LR)

    def update(_: Engine, batch: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(update)
    kept = {"model": model, "optimizer": optimizer}
    if resume:
        saved = torch.load(next(folder.glob("checkpoint*.pt")), weights_only=True)
        Checkpoint.load_objects(to_load=kept, checkpoint=saved)
        batches = batches[SAVED:]
    else:
        saver = Checkpoint(kept, DiskSaver(str(folder), create_dir=True, require_empty=False))
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=SAVED), saver)
    trainer.run(batches, max_epochs=1)
    return model


def with_lightning(make: Make, folder: Path, resume: bool) -> nn.Module:
    """PyTorch Lightning, which makes the optimizer before it loads either of them."""
    model, batches = network()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.model(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make(self.model.parameters(), lr=LR)

    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVED, save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        max_steps=STEPS,
    )
    trainer.fit(
        Module(), DataLoader(batches, batch_size=None), ckpt_path=folder / f"step={SAVED}.ckpt" if resume else None
    )
    return model


LOOPS = [with_trainer, with_accelerate, with_ignite, with_lightning]


@pytest.mark.parametrize("train", LOOPS, ids=lambda train: train.__name__)
def test_a_crashed_run_is_resumed_with_the_numbers_of_torch(
    train: Train, server: LocalServer, job_names: Iterator[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTD_SERVER", server.address)
    monkeypatch.setenv("OPTD_JOB", next(job_names))
    opened: list[Any] = []

    class AdamW(optd.torch.AdamW):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            opened.append(self)

    expected = [train(torch.optim.AdamW, tmp_path / "torch", resume) for resume in (False, True)]
    found = []
    for resume in (False, True):
        found.append(train(AdamW, tmp_path / "optd", resume))
        assert opened[-1].version == STEPS + resume * (STEPS - SAVED)
        opened[-1].close()
    for theirs, here in zip(expected, found, strict=True):
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(here.get_parameter(name), parameter, rtol=1e-9, atol=1e-10)
