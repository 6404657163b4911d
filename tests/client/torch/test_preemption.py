"""SIGTERM in a training script of torch: the running step ends, the sessions leave, and the process ends with 143."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from contract.plain import Plain
from faults.processes import SECONDS, wait_for

import optd
from optd.local import LocalServer
from optd.session import departure
from optd.torch import SGD

SCRIPT = """
import atexit, json, signal, sys, time
{before}
import torch
import optd
from optd.torch import SGD

def say(what):
    print(json.dumps(what), flush=True)

weights = torch.zeros(4)
optimizer = SGD([weights], lr=1.0, policy=optd.Sync(workers=int(sys.argv[1])))
atexit.register(lambda: say("atexit"))
say(optimizer.session.job)

def step():
    weights.grad = torch.ones(4)
    optimizer.step()

try:
    {run}
finally:
    say(["finally", weights.tolist()])
"""


@contextmanager
def script(
    server: LocalServer, name: str | None, run: str, before: str = "", workers: int = 1, **settings: str
) -> Iterator["subprocess.Popen[str]"]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OPTD_")}
    known = {"OPTD_SERVER": server.address, "OPTD_WORKER": "w0", **settings, **({"OPTD_JOB": name} if name else {})}
    program = SCRIPT.format(before=before, run=run)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(workers)],
        env=inherited | known,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has forked
        process.communicate()


def said(process: "subprocess.Popen[str]") -> object:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    return json.loads(line)


def ended(process: "subprocess.Popen[str]") -> tuple[int, list[object], str]:
    assert process.stdout is not None
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stdout]  # not `communicate`, which misses what was read ahead
    return process.wait(SECONDS), lines, process.stderr.read()


@pytest.fixture(autouse=True)
def unhandled() -> None:
    """Ends what other tests have left open, which keeps the handler."""
    for session in list(departure.open_sessions):
        session.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_between_steps_it_ends_at_once_and_leaves(server: LocalServer, plain: Plain, name: str) -> None:
    with script(server, name, "step(); say('stepped'); time.sleep(600)") as process:
        assert [said(process), said(process)] == [name, "stepped"]
        process.send_signal(signal.SIGTERM)
        status, lines, err = ended(process)
    assert (status, lines, err) == (143, [["finally", [-1] * 4], "atexit"], "")
    assert not plain.list_workers(name)["w0"].active
    assert name in plain.job_names()


@pytest.mark.slow
def test_a_running_step_ends_first(server: LocalServer, plain: Plain, name: str) -> None:
    """It waits for its round when the signal comes, and then the other worker pushes."""
    with script(server, name, "step(); say('not reached')", workers=2) as process:
        assert said(process) == name
        with optd.connect(server.address, job=name, worker="w1", policy=optd.Sync(workers=2)) as session:
            weights = torch.zeros(4)
            other = SGD([weights], lr=1.0, session=session)
            wait_for(lambda: plain.list_workers(name)["w0"].waiting, "the step runs")
            process.send_signal(signal.SIGTERM)
            weights.grad = torch.full((4,), 3.0)
            other.step()
            status, lines, err = ended(process)
    assert (status, lines) == (143, [["finally", [-2] * 4], "atexit"])
    assert "SIGTERM: the process ends, and its step has ended" in err
    assert not plain.list_workers(name)["w0"].active


@pytest.mark.slow
def test_a_step_that_does_not_end_in_time_is_given_up(server: LocalServer, plain: Plain, name: str) -> None:
    with script(server, name, "step()", workers=2, OPTD_TERM_SECONDS="0.3") as process:
        assert said(process) == name
        wait_for(lambda: plain.list_workers(name)["w0"].waiting, "the step runs")
        process.send_signal(signal.SIGTERM)
        status, lines, err = ended(process)
    assert (status, lines) == (143, [["finally", [0] * 4], "atexit"])
    fate = f"the push of worker w0 to job {name} still counts if its step begins before the worker leaves"
    assert len([line for line in err.splitlines() if "SIGTERM" in line]) == 1
    assert f"its step is given up after 0.3 seconds (OPTD_TERM_SECONDS); {fate}; else it is withdrawn" in err
    assert not plain.list_workers(name)["w0"].active
    assert plain.info(name).version.version == 0


@pytest.mark.slow
def test_a_step_that_is_given_up_before_it_pushes_says_so(server: LocalServer) -> None:
    run = INNER.format(midway="say('midway'); time.sleep(600)", run="inner.step()")
    with script(server, None, run, OPTD_TERM_SECONDS="0.3") as process:
        said(process)
        assert said(process) == "midway"
        process.send_signal(signal.SIGTERM)
        status, lines, err = ended(process)
    assert (status, lines) == (143, [["finally", [1, 1, 0, 0]], "atexit"])
    assert "its step is given up after 0.3 seconds (OPTD_TERM_SECONDS); no push of it is under way" in err


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(server: LocalServer, plain: Plain, name: str) -> None:
    with script(server, name, "step()", workers=2) as process:
        assert said(process) == name
        wait_for(lambda: plain.list_workers(name)["w0"].waiting, "the step runs")
        process.send_signal(signal.SIGTERM)
        # Signals of one kind that come together are one: the second is sent until it has arrived after the first.
        wait_for(lambda: bool(process.send_signal(signal.SIGTERM)) or process.poll() is not None, "it ends")
        status, lines, _ = ended(process)
    assert (status, lines) == (-signal.SIGTERM, [])


@pytest.mark.slow
def test_an_error_of_a_step_that_runs_does_not_keep_the_process_alive(server: LocalServer, plain: Plain, name: str):
    run = """
    while True:
        try:
            step()
        except optd.OptdError:
            pass
    """.strip()
    with script(server, name, run, workers=2) as process:
        assert said(process) == name
        wait_for(lambda: plain.list_workers(name)["w0"].waiting, "the step runs")
        process.send_signal(signal.SIGTERM)
        plain.delete(name)
        status, _, err = ended(process)
    assert status == 143
    assert "SIGTERM: the process ends, and its step has failed" in err


INNER = """
    class Inner(torch.optim.Optimizer):
        def step(self, closure=None):
            for place in range(4):
                weights[place] += 1
                if place == 1:
                    {midway}

    inner = Inner([torch.zeros(1, requires_grad=True)], {{}})
    local = optd.torch.LocalSteps(inner, every=9, job=optimizer.session.job + '-local')
    {run}
