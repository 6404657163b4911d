"""Log lines to stderr: for people, or one JSON object a line for programs."""

import logging
import sys

import structlog


def configure(level: str, style: str) -> None:
    """Sets up structlog and the standard library's logging alike."""
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
        # Plain tracebacks: pretty ones print local variables, and those may be tokens, or megabytes.
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
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # gRPC logs with a traceback each call that a stop has cancelled; what a call raises is logged by optd itself.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    # The debug lines of the event loop and of the compiler of kernels say nothing about optd.
    for name in ("asyncio", "numba"):
        logging.getLogger(name).setLevel(logging.WARNING)
