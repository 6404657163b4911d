"""`optd.torch.LocalSteps`: any optimizer of torch takes local steps, and its model syncs with a job."""

import copy
import io

import pytest
import torch
from tests.client.local_steps.problem import together

import optd
import optd.torch
from optd import errors

H, ROUNDS = 3, 4


def model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()


def batch(worker: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * worker + step)
    x = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    return x, (x[:, :1] * (worker + 1)).sin()


def step(module: torch.nn.Module, inner: torch.optim.Optimizer, worker: int, number: int) -> None:
    x, y = batch(worker, number)
    inner.zero_grad()
    torch.nn.functional.mse_loss(module(x), y).backward()
    inner.step()


INNER = {
    "SGD": lambda module: torch.optim.SGD(module.named_parameters(), lr=0.05, momentum=0.9),
    "AdamW": lambda module: torch.optim.AdamW(module.parameters(), lr=0.01),
}


def simulated(make, workers: int, every: int) -> torch.nn.Module:
    """DiLoCo in one process, with torch's own optimizers inside and outside."""
    theta = model()
    outer = torch.optim.SGD(theta.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    replicas = [copy.deepcopy(theta) for _ in range(workers)]
    inners = [make(each) for each in replicas]
    for round_ in range(ROUNDS):
        for worker, (replica, inner) in enumerate(zip(replicas, inners, strict=True)):
            replica.load_state_dict(theta.state_dict())
            for number in range(every):
                step(replica, inner, worker, round_ * every + number)
        for parameter, *locals_ in zip(theta.parameters(), *(each.parameters() for each in replicas), strict=True):
            parameter.grad = sum(parameter.detach() - local.detach() for local in locals_) / workers
        outer.step()
    return theta


@pytest.mark.parametrize("inner", INNER)
def test_models_are_those_of_diloco_with_torchs_own_optimizers(server, name, inner):
    replicas = [model(seed) for seed in (0, 7)]
    optd.torch.SGD(model().parameters() if inner == "AdamW" else model().named_parameters(), lr=0.7, momentum=0.9,
                   nesterov=True, server=server.address, job=name, policy=optd.Sync(workers=2)).close()  # fmt: skip

    def work(worker: int) -> None:
        replica = replicas[worker]
        optimizer = INNER[inner](replica)
        session = optd.connect(server.address, job=name, worker=f"w{worker}")
        with session, optd.torch.LocalSteps(optimizer, every=H, session=session) as local:
            for number in range(H * ROUNDS):
                step(replica, optimizer, worker, number)
            assert local.version == ROUNDS

    together([lambda worker=worker: work(worker) for worker in range(2)])
    expected = simulated(INNER[inner], 2, H)
    for replica in replicas:
        for found, wanted in zip(replica.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_after_a_sync_the_model_has_the_global_weights_also_with_a_delay(server, name):
    module = model()
    inner = torch.optim.SGD(module.named_parameters(), lr=0.1)
    with optd.torch.LocalSteps(inner, every=4, delay=1, server=server.address, job=name) as local:
        for number in range(9):
            step(module, inner, 0, number)
        local.sync()
        found = local.session.pull()
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), torch.from_numpy(found[key]), rtol=0, atol=0)


def test_it_is_a_hook_until_it_is_closed(server, name):
    module = model()
    inner = torch.optim.SGD(module.named_parameters(), lr=0.1)
    local = optd.torch.LocalSteps(inner, every=2, server=server.address, job=name)
    assert local.fragments == (("0.weight", "0.bias", "2.weight", "2.bias"),)
    step(module, inner, 0, 0)
    assert (local.version, local.unsent) == (0, 1)
    step(module, inner, 0, 1)
    assert (local.version, local.unsent) == (1, 0)
    weights = module[0].weight.detach().clone()
    local.close()
    local.close()
    assert torch.equal(module[0].weight, weights)
    for number in range(4):
        step(module, inner, 0, number)
    assert local.version == 1
    with optd.connect(server.address, job=name) as session:
        assert session.info().version.version == 1
        assert session.pull()["0.weight"].shape == (6, 4)


