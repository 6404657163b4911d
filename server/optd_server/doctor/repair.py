"""Cuts off torn tails. Damage is left as it is: nothing here can know what was there."""

from pathlib import Path

from optd_server.doctor.examination import Examination, Torn
from optd_server.durability.recovery import cut


def repair(found: Examination) -> tuple[Torn, ...]:
    """Cut off the torn tails that were found, and return them; raise OSError. Blocks.

    Only those of jobs that a server would recover, at the place where it would cut too.
    """
    torn = tuple(job.torn for job in found.jobs if job.torn is not None)
    for each in torn:
        cut(Path(each.path), each.offset)
    return torn
