"""A server whose n-th system call of a kind fails, or is its last: injected by strace, which runs beside it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults.processes import wait_for

CALLS = {
    "write": "pwritev,pwritev2,pwrite64",
    "sync": "fsync",
    "sync of data": "fdatasync",
    "rename": "rename,renameat,renameat2",
    "link": "link,linkat",
    "remove": "unlink,unlinkat,rmdir",
    "folder": "mkdir,mkdirat",
    "cut": "ftruncate",
    "reserve": "fallocate",
}
"""System calls by what they do to the disk."""


def skip_unless_traceable() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a process cannot be traced here: {tried.stderr.strip()}")


@contextmanager
def injected(kind: str, what: str, number: int | str, scratch: Path) -> Iterator[Path]:
    """Servers that start in this block get the fault. Yields the file with the calls of this kind.

    `what` is strace's: `signal=KILL` or `error=EIO`. So is the number: `3`, or `1+2` for each second call. Calls
    are counted by thread.
    """
    calls, trace, program = CALLS[kind], scratch / "trace", scratch / "traced-python"
    trace.unlink(missing_ok=True)
    # With -D the tracer is no parent of the server, so that signals and exit status are the server's own.
    how = f"-D -f -q -y -o {trace} -e trace={calls} -e inject={calls}:{what}:when={number}"
    if what.startswith("error"):
        how += " --seccomp-bpf"  # which is quicker, and loses signals
    program.write_text(f'#!/bin/sh\nexec strace {how} {sys.executable} "$@"\n')
    program.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(program))
        yield trace


def lines_of(trace: Path) -> list[str]:
    """What strace has written, a line a call, when all of it is there: the end of the process comes last."""
    wait_for(lambda: trace.exists() and trace.read_text().rstrip().endswith("+++"), "the tracer's last line")
    begun: dict[str, str] = {}
    lines = []
    for line in trace.read_text(errors="replace").splitlines():
        thread, _, call = line.partition(" ")
        if line.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>")
        else:
            lines.append(begun.pop(thread) + call.partition("resumed>")[2] if "resumed>" in call else line)
    return lines


def calls_on(data: Path, lines: Iterable[str]) -> list[str]:
    """The calls on files of a data directory, such as `rename jobs/N/.job.json.new`, with numbers as N."""
    found = []
    for line in lines:
        name = re.match(r"\d+\s+(\w+)\(", line)
        paths = re.findall(rf"{re.escape(str(data))}([^\">, ]*)", line)
        if name and paths:
            path = re.sub(r"\d+", "N", paths[0].removesuffix("(deleted)").lstrip("/")) or "."
            found.append(f"{name[1]} {path}")
    return found
