"""PyTorch Lightning's trainer with an optimizer of ours from `configure_optimizers`, beside one of torch's."""

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from tests.client.torch.classes import CASES, Case, Optimizer
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

import optd.torch

pytestmark = pytest.mark.slow

EPOCHS, BATCHES = 3, 4
EACH = pytest.mark.parametrize("case", [case for case in CASES if not case.sparse], ids=str)
Make = Callable[..., Optimizer]
"""An optimizer of some parameters, with options."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Lightning has advice about workers of loaders, accelerators and loggers."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


class Module(lightning.LightningModule):
    """A network of matrices, which every class can train."""

    def __init__(self, configure: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False)).double()
        self.configure = configure

    def configure_optimizers(self) -> Any:
        return self.configure(self.net)

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss


class Manual(Module):
    """Two optimizers, which the module itself steps."""

    automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:
        for optimizer, scheduler in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            scheduler.step()


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8 * BATCHES, 4, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=8)


def trainer(**options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": EPOCHS, **options},
    )


def fit(configure: Callable[[nn.Module], Any], kind: type[Module] = Module, **options: Any) -> Module:
    module = kind(configure)
    trainer(**options).fit(module, data())
    return module


def both(serve: Callable, case: Case) -> tuple[Make, Make]:
    def theirs(params: Any, **options: Any) -> Optimizer:
        return case.theirs(params, **{**case.defaults, **options})

    def ours(params: Any, **options: Any) -> Optimizer:
        return serve(case.ours, params, **{**case.defaults, **options})

    return theirs, ours


def assert_same_training(theirs: Module, ours: Module) -> None:
    for there, here, start in zip(
        theirs.parameters(), ours.parameters(), Module(lambda _: None).parameters(), strict=True
    ):
        torch.testing.assert_close(here, there, rtol=1e-10, atol=1e-12)
        assert not torch.equal(here, start)


@EACH
def test_it_trains_as_the_class_of_torch(case: Case, serve: Callable) -> None:
    modules = [fit(lambda net, make=make: make(net.parameters(), lr=0.01)) for make in both(serve, case)]
    assert_same_training(*modules)
    optimizer = modules[1].optimizers()
    assert isinstance(optimizer, LightningOptimizer)
    assert isinstance(optimizer, case.ours)
    assert optimizer.version == optimizer.optimizer.version >= EPOCHS * BATCHES


SGD, ADAM = (next(case for case in CASES if case.name == name) for name in ("SGD", "Adam"))


def one_cycle(optimizer: Optimizer) -> Any:
    return {"scheduler": OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * BATCHES), "interval": "step"}


def on_plateau(optimizer: Optimizer) -> Any:
    return {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=10.0), "monitor": "loss"}


@pytest.mark.parametrize("schedule", [one_cycle, on_plateau])
@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}], ids=["plain", "clip"]
)
def test_it_trains_with_a_schedule(schedule: Callable, options: dict[str, Any], serve: Callable) -> None:
    def configure(make: Make) -> Callable[[nn.Module], Any]:
        def configured(net: nn.Module) -> Any:
            optimizer = make(net.named_parameters(), lr=0.05)
            return {"optimizer": optimizer, "lr_scheduler": schedule(optimizer)}

        return configured

    modules = [fit(configure(make), **options) for make in both(serve, ADAM)]
    assert_same_training(*modules)
    theirs, ours = (module.optimizers().param_groups[0] for module in modules)
    assert {**ours, "params": None} == {**theirs, "params": None}
    assert ours["lr"] != 0.05


def test_two_optimizers_stepped_by_hand(serve: Callable) -> None:
    def configure(make: Make) -> Callable[[nn.Module], Any]:
        def configured(net: nn.Module) -> Any:
            optimizers = [make(net[place].parameters(), lr=0.05, momentum=0.9) for place in (0, 2)]
            return optimizers, [StepLR(optimizer, 2, gamma=0.5) for optimizer in optimizers]

        return configured

    assert_same_training(*[fit(configure(make), Manual) for make in both(serve, SGD)])


def test_training_goes_on_from_a_checkpoint(tmp_path: Path, serve: Callable) -> None:
    """In a job of its own: weights, state and schedule come from the file."""

    def configure(make: Make) -> Callable[[nn.Module], Any]:
        def configured(net: nn.Module) -> Any:
            optimizer = make(net.parameters(), lr=0.05)
            return [optimizer], [one_cycle(optimizer)]

        return configured

    resumed = []
    for name, make in zip(("theirs", "ours"), both(serve, ADAM), strict=True):
        first = trainer(max_epochs=1)
        first.fit(Module(configure(make)), data())
        first.save_checkpoint(tmp_path / name)
        module = Module(configure(make))
        trainer().fit(module, data(), ckpt_path=tmp_path / name)
        resumed.append(module)
    assert_same_training(*resumed)
    assert_same_training(fit(configure(both(serve, ADAM)[0])), resumed[1])


def test_what_is_saved_loads_into_the_class_of_torch(tmp_path: Path, serve: Callable) -> None:
    first = trainer(max_epochs=1)
    first.fit(Module(lambda net: serve(optd.torch.Adam, net.parameters(), lr=0.05)), data())
    first.save_checkpoint(tmp_path / "ours")
    module = Module(lambda net: torch.optim.Adam(net.parameters()))
    trainer().fit(module, data(), ckpt_path=tmp_path / "ours")
    assert_same_training(fit(lambda net: torch.optim.Adam(net.parameters(), lr=0.05)), module)
