"""The program `optd`."""

import asyncio
import os
import sys

# gRPC's log lines only repeat what optd itself logs. gRPC reads this variable when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from optd_server.app import run
from optd_server.config import ConfigError, load
from optd_server.observe.logs import configure

EXIT_CONFIG = 2


def main() -> None:
    """Run the server; exit with 0 after a graceful stop, or with 2 and one line on stderr if it cannot start."""
    try:
        config = load(sys.argv[1:])
        configure(config.log_level, config.log_format)
        asyncio.run(run(config))
    except ConfigError as error:
        sys.stderr.write(f"optd: {error}\n")
        sys.exit(EXIT_CONFIG)
