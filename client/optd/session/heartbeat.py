"""Keeps a worker's lease while its process computes."""

import logging
import threading
import weakref
from collections.abc import Callable

from optd_wire.errors import NotFound, OptdError, StaleEpoch

logger = logging.getLogger("optd")


class Heartbeat:
    """Renews a lease three times in its length, in a thread of its own, until stopped.

    Holds its session weakly: a session that nobody holds any more ends, and its lease with it.
    """

    def __init__(self, renew: "weakref.WeakMethod[Callable[[], None]]", lease_seconds: float) -> None:
        self._stopped = threading.Event()
        self._renew = renew
        self._pause = lease_seconds / 3
        threading.Thread(target=self._beat, name="optd-heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Ends it; a renewal under way may still reach the server."""
        self._stopped.set()

    def _beat(self) -> None:
        told = False
        while not self._stopped.wait(self._pause):
            renew = self._renew()
            if renew is None:
                return
            try:
                renew()
                told = False
            except (StaleEpoch, NotFound) as error:
                # The next call raises it where somebody sees it; an epoch may also have been renewed meanwhile.
                logger.debug("lease not renewed: %s", error)
            except OptdError as error:
                # Once for each time that the server is away.
                logger.log(logging.DEBUG if told else logging.WARNING, "lease not renewed, trying again: %s", error)
                told = True
            del renew
