"""What is told of options that have changed: at which version, from what to what, and by whom."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import optd
import optd.torch
from optd.ctl.app import app
from optd.local import LocalServer
from optd_wire import errors
from optd_wire.values import GroupUpdate, OptionChange


def groups() -> list[dict]:
    return [{"params": {"a": np.zeros(1)}, "name": "left"}, {"params": {"b": np.zeros(1)}, "name": "right"}]


def facts(changes: tuple[OptionChange, ...]) -> list[tuple]:
    return [(each.version, each.group, each.option, each.before, each.after, each.worker) for each in changes]


def test_every_way_is_told_with_its_version(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name, worker="w1") as session:
        optimizer = optd.SGD(groups(), lr=1.0, session=session)
        assert session.option_changes() == ()
        optimizer.step([[np.ones(1)], [np.ones(1)]])
        done = CliRunner().invoke(app, ["set", name, "left", "lr=0.5", "--server", server.address])
        assert done.exit_code == 0
        optimizer.step([[np.ones(1)], [np.ones(1)]])
        optimizer.param_groups[1]["lr"] = 0.25
        optimizer.param_groups[1]["lookahead_steps"] = 5
        optimizer.step([[np.ones(1)], [np.ones(1)]])
        session.set_options(clip_norm=3)
        assert facts(session.option_changes()) == [
            (1, "left", "lr", 1.0, 0.5, ""),
            (2, "right", "lr", 1.0, 0.25, "w1"),
            (2, "right", "lookahead_steps", None, 5, "w1"),
            (3, "", "clip_norm", None, 3.0, ""),
        ]
        assert facts(session.option_changes("left")) == [(1, "left", "lr", 1.0, 0.5, "")]
        assert all(each.unix_ms > 1_600_000_000_000 for each in session.option_changes())
        with pytest.raises(errors.UnknownGroup, match="no group 'middle'"):
            session.option_changes("middle")


def test_what_is_refused_and_what_changes_nothing_is_not_told(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD(groups(), lr=1.0, session=session)
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(errors.OptionOutOfRange):
            optimizer.step([[np.ones(1)], [np.ones(1)]])
        optimizer.param_groups[0]["lr"] = 1.0
        session.set_options(clip_norm=None)
        with pytest.raises(errors.NonfiniteGradient):
            optimizer.param_groups[0]["lr"] = 2.0
            optimizer.step([[np.array([np.nan])], [np.ones(1)]])
        assert session.option_changes() == ()


def test_the_last_change_of_an_option_outlives_many_of_others(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        parameters = [torch.nn.Parameter(torch.zeros(2))]
        optimizer = optd.torch.SGD(parameters, lr=1.0, weight_decay=0.5, session=session)
        optimizer.param_groups[0]["weight_decay"] = 0.25
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
        for _ in range(300):
            parameters[0].grad = torch.ones(2)
            optimizer.step()
            schedule.step()
        first, *others = facts(session.option_changes())
        assert first == (0, "group0", "weight_decay", 0.5, 0.25, session.worker)
        assert [version for version, *_ in others] == list(range(300 - 256, 300))
        assert {option for _, _, option, *_ in others} == {"lr"}


def test_the_later_one_of_a_round_is_named(server: LocalServer, name: str) -> None:
    """Two workers of one round, each with a change of its own."""

    policy = optd.Sync(workers=2)
    with (
        optd.connect(server.address, job=name, worker="w1", policy=policy) as one,
        optd.connect(server.address, job=name, worker="w2") as two,
        ThreadPoolExecutor() as pool,
    ):
        first = optd.SGD(groups(), lr=1.0, session=one)
        second = optd.SGD(groups(), lr=1.0, session=two)
        first.param_groups[0]["lr"] = 0.5
        second.param_groups[1]["lr"] = 0.25
        waiting = [pool.submit(each.step, [[np.ones(1)], [np.ones(1)]]) for each in (first, second)]
        for each in waiting:
            each.result(timeout=30)
        assert sorted(facts(one.option_changes())) == [
            (0, "left", "lr", 1.0, 0.5, "w1"),
            (0, "right", "lr", 1.0, 0.25, "w2"),
        ]


def test_what_the_server_has_let_go_is_counted(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name, worker="w1") as session:
        optd.SGD(groups(), lr=1.0, session=session)
        assert session.option_changes().forgotten == 0
        for number in range(150):
            for group in ("left", "right"):
                session.update_group(GroupUpdate(group, {"lr": 2.0 + number}))
        found = session.option_changes()
        assert (len(found), found.forgotten) == (256, 44)
        left = session.option_changes("left")
        assert (len(left), left.forgotten) == (128, 22)
        done = CliRunner().invoke(app, ["changes", name], env={"COLUMNS": "120", "OPTD_SERVER": server.address})
        assert "44 older changes not shown: the server keeps the last ones" in done.output
        done = CliRunner().invoke(app, ["-o", "json", "changes", name, "right"], env={"OPTD_SERVER": server.address})
        answer = json.loads(done.output)
        assert (len(answer["changes"]), answer["forgotten"]) == (128, 22)


def test_the_program_lists_them(server: LocalServer, name: str) -> None:
    def optctl(*arguments: str) -> str:
        environment = {"NO_COLOR": "1", "COLUMNS": "120", "OPTD_SERVER": server.address}
        done = CliRunner().invoke(app, list(arguments), env=environment)
        assert done.exit_code == 0, done.output
        return done.output

    with optd.connect(server.address, job=name, worker="w1") as session:
        optimizer = optd.SGD(groups(), lr=1.0, session=session)
        assert optctl("changes", name) == "no option has changed since the job was created\n"
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step([[np.ones(1)], [np.ones(1)]])
        optctl("set", name, "clip_norm=2")
        header, first, second = optctl("changes", name).splitlines()
        assert header.split() == ["time", "version", "group", "option", "before", "after", "with", "a", "push", "of"]
        assert first.split()[-6:] == ["0", "left", "lr", "1", "0.5", "w1"]
        assert second.split()[-6:] == ["1", "(job)", "clip_norm", "none", "2", "-"]
        assert len(optctl("changes", name, "left").splitlines()) == 2
