"""Arguments that every class of this folder has besides those of its algorithm."""

from typing import TypedDict

from optd.session import Session


class Where(TypedDict, total=False):
    """Which job an optimizer belongs to: an open session, or what is needed to open one; and how it shares memory."""

    session: Session
    server: str
    job: str
    worker: str
    zero_copy: bool
