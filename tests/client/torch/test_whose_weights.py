"""What a script writes into its tensors counts, as in torch: scripts that do so, with only the import changed."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import optd
import optd.torch

Make = Callable[..., Any]
"""Makes an optimizer: the name of its class, parameters, options."""
Weights = list[torch.Tensor]


def weights_of(*modules: nn.Module) -> Weights:
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def data(rows: int = 12, columns: int = 6) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7))


def small(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3, bias=bias))


def fit(model: nn.Module, optimizer: Any, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


# The scripts


def clamped_critic(make: Make) -> Iterator[Weights]:
    """WGAN."""
    critic, generator = small(), nn.Linear(2, 6)
    of_critic = make("RMSprop", critic.parameters(), lr=5e-2)
    of_generator = make("RMSprop", generator.parameters(), lr=5e-2)
    for _ in range(6):
        of_critic.zero_grad()
        (critic(data()).mean() - critic(generator(data(12, 2)).detach()).mean()).backward()
        of_critic.step()
        for p in critic.parameters():
            p.data.clamp_(-0.05, 0.05)
        of_generator.zero_grad()
        critic(generator(data(12, 2))).mean().backward()
        of_generator.step()
        yield weights_of(critic, generator)


def embedding(make: Make, *, sparse: bool) -> Iterator[Weights]:
    table = nn.Embedding(50, 4, max_norm=0.5, sparse=sparse)
    optimizer = make("SGD", table.parameters(), lr=0.3)
    for step in range(6):
        optimizer.zero_grad()
        (table(torch.tensor([step, step + 1, 7])) - 1).square().sum().backward()
        optimizer.step()
        yield weights_of(table)


def large_embedding(make: Make, *, sparse: bool) -> Iterator[Weights]:
    """Too large to be held whole: torch tells of each forward pass as a write, which some are."""
    table = nn.Embedding(9_000, 8, max_norm=0.5, sparse=sparse)
    table.weight.data.mul_(0.1)
    optimizer = make("SGD", table.parameters(), lr=0.3)
    for step in range(6):
        optimizer.zero_grad()
        (table(torch.tensor([step * 37 + 5, 4_321, 8_000])) - 1).square().sum().backward()
        optimizer.step()
        yield weights_of(table)


def pruned(make: Make) -> Iterator[Weights]:
    model = small()
    optimizer = make("Adam", model.parameters(), lr=0.05)
    fit(model, optimizer, data())
    masks = [(p.detach().abs() > p.detach().abs().median()).to(p.dtype) for p in model.parameters()]
    for step in range(5):
        fit(model, optimizer, data())
        for p, mask in zip(model.parameters(), masks, strict=True):
            if step % 2:
                p.data *= mask
            else:
                p.data = p.data * mask
        yield weights_of(model)


def pruned_by_torch(make: Make) -> Iterator[Weights]:
    """Before the optimizer is made, more of it while it trains, and made permanent."""
    model = small()
    prune.l1_unstructured(model[0], "weight", amount=0.3)
    optimizer = make("SGD", model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(6):
        if step == 2:
            prune.random_unstructured(model[0], "weight", amount=0.3)
        if step == 4:
            prune.remove(model[0], "weight")
        fit(model, optimizer, data())
        yield weights_of(model)


def loaded(make: Make) -> Iterator[Weights]:
    """Goes back to the best weights twice, with the optimizer as it is."""
    model = small()
    optimizer = make("AdamW", model.parameters(), lr=0.05)
    best = copy.deepcopy(model.state_dict())
    for step in range(8):
        fit(model, optimizer, data())
        if step in (3, 5):
            model.load_state_dict(best)
        yield weights_of(model)


def loaded_by_assignment(make: Make) -> Iterator[Weights]:
    """In which tensors get other memory."""
    model = small()
    optimizer = make("AdamW", model.parameters(), lr=0.05)
    best = copy.deepcopy(model.state_dict())
    for step in range(8):
        fit(model, optimizer, data())
        if step in (3, 5):
            for name, p in model.named_parameters():
                p.data = best[name].clone()
        yield weights_of(model)


def averaged(make: Make) -> Iterator[Weights]:
    """SWA, whose average is trained on; and an EMA by hand that is swapped in and out to evaluate."""
    model = small()
    optimizer, average = make("SGD", model.parameters(), lr=0.2), AveragedModel(model)
    ema = copy.deepcopy(model)
    for step in range(8):
        fit(model, optimizer, data())
        average.update_parameters(model)
        with torch.no_grad():
            for kept, p in zip(ema.parameters(), model.parameters(), strict=True):
                kept.lerp_(p, 0.1)
        backup = [p.data for p in model.parameters()]
        for p, kept in zip(model.parameters(), ema.parameters(), strict=True):
            p.data = kept.data
        model(data())
        for p, own in zip(model.parameters(), backup, strict=True):
            p.data = own
        if step == 4:
            for p, kept in zip(model.parameters(), average.module.parameters(), strict=True):
                p.data.copy_(kept.data)
        yield weights_of(model)


def shared_encoder(make: Make) -> Iterator[Weights]:
    """An actor and a critic, with an optimizer each."""
    encoder, actor, critic = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 1)
    of_actor = make("Adam", [*encoder.parameters(), *actor.parameters()], lr=0.02)
    of_critic = make("Adam", [*encoder.parameters(), *critic.parameters()], lr=0.05)
    for _ in range(6):
        for head, optimizer in ((critic, of_critic), (actor, of_actor)):
            for each in (of_actor, of_critic):
                each.zero_grad()
            head(encoder(data()).tanh()).square().mean().backward()
            optimizer.step()
        yield weights_of(encoder, actor, critic)


def sharpness_aware(make: Make, *, by_data: bool) -> Iterator[Weights]:
    """As davda54 writes SAM, and with the perturbation taken back by subtraction."""
    model = small()
    optimizer = make("SGD", model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        optimizer.zero_grad()
        model(data()).square().mean().backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        old, moved = [], []
        with torch.no_grad():
            for p in model.parameters():
                old.append(p.data.clone())
                moved.append(p.grad * 0.05 / norm)
                p.add_(moved[-1])
        optimizer.zero_grad()
        model(data()).square().mean().backward()
        for p, own, way in zip(model.parameters(), old, moved, strict=True):
            if by_data:
                p.data = own
            else:
                p.data.sub_(way)
        optimizer.step()
        yield weights_of(model)


def begun_again(make: Make) -> Iterator[Weights]:
    """One layer gets new weights, by `init` and by numpy."""
    model = small()
    optimizer = make("Adam", model.parameters(), lr=0.05)
    for step in range(8):
        if step == 3:
            nn.init.ones_(model[0].weight)
            nn.init.zeros_(model[0].bias)
        if step == 5:
            model[2].weight.detach().numpy()[:] = 0.25
        if step == 6:
            model[2].reset_parameters()
        fit(model, optimizer, data())
        yield weights_of(model)


def normalized(make: Make) -> Iterator[Weights]:
    """Rows are brought back to length 1 before each step, in a closure."""
    model = small(bias=False)
    optimizer = make("Adagrad", model.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        with torch.no_grad():
            for p in model.parameters():
                p.div_(p.norm(dim=1, keepdim=True))
        optimizer.zero_grad()
        loss = (model(data()) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
        yield weights_of(model)


def group_in_mid_training(make: Make) -> Iterator[Weights]:
    model = small()
    optimizer = make("SGD", model[0].parameters(), lr=0.2, momentum=0.5)
    for step in range(5):
        fit(model, optimizer, data())
        for p in model.parameters():
            p.data.clamp_(-0.2, 0.2)
        if step == 1:
            optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.1})
        yield weights_of(model)


def transposed(make: Make) -> Iterator[Weights]:
    """A tensor that lies the other way round in its memory, and then in the same memory as that is."""
    weight = nn.Parameter(data(6, 6).t())
    other = nn.Parameter(data(6, 6).clone())
    optimizer = make("SGD", [weight, other], lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        (weight.sin().sum() + (other * torch.arange(6)).cos().sum()).backward()
        optimizer.step()
        if step == 1:
            weight.data.clamp_(-0.5, 0.5)
        if step == 2:
            other.data = other.data.t()
        if step == 3:
            weight.data = weight.data.t()
        yield [weight.detach().clone(), other.detach().clone()]


def scripts() -> dict[str, Callable[[Make], Iterator[Weights]]]:
    plain = [
        clamped_critic,
        pruned,
        pruned_by_torch,
        loaded,
        loaded_by_assignment,
        averaged,
        shared_encoder,
        begun_again,
        normalized,
        group_in_mid_training,
        transposed,
    ]
    named = {script.__name__: script for script in plain}
    for flag in (False, True):
        named[f"embedding sparse={flag}"] = lambda make, flag=flag: embedding(make, sparse=flag)
        named[f"large_embedding sparse={flag}"] = lambda make, flag=flag: large_embedding(make, sparse=flag)
        named[f"sharpness_aware by_data={flag}"] = lambda make, flag=flag: sharpness_aware(make, by_data=flag)
    return named


SCRIPTS = scripts()


@pytest.fixture
def making(where: dict[str, str]) -> Iterator[Callable[..., Make]]:
    """Makes what makes our optimizers, each in a job of its own, which is on some lane."""
    sessions: list[optd.Session] = []

    def on(lane: str, **more: Any) -> Make:
        def make(kind: str, params: Any, **options: Any) -> Any:
            job = f"{where['job']}-{len(sessions)}"
            sessions.append(optd.connect(where["server"], job=job, worker="w0", lane=lane))
            return getattr(optd.torch, kind)(params, session=sessions[-1], **options, **more)

        return make

    yield on
    for session in sessions:
        session.close()


def torchs(kind: str, params: Any, **options: Any) -> Any:
    return getattr(torch.optim, kind)(params, **options)


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The dtype of everything in a script."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


LANES = pytest.mark.parametrize(
    ("lane", "zero_copy"), [("grpc", False), ("shm", False), ("shm", True)], ids=["grpc", "shm", "zero_copy"]
)


@LANES
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64], indirect=True, ids=str
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_gives_torchs_numbers(
    script: str, dtype: torch.dtype, lane: str, zero_copy: bool, making: Callable[..., Make]
) -> None:
    runs = []
    for make in (torchs, making(lane, zero_copy=zero_copy)):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runs.append(list(SCRIPTS[script](make)))
    exact = {"rtol": 1e-11, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    for step, (expected, found) in enumerate(zip(*runs, strict=True)):
        torch.testing.assert_close(found, expected, **exact, msg=lambda why, step=step: f"step {step}: {why}")


@LANES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits(dtype: torch.dtype, lane: str, zero_copy: bool, making: Callable[..., Make]) -> None:
    """With numbers that 16 bits have."""
    runs = []
    for make in (torchs, making(lane, zero_copy=zero_copy)):
        weight = nn.Parameter(torch.arange(-4.0, 4.0).to(dtype))
        optimizer = make("SGD", [weight], lr=0.5)
        runs.append([])
        for _ in range(4):
            weight.grad = torch.tensor([1.0, -2, 3, -4, 5, 6, -7, 8]).to(dtype)
            optimizer.step()
            weight.data.clamp_(-2, 2)
            runs[-1].append(weight.detach().clone())
    assert all(map(torch.equal, *runs))
