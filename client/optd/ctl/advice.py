"""What to do about a refusal, by its reason; for reasons without advice of their own, by their kind."""

from optd_wire import errors
from optd_wire.errors import Conflict, InvalidArgument, NotFound, OptdError, ResourceExhausted, Unavailable

ADVICE = {
    "NONFINITE_GRADIENT": "lower the learning rate or look at the worker's data; optd.Gradients(nonfinite='skip') "
    "skips such steps, and 'zero' takes their other entries",
    "STALE_EPOCH": "two processes use one name: give each process a worker= of its own",
    "LEASE_EXPIRED": "nothing: the worker was away for longer than its lease, joins again and goes on",
    "UNKNOWN_WORKER": "look for the name with optctl workers",
    "ROLLED_BACK": "nothing: the session joins again and goes on; steps after the older version are lost",
    "PUSH_WITHDRAWN": "nothing, if its worker left or was lost; else see STALE_EPOCH",
    "PUSH_PENDING": "a worker sends a second push before the answer to its first: one process for each worker name",
    "ROUND_BROKEN": "nothing: the client sends the push again; look at the worker that is named",
    "SEQUENCE_GAP": "two processes use one name, or a client of your own counts wrongly",
    "FUTURE_VERSION": "nothing: the session joins again and pulls; the server lost steps that it had acknowledged",
    "STALE_GRADIENT": "its worker is slower than the policy allows: raise max_staleness, or give it smaller batches",
    "ROUND_CLOSED": "nothing: its worker pulls and goes on; one that is always late is a spare, or too slow",
    "WORKER_LOST": "start a worker in the place of the one that is gone; on_death='wait' or 'continue' does not fail",
    "OTHER_PAYLOAD": "two processes use one name, or a client of your own reuses a sequence",
    "SHAPE_MISMATCH": "the workers do not train the same model: compare their code",
    "JOB_MISMATCH": "the workers do not register the same model: compare their code, or take another job name",
    "STALE_EVALUATION": "several workers evaluate for one line search: give the job policy sync",
    "DISK_FULL": "make room in the server's --data-dir; the clients send their pushes again",
    "MEMORY_EXCEEDED": "delete jobs, or raise the server's --max-memory-bytes",
    "TOO_MANY_BYTES": "the server is busy: raise --max-inflight-bytes, or send less with encoding=",
    "SHARED_MEMORY_UNAVAILABLE": "nothing: the worker sends messages instead; optctl workers says why",
    "OTHER_WORKERS": "nothing: what the script changed in its own weights does not count, as others take part",
}
"""By reason."""
_KINDS: tuple[tuple[type[OptdError], str], ...] = (
    (InvalidArgument, "correct the call: the same one is refused again"),
    (NotFound, "look for the name with optctl jobs or optctl groups"),
    (ResourceExhausted, "send less, or raise the limit of the server"),
    (Unavailable, "nothing: the client tries again"),
    (Conflict, "read what the job is now, and decide again"),
)


def advice(reason: str) -> str:
    """What to do about a refusal; empty if this client does not know the reason."""
    if reason in ADVICE:
        return ADVICE[reason]
    kind = next((one for one in vars(errors).values() if getattr(one, "reason", None) == reason), None)
    return next((words for base, words in _KINDS if isinstance(kind, type) and issubclass(kind, base)), "")