""".strip()
"""Local steps; the inner optimizer changes the weights one after the other."""
KILL = "import os; os.kill(os.getpid(), signal.SIGTERM)"


@contextmanager
def local_steps(server: LocalServer, midway: str, run: str) -> Iterator["subprocess.Popen[str]"]:
    """The script with an inner optimizer that does something midway; nothing here ends because time is over."""
    with script(server, None, INNER.format(midway=midway, run=run), OPTD_TERM_SECONDS="600") as process:
        said(process)
        yield process


@pytest.mark.slow
def test_a_step_of_an_inner_optimizer_ends_first(server: LocalServer) -> None:
    with local_steps(server, KILL, "inner.step(); say('not reached')") as process:
        status, lines, err = ended(process)
    assert (status, lines) == (143, [["finally", [1] * 4], "atexit"])
    assert "SIGTERM: the process ends, and its step has ended" in err


@pytest.mark.slow
@pytest.mark.parametrize("then", ["time.sleep(600)", "inner.step(); say('not reached')", "step(); say('not reached')"])
def test_a_step_of_an_inner_optimizer_that_fails_after_the_signal_ends_the_process(
    server: LocalServer, then: str
) -> None:
    run = f"""
    try:
        inner.step()
    except ArithmeticError:
        {then}
    """.strip()
    with local_steps(server, f"{KILL}; raise ArithmeticError", run) as process:
        status, lines, err = ended(process)
    assert (status, lines) == (143, [["finally", [1, 1, 0, 0]], "atexit"])
    assert "SIGTERM: the process ends, and its step has failed" in err


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ArithmeticError", "KeyboardInterrupt"])
def test_a_step_of_an_inner_optimizer_that_has_failed_protects_nothing(server: LocalServer, error: str) -> None:
    run = f"""
    try:
        inner.step()
    except {error}:
        say('failed')
        time.sleep(600)
    """.strip()
    with local_steps(server, f"raise {error}", run) as process:
        assert said(process) == "failed"
        process.send_signal(signal.SIGTERM)
        status, lines, err = ended(process)
    assert (status, lines, err) == (143, [["finally", [1, 1, 0, 0]], "atexit"], "")


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["lambda *_: say('mine')", "signal.SIG_IGN"])
def test_a_handler_of_the_script_stays(server: LocalServer, name: str, handler: str) -> None:
    before = f"signal.signal(signal.SIGTERM, {handler})"
    run = "say(signal.getsignal(signal.SIGTERM) is mine); input_ = sys.stdin.readline()"
    with script(server, name, run, before=f"{before}; mine = signal.getsignal(signal.SIGTERM)") as process:
        assert [said(process), said(process)] == [name, True]


@pytest.mark.slow
def test_a_forked_child_ends_as_it_would_without(server: LocalServer, plain: Plain, name: str) -> None:
    """Loaders fork their workers, and end them with the same signal."""
    run = """
    import os
    for attempt in range(20):  # the signal may come before the child's interpreter is ready
        child = os.fork()
        if not child:
            time.sleep(600)
        os.kill(child, signal.SIGTERM)
        ended = os.waitpid(child, 0)[1]
    say([ended, signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()])
    """.strip()
    with script(server, name, run) as process:
        assert [said(process), said(process)] == [name, [signal.SIGTERM, True]]
        assert ended(process)[:2] == (0, [["finally", [0] * 4], "atexit"])


@pytest.mark.slow
def test_a_job_without_a_name_waits_for_a_worker_that_was_preempted(server: LocalServer, plain: Plain) -> None:
    jobs = []
    for run, stays in (("say('ready'); time.sleep(600)", True), ("say('ready')", False)):
        with script(server, None, run) as process:
            jobs.append(said(process))
            said(process)
            if stays:
                process.send_signal(signal.SIGTERM)
            ended(process)
        assert (jobs[-1] in plain.job_names()) == stays
    plain.delete(jobs[0])


def test_the_default_comes_back_with_the_end_of_the_last_session(server: LocalServer, name: str) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    first = SGD([torch.zeros(1)], lr=1.0, server=server.address)
    second = SGD([torch.zeros(1)], lr=1.0, server=server.address)
    ours = signal.getsignal(signal.SIGTERM)
    assert ours is not signal.SIG_DFL
    first.close()
    assert signal.getsignal(signal.SIGTERM) is ours
    second.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_that_is_set_later_is_not_touched(server: LocalServer) -> None:
    optimizer = SGD([torch.zeros(1)], lr=1.0, server=server.address)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        optimizer.close()
        assert before is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_an_optimizer_of_another_thread_installs_none(server: LocalServer) -> None:
    seen = []

    def make() -> None:
        with SGD([torch.zeros(1)], lr=1.0, server=server.address):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.parametrize("seconds", ["-1", "soon", "inf", "nan"])
def test_what_is_wrong_with_the_setting_is_said(server: LocalServer, monkeypatch: pytest.MonkeyPatch, seconds: str):
    monkeypatch.setenv("OPTD_TERM_SECONDS", seconds)
    with pytest.raises(optd.errors.InvalidRequest, match=f"OPTD_TERM_SECONDS must be .*, got '{seconds}'"):
        SGD([torch.zeros(1)], lr=1.0, server=server.address)