def test_writes_of_a_sync_are_told_to_autograd(server, name):
    """As after any step: a backward pass through a graph of the old weights fails, and does not compute nonsense."""
    module = model()
    inner = torch.optim.SGD(module.parameters(), lr=0.0)
    with optd.torch.LocalSteps(inner, every=1, server=server.address, job=name):
        inner.zero_grad()
        loss = module(batch(0, 0)[0]).sum()
        loss.backward(retain_graph=True)
        inner.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_frozen_parameters_stay_here_and_groups_keep_their_names(server, name):
    module = model()
    module[0].bias.requires_grad_(False)
    groups = [{"params": [*module[0].parameters()], "name": "low"}, {"params": [*module[2].parameters()], "lr": 0.2}]
    inner = torch.optim.SGD(groups, lr=0.1)
    outer = {"algorithm": "sgd", "lr": 1.0}
    with optd.torch.LocalSteps(inner, every=2, outer=outer, server=server.address, job=name) as local:
        assert local.fragments == (("param0", "param2", "param3"),)
        assert [(group["name"], group["lr"]) for group in local.param_groups] == [("low", 1.0), ("group1", 1.0)]
        local.param_groups[1]["lr"] = 0.0
        before = module[2].weight.detach().clone()
        for number in range(2):
            step(module, inner, 0, number)
        assert torch.equal(module[2].weight, before), "the outer optimizer of this group does not move"
        assert local.session.groups()[1].options.options["lr"] == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_parameters_of_other_dtypes_sync(server, name, dtype):
    weight = torch.nn.Parameter(torch.ones(3, 2, dtype=dtype))
    inner = torch.optim.SGD([weight], lr=0.25)
    outer = {"algorithm": "sgd", "lr": 0.5}
    with optd.torch.LocalSteps(inner, every=2, outer=outer, server=server.address, job=name):
        for _ in range(2):
            weight.grad = torch.full_like(weight, 1 + 1j if dtype.is_complex else 1)
            inner.step()
    expected = 0.75 - 0.25j if dtype.is_complex else 0.75
    assert torch.equal(weight.detach(), torch.full((3, 2), expected, dtype=dtype))


@pytest.mark.parametrize("delay", [0, 2])
def test_a_training_goes_on_from_files_of_torch(server, name, delay):
    ends = []
    for stops in (False, True):
        job = f"{name}-{stops}"
        options = {"every": 3, "delay": delay, "server": server.address, "job": job, "worker": "w0"}
        module = model()
        inner = torch.optim.AdamW(module.parameters(), lr=0.01)
        local = optd.torch.LocalSteps(inner, **options)
        for number in range(4):
            step(module, inner, 0, number)
        if stops:
            file = io.BytesIO()
            torch.save([each.state_dict() for each in (module, inner, local)], file)
            local.session.close()
            file.seek(0)
            module = model(5)
            inner = torch.optim.AdamW(module.parameters(), lr=0.01)
            local = optd.torch.LocalSteps(inner, **options)
            saved = torch.load(file, weights_only=True)
            module.load_state_dict(saved[0])
            inner.load_state_dict(saved[1])
            assert local.load_state_dict(saved[2])
        for number in range(4, 10):
            step(module, inner, 0, number)
        local.close()
        ends.append([each.detach() for each in module.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_it_cannot_wrap_is_refused(server, name):
    where = {"server": server.address, "job": name}
    module = model()
    inner = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(errors.InvalidRequest, match="takes an optimizer of torch, got Sequential"):
        optd.torch.LocalSteps(module, every=2, **where)
    with pytest.raises(errors.InvalidRequest, match="alpha, the share of the local weights, must be in .0, 1., got 1"):
        optd.torch.LocalSteps(inner, every=2, alpha=1, **where)
    with pytest.raises(errors.InvalidRequest, match="outer must be a dict with the entry 'algorithm'"):
        optd.torch.LocalSteps(inner, every=2, outer={"lr": 1.0}, **where)
    with pytest.raises(errors.UnknownOption, match="momentun"):
        optd.torch.LocalSteps(inner, every=2, outer={"algorithm": "sgd", "momentun": 0.9}, **where)
    with pytest.raises(TypeError, match="unexpected keyword argument 'evry'"):
        optd.torch.LocalSteps(inner, every=2, evry=3, **where)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(errors.EmptyGroup, match="the inner optimizer that require a gradient has no parameters"):
        optd.torch.LocalSteps(inner, every=2, **where)
