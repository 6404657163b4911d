"""What torch's documentation teaches, with the import and the server argument changed; attaching to a job."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

import optd
import optd.torch
from optd.errors import (
    AlreadyRegistered,
    InvalidName,
    JobMismatch,
    NoAddress,
    SessionClosed,
    SharedParameters,
    Unreachable,
)
from optd.options.group_options import GROUP_OPTIONS
from optd.torch import SGD, Adam, AdamW


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 4)
        self.classifier = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.tanh(self.base(inputs)))


def twins() -> tuple[Model, Model]:
    first, second = Model(), Model()
    second.load_state_dict(first.state_dict())
    return first, second


def train_both(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, here: Model, there: Model) -> None:
    for _ in range(5):
        inputs, targets = torch.randn(8, 3), torch.randint(2, (8,))
        for optimizer, model in ((ours, here), (theirs, there)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    for found, expected in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def names(optimizer: SGD) -> dict[str, list[str]]:
    return {group.options.group: [p.name for p in group.parameters] for group in optimizer.session.info().groups}


# The four usages of https://docs.pytorch.org/docs/stable/optim.html


def test_all_parameters_of_a_model(where: dict[str, str]) -> None:
    model, other = twins()
    with SGD(model.parameters(), lr=0.01, momentum=0.9, **where) as optimizer:
        assert isinstance(optimizer, torch.optim.SGD)
        assert names(optimizer) == {"group0": ["param0", "param1", "param2", "param3"]}
        train_both(optimizer, torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9), model, other)


def test_a_list_of_variables(where: dict[str, str]) -> None:
    model, other = twins()
    var1, var2 = model.base.weight, model.base.bias
    with Adam([var1, var2], lr=0.0001, **where) as optimizer:
        assert isinstance(optimizer, torch.optim.Adam)
        train_both(optimizer, torch.optim.Adam([other.base.weight, other.base.bias], lr=0.0001), model, other)


def test_a_learning_rate_for_each_layer(where: dict[str, str]) -> None:
    def layers(model: Model) -> list[dict]:
        return [{"params": model.base.parameters(), "lr": 1e-2}, {"params": model.classifier.parameters()}]

    model, other = twins()
    with SGD(layers(model), lr=1e-3, momentum=0.9, **where) as optimizer:
        train_both(optimizer, torch.optim.SGD(layers(other), lr=1e-3, momentum=0.9), model, other)
        assert [group.options.options["lr"] for group in optimizer.session.groups()] == [1e-2, 1e-3]


@pytest.mark.parametrize("named", [False, True])
def test_biases_without_weight_decay(named: bool, where: dict[str, str]) -> None:
    def groups(model: Model) -> list[dict]:
        bias_params = [(name, p) if named else p for name, p in model.named_parameters() if "bias" in name]
        others = [(name, p) if named else p for name, p in model.named_parameters() if "bias" not in name]
        return [{"params": others}, {"params": bias_params, "weight_decay": 0}]

    model, other = twins()
    with SGD(groups(model), weight_decay=1e-2, lr=1e-2, **where) as optimizer:
        train_both(optimizer, torch.optim.SGD(groups(other), weight_decay=1e-2, lr=1e-2), model, other)
        assert [group.options.options["weight_decay"] for group in optimizer.session.groups()] == [1e-2, 0]
        weights, biases = ["base.weight", "classifier.weight"], ["base.bias", "classifier.bias"]
        if not named:
            weights, biases = ["param0", "param1"], ["param2", "param3"]
        assert names(optimizer) == {"group0": weights, "group1": biases}


def test_named_parameters_of_a_model(where: dict[str, str]) -> None:
    model, other = twins()
    with AdamW(model.named_parameters(), **where) as optimizer:
        assert names(optimizer) == {"group0": [name for name, _ in model.named_parameters()]}
        reference = torch.optim.AdamW(other.named_parameters())
        assert optimizer.param_groups[0].keys() == reference.param_groups[0].keys()
        train_both(optimizer, reference, model, other)
        assert optimizer.state_dict()["param_groups"] == reference.state_dict()["param_groups"]


def test_groups_have_the_name_of_their_dict(where: dict[str, str]) -> None:
    model = Model()
    groups = [{"params": model.base.parameters(), "name": "base"}, {"params": model.classifier.parameters()}]
    with SGD(groups, **where) as optimizer:
        assert list(names(optimizer)) == ["base", "group1"]
        assert optimizer.param_groups[0]["name"] == "base"
        assert "name" not in optimizer.param_groups[1]


@pytest.mark.slow
def test_a_training_function_that_torch_compiles(where: dict[str, str]) -> None:
    model, other = twins()
    with Adam(model.parameters(), **where) as optimizer:
        reference = torch.optim.Adam(other.parameters())

        @torch.compile(backend="eager")
        def train(inputs: torch.Tensor) -> None:
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()

        for _ in range(3):
            inputs = torch.randn(4, 3)
            train(inputs)
            reference.zero_grad()
            other(inputs).square().sum().backward()
            reference.step()
        assert optimizer.version == 3
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()), rtol=1e-5, atol=1e-6)


# Where the server is


def test_with_the_environment_set_only_the_import_line_changes(
    where: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in where.items():
        monkeypatch.setenv(f"OPTD_{name.upper()}", value)
    with SGD(Model().parameters(), 0.01) as optimizer:
        assert (optimizer.session.job, optimizer.session.worker) == (where["job"], where["worker"])


def test_no_server_given() -> None:
    with pytest.raises(NoAddress, match=r"pass session=, server='HOST:PORT', or set OPTD_SERVER"):
        SGD(Model().parameters())


def test_no_server_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optd.session.connect_arguments.connect", partial(optd.connect, connect_timeout=0.1))
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        SGD(Model().parameters(), server="127.0.0.1:1")


def test_a_session_that_is_given_stays_open(where: dict[str, str]) -> None:
    with optd.connect(where["server"], job=where["job"], worker="w0") as session:
        with SGD(Model().parameters(), session=session) as optimizer:
            assert optimizer.session is session
        assert session.info().algorithm == "sgd"
        with pytest.raises(AlreadyRegistered):
            SGD(Model().parameters(), session=session)


def test_a_session_that_was_opened_is_closed(where: dict[str, str]) -> None:
    optimizer = SGD(Model().parameters(), **where)
    optimizer.close()
    optimizer.close()
    with pytest.raises(SessionClosed):
        optimizer.step()


def test_the_signature_is_torchs_and_ours() -> None:
    for ours in (SGD, Adam, AdamW):
        torchs = inspect.signature(getattr(torch.optim, ours.__name__)).parameters
        parameters = inspect.signature(ours).parameters
        assert list(parameters.values())[: len(torchs)] == list(torchs.values())
        assert [*parameters][len(torchs) :] == [
            *GROUP_OPTIONS,
            "session",
            "server",
            "job",
            "worker",
            "if_exists",
            "policy",
            "gradients",
            "averages",
            "progress",
            "durable",
            "recreate",
            "zero_copy",
            "local_changes",
            "norms",
            "buffers",
        ]


def test_a_subclass_needs_nothing(where: dict[str, str]) -> None:
    class Eager(SGD):
        def __init__(self, params: object, **kwargs: object) -> None:
            super().__init__(params, 0.5, **kwargs)

    assert list(inspect.signature(Eager).parameters) == ["params", "kwargs"]
    with Eager(Model().parameters(), **where) as optimizer:
        assert optimizer.session.groups()[0].options.options["lr"] == 0.5


# Attaching


def test_another_worker_gets_the_weights_of_the_server(where: dict[str, str]) -> None:
    first, second = Model(), Model()
    with SGD(first.named_parameters(), lr=0.1, **where) as one:
        nn.functional.mse_loss(first(torch.ones(1, 3)), torch.ones(1, 2)).backward()
        one.step()
        with SGD(second.named_parameters(), lr=0.7, **{**where, "worker": "w1"}) as two:
            assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
            assert two.param_groups[0]["lr"] == 0.1, "options belong to the job"
            assert two.version == one.version == 1
            one.step()
            assert not torch.equal(first.base.weight, second.base.weight)
            two.pull()
            assert torch.equal(first.base.weight, second.base.weight)


def test_push_leaves_the_weights_to_pull(where: dict[str, str]) -> None:
    weight = nn.Parameter(torch.ones(3))
    with SGD([weight], lr=1.0, **where) as optimizer:
        weight.grad = torch.ones(3)
        assert optimizer.push().version.version == 1
        assert weight.tolist() == [1, 1, 1]
        optimizer.pull()
        assert weight.tolist() == [0, 0, 0]


def test_what_one_worker_changes_in_its_groups_comes_to_the_others(where: dict[str, str]) -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    with SGD([weights[0]], lr=0.1, **where) as one, SGD([weights[1]], **{**where, "worker": "w1"}) as two:
        one.param_groups[0]["lr"] = 0.25
        one.step()
        two.step()
        assert two.param_groups[0]["lr"] == 0.25


def test_attaching_with_another_model_shows_both_sides(where: dict[str, str]) -> None:
    def attach(kind: type, params: object) -> None:
        with pytest.raises(JobMismatch) as caught:
            kind(params, **{**where, "worker": "w1"})
        messages.append(str(caught.value).removesuffix("; register the same, or take another job (job=, OPTD_JOB)"))

    messages: list[str] = []
    with SGD(Model().named_parameters(), **where):
        attach(Adam, Model().named_parameters())
        attach(SGD, Model().parameters())
        attach(SGD, nn.Linear(3, 4).named_parameters())
        attach(SGD, [("base.weight", nn.Parameter(torch.ones(3, 3))), *[*Model().named_parameters()][1:]])
        attach(SGD, Model().double().named_parameters())
        attach(SGD, [{"params": Model().named_parameters(), "name": "all"}])
    job = where["job"]
    assert messages == [
        f"job '{job}' has algorithm 'sgd', this registration has 'adam'",
        f"job '{job}' has in group 'group0' parameter 0 named 'base.weight', this registration has 'param0'",
        f"job '{job}' has in group 'group0' 4 parameters (base.weight, base.bias, classifier.weight, "
        "classifier.bias), this registration has 2, (weight, bias)",
        f"job '{job}' has in group 'group0' parameter 'base.weight' with shape (4, 3), this registration has (3, 3)",
        f"job '{job}' has in group 'group0' parameter 'base.weight' with dtype float32, this registration has float64",
        f"job '{job}' has group 0 named 'group0', this registration has 'all'",
    ]


def test_a_registration_that_is_refused_leaves_nothing(where: dict[str, str]) -> None:
    with pytest.raises(InvalidName, match="name ' a' must be"):
        SGD([{"params": Model().parameters(), "name": " a"}], **where)
    with optd.connect(where["server"], job=where["job"]) as session, pytest.raises(optd.errors.UnknownJob):
        session.info()


# Groups in mid-training


def test_add_param_group_in_mid_training(where: dict[str, str]) -> None:
    model, other = twins()
    reference = torch.optim.Adam(other.base.parameters())
    with Adam(model.base.parameters(), **where) as optimizer:
        train_both(optimizer, reference, model, other)
        optimizer.add_param_group({"params": model.classifier.parameters(), "lr": 0.1})
        reference.add_param_group({"params": other.classifier.parameters(), "lr": 0.1})
        assert names(optimizer) == {"group0": ["param0", "param1"], "group1": ["param2", "param3"]}
        train_both(optimizer, reference, model, other)
        assert optimizer.state_dict()["param_groups"] == reference.state_dict()["param_groups"]
        with Adam(model.base.parameters(), **{**where, "worker": "w1"}) as two:
            fresh = Model()
            two.add_param_group({"params": fresh.classifier.parameters(), "lr": 0.7})
            assert torch.equal(fresh.classifier.weight, model.classifier.weight), "the group was there already"
            assert two.param_groups[1]["lr"] == 0.1


def test_groups_are_added_in_the_order_of_the_job(where: dict[str, str]) -> None:
    def group(name: str, value: float) -> dict:
        return {"params": [(name, nn.Parameter(torch.full((2,), value)))], "name": name}

    with SGD([group("a", 0.0)], lr=1.0, **where) as one, SGD([group("a", 0.0)], **{**where, "worker": "w1"}) as two:
        one.add_param_group(group("b", 10.0))
        one.add_param_group(group("c", 20.0))
        with pytest.raises(JobMismatch, match="has group 'c' at place 2, this registration has 1"):
            two.add_param_group(group("c", 0.0))
        two.add_param_group(group("b", 0.0))
        two.add_param_group(group("c", 0.0))
        held = two.param_groups[2]["params"][0]
        assert held.tolist() == [20, 20]
        held.grad = torch.ones(2)
        two.step()
        one.pull()
        assert [g["params"][0].tolist() for g in one.param_groups] == [[0, 0], [10, 10], [19, 19]]


def test_a_group_that_is_refused_is_not_added(where: dict[str, str]) -> None:
    model = Model()
    with SGD(model.base.parameters(), **where) as optimizer:
        refused = [
            ({"params": [*model.base.parameters()]}, "some parameters appear in more than one parameter group"),
            ({"params": [torch.ones(2, dtype=torch.int64)]}, "dtype int64 is not supported"),
            ({"params": [nn.Parameter(torch.ones(2))], "lr": -1}, r"lr must be in \[0, inf\), got -1"),
            ({"params": [nn.Parameter(torch.ones(2))], "name": " a"}, "group name ' a' must be"),
        ]
        for group, message in refused:
            with pytest.raises((ValueError, JobMismatch), match=message):
                optimizer.add_param_group(group)
            assert len(optimizer.param_groups) == len(optimizer.session.groups()) == 1
        optimizer.add_param_group({"params": model.classifier.parameters()})
        optimizer.step()


def test_a_server_is_never_asked_where_torch_refuses() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        SGD(Model().parameters(), lr=-1, server="nowhere")
    with pytest.raises(TypeError, match="momentun"):
        SGD(Model().parameters(), momentun=0.9, server="nowhere")
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        SGD([{"params": [weight]}, {"params": [weight]}], server="nowhere")
    with pytest.raises(ValueError, match="empty parameter list"):
        SGD([], server="nowhere")


def test_parameters_that_lie_in_one_memory_are_refused(where: dict[str, str]) -> None:
    """As old scripts tie weights; one parameter under one name is what torch and we count once."""
    embedding, output = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
    output.weight.data = embedding.weight.data
    with pytest.raises(SharedParameters, match=r"'param0' and 'param1' lie in the same memory"):
        SGD([*embedding.parameters(), *output.parameters()], **where)
    with SGD(embedding.parameters(), **where) as optimizer, pytest.raises(SharedParameters, match="'param1'"):
        optimizer.add_param_group({"params": output.parameters()})


def test_a_view_of_a_parameter_is_none_of_its_own(where: dict[str, str]) -> None:
    """As an autoencoder's decoder that is tied by a transposition."""
    encoder, decoder = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
    decoder.weight = nn.Parameter(encoder.weight.data.t())
    with pytest.raises(SharedParameters):
        SGD([*encoder.parameters(), *decoder.parameters()], **where)
