"""Arguments that every class of this folder has besides those of its algorithm."""

from optd.options.group_options import GroupOptionArguments
from optd.options.job_options import Averages, Gradients
from optd.session.join import IfExists
from optd.session.session import Session
from optd_wire.values import Policy


class Where(GroupOptionArguments, total=False):
    """Which job an optimizer belongs to: an open session, or what is needed to open one.

    How it shares memory, and what is done about weights that a script changes: see `optd.Optimizer`.
    And the options that every group may have, whatever its algorithm: see `optd.options.group_options`.
    """

    session: Session
    server: str
    job: str
    worker: str
    if_exists: IfExists
    policy: Policy
    gradients: Gradients
    averages: Averages
    zero_copy: bool
    local_changes: str
    progress: bool | None
    norms: bool
