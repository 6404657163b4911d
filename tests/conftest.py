"""What tests of a running server share: the server, and ways to talk to it."""

import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from optd.local import LocalServer, local

# Modules that several folders of tests use are imported from here, as `contract.plain` and the like.
sys.path.insert(0, str(Path(__file__).parent))

from contract.plain import Plain

# A shell has what it starts in the background ignore Ctrl-C, and children inherit that. Tests send interrupts to
# themselves and to programs, which are to take them as they do in the foreground.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server of the module's own, with its defaults."""
    with local() as running:
        yield running


@pytest.fixture(scope="module")
def plain(server: LocalServer) -> Iterator[Plain]:
    """Plain stubs on a connection to `server`."""
    with Plain(server.address) as stubs:
        yield stubs


@pytest.fixture
def name() -> str:
    """A name for a job that no other test has."""
    return f"job-{uuid.uuid4().hex[:12]}"
