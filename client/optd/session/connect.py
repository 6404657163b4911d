"""`optd.connect()`: from arguments and environment to an open session."""

from numbers import Real
from typing import get_args

from optd.options.creation_options import options_of
from optd.options.job_options import Averages, Gradients
from optd.session import environment
from optd.session.job_names import JobName, job_name
from optd.session.join import IfExists
from optd.session.member_session import CALL_SECONDS
from optd.session.policy_argument import checked_policy
from optd.session.retry import with_retries
from optd.session.session import Session
from optd.transport.encoding import MessageEncoding
from optd.transport.lane_choice import LaneName
from optd.transport.server_calls import ServerCalls
from optd.transport.tls import TLS
from optd_wire.errors import DeadlineExceeded, InvalidRequest, NothingDurable, OptdError, Unreachable
from optd_wire.names import check_name
from optd_wire.values import Policy, Sync

CONNECT_SECONDS = 10.0


def connect(
    address: str | None = None,
    *,
    job: str | JobName | None = None,
    worker: str | None = None,
    token: str | None = None,
    tls: TLS | bool | None = None,
    timeout: float = CALL_SECONDS,
    connect_timeout: float = CONNECT_SECONDS,
    lane: LaneName = "auto",
    encoding: str = "float32",
    policy: Policy | None = None,
    gradients: Gradients | None = None,
    averages: Averages | None = None,
    if_exists: IfExists | None = None,
    progress: bool | None = None,
    durable: bool | None = None,
    recreate: bool | None = None,
) -> Session:
    """Opens a session with a server. Blocks until the server has answered once.

    Args:
        address: HOST:PORT; default: OPTD_SERVER.
        job: The job's name, under which other workers can join it; default: OPTD_JOB. Without either the job is this
            session's own: it is named after the program and ends with the session. The ranks of one launch of torchrun
            share jobs: the n-th unnamed session of each rank is in the same job.
        worker: This worker's name; default: OPTD_WORKER; under torchrun the rank, with the launch's id; else host and
            process id. One session at a time holds a name: a second one fences the first.
        token: A token that the server's --token-file accepts; default: OPTD_TOKEN, or the one in OPTD_TOKEN_FILE.
        tls: Certificates, or True to trust the authorities that gRPC includes; default: OPTD_TLS_CA decides.
        timeout: Seconds that one call may take. A step of a `sync` job waits that long for the other workers. If the
            connection is lost, the call tries for as many seconds from then on to reach the server again, with growing,
            random pauses: more than a server takes to restart and recover its jobs.
        connect_timeout: Seconds to try before `Unreachable` is raised.
        lane: How numbers travel: "grpc" in messages; "shm" in memory that this process and the server share; "auto" in
            shared memory if both run on one host and the job has at least 65,536 elements, else in messages. With
            "shm" the optimizer raises `SharedMemoryUnavailable` if no memory can be shared; a job that it has created
            by then stays.
        encoding: How messages carry numbers: "float32" unchanged (as float64 is, too), "bfloat16" or "float16" in
            half the bytes, rounded (parameters of 16 bits unchanged); "bfloat16:stochastic" with gradients rounded at
            random, so that they are right in the mean; "int8" in a quarter of the bytes; "topk" or
            "topk:0.01" only that fraction of each gradient. "int8" and "topk" add to the next gradient what they leave
            out of this one. Weights travel in the same encoding, except with "topk": then unchanged. With any encoding
            but "float32", lane "auto" is "grpc".
        policy: When pushes become a step. Default: the policy of the job; `Async()` if this session creates it.
        gradients: How gradients are treated before each step. Counts only if this session creates the job. Default:
            they are applied as they come.
        averages: Averages of the weights that the server keeps: `optd.EMA(...)`, `optd.SWA(...)` or both. Counts only
            if this session creates the job. Default: none.
        if_exists: What an optimizer does if a job of this name exists: "attach" joins it, "fail" raises `JobExists`,
            "replace" deletes it and creates a new one, unless other workers take part in it (`JobInUse`). Default:
            OPTD_IF_EXISTS, or "attach".
        progress: Whether to show the progress of registration, first step and pulls of a large model that last over
            a second: with a bar on a terminal, else in lines of the logger "optd" at level INFO, or on stderr if no
            logging is set up. Default: yes, unless OPTD_PROGRESS is 0.
        durable: Whether each push and step waits until the server has written it to disk, so that it survives a power
            cut; `session.wait_durable()` does so once. Default: no, unless OPTD_DURABLE is 1.
        recreate: What to do if the server was restarted and no longer has the job: create it anew with this worker's
            weights and options, or attach if another worker has; optimizer state then begins anew. Otherwise calls
            raise `JobLost`. A job that somebody deletes is not created anew. Default: no, unless OPTD_RECREATE is 1.

    Raises:
        Unreachable: Nothing answers there.
        MissingToken, WrongToken: The server demands a token, or does not accept this one.
        InvalidName: The name of the job or the worker is not allowed.
        UnknownEncoding: There is no such encoding.
        NothingDurable: With `durable`: the server keeps nothing on disk.
        InvalidRequest: A job without a name would wait for several workers; there is no such lane, or it does not carry
            the encoding; a fraction is not in (0, 1]; a time is not above 0; or `policy`, `gradients`, `averages`,
            `if_exists`, `progress`, `durable` or `recreate` has a wrong type or value.
    """
    if lane not in get_args(LaneName):
        raise InvalidRequest(problem=f"lane must be 'auto', 'grpc' or 'shm', got {lane!r}")
    wire = MessageEncoding.of(encoding)
    if lane == "shm" and not wire.exact:
        raise InvalidRequest(problem=f"lane 'shm' carries numbers unchanged; encoding {encoding!r} is for lane 'grpc'")
    if policy is not None:
        checked_policy(policy)
    for name, seconds in (("timeout", timeout), ("connect_timeout", connect_timeout)):
        if isinstance(seconds, bool) or not isinstance(seconds, Real) or not float(seconds) > 0:
            raise InvalidRequest(problem=f"{name} must be more than 0 seconds, got {seconds!r}")
    options = options_of(gradients, averages)
    what_if = environment.if_exists(if_exists)
    show_progress = environment.progress(progress)
    is_durable, may_recreate = environment.durable(durable), environment.recreate(recreate)
    address = environment.server(address)
    named = job if isinstance(job, JobName) else job_name(environment.job(job))
    check_name("job", named.name)
    if isinstance(policy, Sync) and policy.workers not in ("live", 1) and not named.shared:
        problem = (
            f"a step of policy {policy} waits for {policy.workers} workers, and no other one finds a job without a name"
        )
        raise InvalidRequest(problem=f"{problem}: pass job= or set OPTD_JOB")
    worker = check_name("worker", environment.worker(worker))
    transport = ServerCalls.over_grpc(address, token=environment.token(token), tls=environment.tls(tls))
    try:
        status = with_retries(transport.server_status, address=address, timeout=connect_timeout)
    except DeadlineExceeded:
        transport.close()
        problem = "it takes connections, but does not answer"
        raise Unreachable(address=address, seconds=f"{connect_timeout:g}", problem=problem) from None
    except OptdError:
        transport.close()
        raise
    if is_durable and status.durability == "none":
        transport.close()
        raise NothingDurable()
    return Session(
        transport,
        job=named.name,
        worker=worker,
        timeout=timeout,
        policy=policy,
        options=options,
        max_message_bytes=status.limits.max_message_bytes,
        lane=lane,
        wire=wire,
        if_exists=what_if,
        ephemeral=named.unnamed,
        shared=named.shared,
        progress=show_progress,
        durable=is_durable,
        recreate=may_recreate,
    )
