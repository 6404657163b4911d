"""Names of jobs: the one that a person gave, one that the ranks of a launcher share, or one of its own.

Knows the environment variables that launchers set; those that people set are in `optd.session.environment`.
"""

import itertools
import os
import re
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]+")
LONGEST_PROGRAM = 60
RANK_PROCESS = "OPTD_RANK_PROCESS"
"""The variable in which a rank notes its name and its process for the processes that it starts."""
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class JobName:
    """The name of a job. `unnamed` says that no person chose it: the job then ends with its workers.

    `shared` says whether workers of other processes may arrive at the same name.
    """

    name: str
    unnamed: bool = False
    shared: bool = True


def job_name(named: str | None) -> JobName:
    """The name that was given; else one that the ranks of a launcher share; else one of its own."""
    if named:
        return JobName(named)
    launched = launch()
    return own_job() if launched is None else JobName(f"{program()}-{launched.id}-{next(_numbers)}", unnamed=True)


def own_job() -> JobName:
    """A name that no other job has: the program's name and a random part."""
    return JobName(f"{program()}-{secrets.token_hex(4)}", unnamed=True, shared=False)


def program() -> str:
    """The name of this program: its script or module; "python" or "notebook" if it has none."""
    if "ipykernel" in sys.modules:
        notebook = os.environ.get("JPY_SESSION_NAME", "")
        return _plain(Path(notebook).stem) or "notebook"
    path = Path(sys.argv[0] if sys.argv else "")
    stem = path.parent.name if path.name == "__main__.py" else path.stem
    return _plain("" if stem == "-c" else stem) or "python"


def _plain(name: str) -> str:
    return _FORBIDDEN.sub("-", name).strip("-")[:LONGEST_PROGRAM].strip("-")


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch of several ranks by torchrun, or by another launcher that sets its variables, as one of them sees it.

    `id` is the same for all ranks, and for those that the launcher starts again, however many these are: they go on
    with the jobs of the attempt before.
    """

    rank: int
    count: int
    id: str
    hosts: int = 1
    """How many agents of torchrun there are, each of which sees only its own ranks end."""

    @property
    def worker(self) -> str:
        """The name of this rank as a worker: the one of its predecessor, which it fences, if it was started again.

        Names sort in the order of the ranks, also if a later attempt has more of them.
        """
        return f"rank{self.rank:04d}-{self.id}"


def launch() -> Launch | None:
    """The launch that this process is a rank of; None if there is none, or if a rank has started this process."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names):
        return None
    rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not rank.isdecimal() or not count.isdecimal():
        return None
    if int(count) < 2 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return None  # torchrun may have started more ranks in an earlier attempt
    hosts = os.environ.get("GROUP_WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    found = Launch(int(rank), int(count), _launch_id(), int(hosts) if hosts.isdecimal() else 1)
    return found if _is_itself(found) else None


def _is_itself(launched: Launch) -> bool:
    """Whether this process is the rank; what a rank starts inherits its variables, and must not fence it."""
    known, process = os.environ.get(RANK_PROCESS, ""), str(os.getpid())
    if known.startswith(launched.worker + " "):
        return known == f"{launched.worker} {process}"
    os.environ[RANK_PROCESS] = f"{launched.worker} {process}"
    return True


def _launch_id() -> str:
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run == "none":  # torchrun's default for several hosts: the address, and on one host the process of all ranks
        run = f"{os.environ['MASTER_ADDR']}-{os.environ['MASTER_PORT']}"
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            run = f"{socket.gethostname()}-{os.getppid()}"
    return _plain(run)


def will_be_started_again() -> bool:
    """Whether torchrun would start this process again if it failed now."""
    attempts, most = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return attempts.isdecimal() and most.isdecimal() and int(attempts) < int(most)
