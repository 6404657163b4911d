"""Names of jobs: the one that a person gave, one that the ranks of a launcher share, or one of its own.

Knows the environment variables that launchers set; those that people set are in `optd.session.environment`.
"""

import itertools
import os
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]+")
LONGEST_PROGRAM = 60
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
    launched = _launch()
    return own_job() if launched is None else JobName(f"{program()}-{launched}-{next(_numbers)}", unnamed=True)


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


def _launch() -> str | None:
    """An identifier of this launch of several ranks, from the variables that torchrun sets; None without them."""
    ranks = ranks_of_launch()
    if ranks is None or ranks[1] < 2:
        return None
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run == "none":  # torchrun's default: the address, and on one host the process that started all ranks
        run = f"{os.environ['MASTER_ADDR']}-{os.environ['MASTER_PORT']}"
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            run += f"-{os.getppid()}"
    # Ranks that torchrun restarts begin with the script's own checkpoint, not with the weights of the last attempt.
    return _plain(f"{run}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")


def will_be_started_again() -> bool:
    """Whether torchrun would start this process again if it failed now."""
    attempts, most = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return attempts.isdecimal() and most.isdecimal() and int(attempts) < int(most)


def ranks_of_launch() -> tuple[int, int] | None:
    """The rank of this process and the number of ranks, by the variables that torchrun sets; None without them."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names):
        return None
    rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
    return (int(rank), int(count)) if rank.isdecimal() and count.isdecimal() else None
