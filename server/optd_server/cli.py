"""The program `optd`."""

import asyncio
import sys

from optd_server.app import run
from optd_server.config import ConfigError, load
from optd_server.observe.logs import configure

EXIT_CONFIG = 2


def main() -> None:
    """Runs the server; exits 0 after a graceful stop, 2 with one line where it cannot start."""
    try:
        config = load(sys.argv[1:])
        configure(config.log_level, config.log_format)
        asyncio.run(run(config))
    except ConfigError as error:
        sys.stderr.write(f"optd: {error}\n")
        sys.exit(EXIT_CONFIG)
