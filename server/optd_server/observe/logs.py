"""Write log lines to stderr: as text for people, or as one JSON object per line for programs."""

import logging
import sys

import structlog


def configure(level: str, style: str) -> None:
    """Configure structlog and the standard library's logging to write the same kind of lines."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if style == "json":
        render: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        # Plain tracebacks, because pretty ones print local variables, which may hold tokens or megabytes.
        render = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # The engine logs with the standard library alone, and puts its values into `extra`.
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # gRPC logs a traceback for each call that a stop cancels. optd itself logs whatever a call raises.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    # Debug lines of the event loop and of the kernel compiler say nothing about optd.
    for name in ("asyncio", "numba"):
        logging.getLogger(name).setLevel(logging.WARNING)
