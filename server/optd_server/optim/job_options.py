"""Options of a job as a whole, whatever its algorithm."""

from collections.abc import Sequence

from optd_server.optim.option import Option, Rule


class JobDeclaration:
    """What `option.check` needs to know of them."""

    name = "job"
    options: Sequence[Option] = ()
    rules: Sequence[Rule] = ()


JOB = JobDeclaration()
