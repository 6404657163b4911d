"""Keeps a worker's lease while its process computes."""

import logging
import threading
import weakref
from collections.abc import Callable

from optd_wire.errors import NotFound, OptdError, RolledBack, StaleEpoch

logger = logging.getLogger("optd")


class Heartbeat:
    """Renews a lease three times during its length, in its own thread, until stopped.

    `renew` uses a connection of its own: on that of a large push or pull it would wait behind the numbers.

    Refers to its session weakly, so that a session which is otherwise garbage ends, and its lease with it.
    """

    def __init__(self, renew: "weakref.WeakMethod[Callable[[], None]]", lease_seconds: float) -> None:
        self._stopped = threading.Event()
        self._renew = renew
        self._pause = lease_seconds / 3
        threading.Thread(target=self._beat, name="optd-heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stops renewing; a renewal under way may still reach the server."""
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
            except (StaleEpoch, RolledBack, NotFound) as error:
                # The next call raises it to the caller, unless the session has a new epoch by then.
                logger.debug("lease not renewed: %s", error)
            except OptdError as error:
                # One warning for each time that the server is away.
                logger.log(logging.DEBUG if told else logging.WARNING, "lease not renewed, trying again: %s", error)
                told = True
            del renew
