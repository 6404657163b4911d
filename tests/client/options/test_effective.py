"""`effective_lr` and the like in `param_groups`, and two schedules for one option, in both faces."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import optd
import optd.torch
from optd import errors, schedules
from optd.local import LocalServer

FACES = pytest.mark.parametrize("face", ["torch", "numpy"])
HALVES = schedules.Exponential(gamma=0.5)


class Trained:
    """An optimizer of one number, which a step of SGD moves by its learning rate."""

    def __init__(self, face: str, session: optd.Session, **options: Any) -> None:
        self.tensor = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.tensor.grad = torch.ones_like(self.tensor)
        self.face = face
        self.optimizer: Any = (
            optd.torch.SGD([self.tensor], session=session, **options)
            if face == "torch"
            else optd.SGD([self.tensor.detach().numpy()], session=session, **options)
        )

    @property
    def group(self) -> dict[str, Any]:
        found: dict[str, Any] = self.optimizer.param_groups[0]
        return found

    def step(self) -> float:
        before = self.tensor.item()
        self.optimizer.step(*([] if self.face == "torch" else [[np.ones(1)]]))
        return before - self.tensor.item()


def shown(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name.startswith("effective_")}


@FACES
@pytest.mark.filterwarnings("error")
def test_they_are_those_of_the_step_that_comes_next(server: LocalServer, name: str, face: str) -> None:
    options = {
        "lr": 8.0,
        "momentum": 0.0,
        "lr_schedule": HALVES,
        "schedules": {"weight_decay": schedules.Constant()},
    }
    with (
        optd.connect(server.address, job=name, worker="w0") as session,
        optd.connect(server.address, job=name, worker="w1") as second,
    ):
        trained = Trained(face, session, **options)
        assert shown(trained.group) == {"effective_lr": 8.0, "effective_weight_decay": 0.0}
        for version in range(4):
            expected = trained.group["effective_lr"]
            assert (expected, trained.step()) == (8.0 / 2**version, 8.0 / 2**version)
        assert trained.group["lr"] == 8.0
        late = Trained(face, second, **options)
        assert late.group["effective_lr"] == 0.5
        late.step()
        assert late.optimizer.push(*([] if face == "torch" else [[np.ones(1)]])).version.version == 6
        assert late.group["effective_lr"] == 0.125
        trained.optimizer.pull()
        assert trained.group["effective_lr"] == 0.125
        trained.group["lr_schedule"] = None
        trained.step()
        assert shown(trained.group) == {"effective_weight_decay": 0.0}
        trained.group["lr_schedule"], trained.group["schedules"] = "linear(10)", None
        trained.step()
        assert shown(trained.group) == {"effective_lr": pytest.approx(8.0 * 0.2)}


@FACES
@pytest.mark.filterwarnings("error")
def test_a_group_that_is_added_and_a_state_dict(server: LocalServer, name: str, face: str) -> None:
    with optd.connect(server.address, job=name) as session:
        trained = Trained(face, session, lr=4.0)
        assert shown(trained.group) == {}
        more = torch.nn.Parameter(torch.zeros(2))
        trained.optimizer.add_param_group(
            {"params": [more if face == "torch" else more.detach().numpy()], "lr_schedule": HALVES}
        )
        assert shown(trained.optimizer.param_groups[1]) == {"effective_lr": 4.0}
        trained.optimizer.step(*([] if face == "torch" else [[[np.ones(1)], [None]]]))
        saved = trained.optimizer.state_dict()
        assert [shown(group) for group in saved["param_groups"]] == [{}, {}]
        if face == "torch":
            theirs = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(2)]}])
            theirs.load_state_dict(saved)
            assert theirs.param_groups[1]["lr"] == 4.0
            trained.optimizer.load_state_dict(theirs.state_dict())
        trained.optimizer.load_state_dict(saved)
        assert [shown(group) for group in trained.optimizer.param_groups] == [{}, {"effective_lr": 2.0}]


@FACES
def test_what_is_written_there_is_not_sent(server: LocalServer, name: str, face: str) -> None:
    with optd.connect(server.address, job=name) as session:
        trained = Trained(face, session, lr=8.0, lr_schedule=HALVES)
        trained.group["effective_lr"] = 100.0
        with pytest.warns(
            UserWarning, match=r"param_groups\[0\]\['effective_lr'\] tells .* 100.0 is replaced by 4.0"
        ) as c:
            assert trained.step() == 8.0
        assert c[0].filename == __file__
        assert (trained.group["effective_lr"], trained.group["lr"]) == (4.0, 8.0)
        del trained.group["effective_lr"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert trained.step() == 4.0
        assert trained.group["effective_lr"] == 2.0


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1.0, 10, cycle_momentum=False),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_of_torchs_beside_a_schedule_of_the_servers(
    server: LocalServer, name: str, make: Callable[[Any], Any]
) -> None:
    with optd.connect(server.address, job=name) as session:
        trained = Trained("torch", session, lr=8.0, lr_schedule=HALVES)
        scheduler = make(trained.optimizer)
        with pytest.warns(UserWarning) as caught:
            for _ in range(3):
                trained.step()
                scheduler.step()
        assert [str(each.message) for each in caught] == [
            "lr of group 'group0' has a scheduler of torch's while the server's lr_schedule='exponential(gamma=0.5)' "
            "multiplies it: a step takes the product. Use one of them: leave lr_schedule out (or set it to None in "
            "param_groups), or do not step a scheduler here"
        ]
        assert caught[0].filename == __file__


@FACES
def test_an_option_that_is_changed_here_while_it_has_a_schedule(server: LocalServer, name: str, face: str) -> None:
    with optd.connect(server.address, job=name) as session:
        trained = Trained(face, session, lr=8.0, weight_decay=0.5, schedules={"weight_decay": "linear(10)"})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trained.group["lr"] = 4.0  # which has none
            trained.step()
            trained.group["weight_decay"], trained.group["schedules"] = 0.25, {"weight_decay": "linear(20)"}
            trained.step()
        with pytest.warns(
            UserWarning, match="weight_decay of group 'group0' is changed here while the server's sched"
        ) as c:
            for _ in range(2):
                trained.group["weight_decay"] /= 2
                trained.step()
        assert len(c) == 1
        assert c[0].filename == __file__


def test_reduce_on_plateau_is_found_when_it_acts(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        trained = Trained("torch", session, lr=8.0, lr_schedule=HALVES)
        scheduler = lr_scheduler.ReduceLROnPlateau(trained.optimizer, patience=0)
        with pytest.warns(UserWarning, match="lr of group 'group0' is changed here") as caught:
            for _ in range(4):
                trained.step()
                scheduler.step(1.0)
        assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_schedulers_of_torchs_alone_are_not_spoken_of(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        trained = Trained("torch", session, lr=8.0, schedules={"weight_decay": "linear(10)"})
        scheduler = lr_scheduler.ExponentialLR(trained.optimizer, 0.5)
        for _ in range(3):
            trained.step()
            scheduler.step()
        assert trained.group["lr"] == 1.0


@FACES
def test_a_pull_is_done_where_the_server_does_not_tell_them(
    server: LocalServer, name: str, face: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost() -> Any:
        raise errors.Unreachable(address="here", seconds="1", problem="cut")

    with optd.connect(server.address, job=name) as session:
        trained = Trained(face, session, lr=8.0, lr_schedule=HALVES)
        monkeypatch.setattr(session, "groups", lost)
        trained.optimizer.pull()
        assert "after the next step, as the server does not tell now: " in caplog.text
        trained.step()
        assert trained.group["effective_lr"] == 4.0
