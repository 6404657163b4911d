"""Arguments that every class of this folder has besides those of its algorithm."""

from optd.group_options import GroupOptionArguments
from optd.session import Session


class Where(GroupOptionArguments, total=False):
    """Which job an optimizer belongs to: an open session, or what is needed to open one; and how it shares memory.

    And the options that every group may have, whatever its algorithm: see `optd.group_options`.
    """

    session: Session
    server: str
    job: str
    worker: str
    zero_copy: bool
    norms: bool
