"""`Follower`: a model whose weights follow a job, for inference and rollouts beside a training."""

import logging
import threading
import time
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Self

import torch

from optd.caller_warnings import warn_caller
from optd.session.connect import connect
from optd.session.environment import job as job_of
from optd.session.member_session import CALL_SECONDS
from optd.session.session import Session
from optd.session.versions import Versions
from optd.session.weights import check_min_version
from optd.torch.followed import NamesOf
from optd.torch.passes import Passes
from optd.torch.spares import Spares
from optd_wire.errors import (
    DeadlineExceeded,
    InvalidRequest,
    OptdError,
    ResourceExhausted,
    SessionClosed,
    Stalled,
    TooSlow,
)

logger = logging.getLogger("optd")
RETRY_SECONDS = 1.0
"""The pause after a pull that the server has given up."""
JOIN_SECONDS = 5.0
"""How long `close` waits for a pull under way, which ends without harm later, too."""


class Follower:
    """Keeps a model at the newest version of a job, without taking part in it.

        with optd.torch.Follower(model, server="127.0.0.1:50051", job="digits") as follower:
            for batch in requests:
                with torch.inference_mode():
                    answer(model(batch))  # weights of one version, the newest that has arrived
                    log(follower.version, follower.lag)

    A thread pulls each new version into spare memory of the host: up to two copies of the weights. The model gets them
    at the beginning of its next forward pass, by a hook, so that no pass sees two versions. If passes of several
    threads overlap, the next pass waits for those that are under way, for up to a second.

    Goes on by itself after a lost connection, a restart of the server or a rollback of the job. When it can go on no
    longer, as after the job was deleted, the model keeps its weights: the next forward pass warns, and `update` and
    `wait` raise the reason. A warning, because jobs end, and a model that serves should not fail with them.

    Args:
        model: The module that is called; it may be on any device. Of a compiled model give what `torch.compile` has
            returned: torch may leave hooks out of compiled code.
        server: HOST:PORT; default: OPTD_SERVER.
        job: The job's name; default: OPTD_JOB.
        session: An open session instead of `server`, `job`, `encoding` and `timeout`: for a token or certificates.
        names: The job's names of the model's parameters, if they differ: a dict, or a function of the model's name,
            such as `lambda name: f"actor.{name}"`. Default: the model's names, or the order of `model.parameters()` if
            the job's optimizer was given parameters without names.
        strict: Whether model and job must have the same parameters and buffers. If not, the others stay as they are.
        cast: Whether tensors may have another floating-point dtype than the job, to which its weights are rounded.
        weights: "ema" or "swa": follow that average of the weights.
        encoding: How weights travel, as `optd.connect` takes it: "bfloat16" halves the bytes, rounded.
        interval: The least number of seconds between two pulls. Default: each version that it can keep up with.
        automatic: Whether forward passes of the model bring it up to date. If not, `update` does, between two passes:
            for programs that need one version for several passes, or that replay CUDA graphs, which call no hook.
        timeout: Seconds for which to try to reach a server that is away.

    Blocks until the model has the job's current weights. Buffers of the job (`buffers=model` of its optimizer) follow
    with the parameters.

    Raises:
        UnknownJob, Unreachable: There is no such job, or no server.
        StructureMismatch, ShapeMismatch, DtypeMismatch: Model and job differ.
        UnknownAverage, EmptyAverage: The job keeps no such average, or nothing has entered it yet.
        InvalidRequest: No job is named, or arguments contradict each other.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        server: str | None = None,
        job: str | None = None,
        session: Session | None = None,
        names: NamesOf | None = None,
        strict: bool = True,
        cast: bool = False,
        weights: str = "",
        encoding: str | None = None,
        interval: float = 0.0,
        automatic: bool = True,
        timeout: float | None = None,
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval >= 0:
            raise InvalidRequest(problem=f"interval must be at least 0 seconds, got {interval!r}")
        if automatic and getattr(model, "_compiled_call_impl", None) is not None:
            problem = "torch may leave hooks out of a model that is compiled in place by model.compile()"
            raise InvalidRequest(problem=f"{problem}: give torch.compile(model), or automatic=False and call update()")
        self._session = _opened(session, {"server": server, "job": job, "encoding": encoding, "timeout": timeout})
        opened_here = None if session is not None else self._session
        try:
            self._spares = Spares(self._session, model, names, strict=strict, cast=cast, weights=weights)
            self._passes = Passes(self._spares, self._tell)
            self._spares.pull()
            self._passes.swap()
        except BaseException:
            if opened_here is not None:
                opened_here.close()
            raise
        self._failure: Exception | None = None
        self._is_told = False
        self._closed = threading.Event()
        self._versions = self._session.versions(known=self.version)
        self._end = weakref.finalize(self, _end, self._closed, self._versions, opened_here)
        self._handles = self._passes.watch(model) if automatic else ()
        arguments = weakref.ref(self), self._versions, float(interval), self._closed
        self._thread = threading.Thread(target=_follow, args=arguments, name="optd-follower", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else f"version={self.version} lag={self.lag}"
        return f"<optd.torch.Follower {self._session.address} job={self._session.job!r} {state}>"

    @property
    def version(self) -> int:
        """The version whose weights the model has."""
        return self._spares.version

    @property
    def lag(self) -> int:
        """How many versions the job is ahead of the model, as far as is known here."""
        newest = self._versions.newest
        return max(0, newest - self.version) if newest is not None else 0

    @property
    def failure(self) -> Exception | None:
        """Why the model follows no longer; None while it does."""
        return self._failure

    def update(self) -> int:
        """Puts the newest weights that have arrived into the model, between two passes; returns the model's version.

        Raises the reason if the model follows no longer, `SessionClosed` after `close`, or `InvalidRequest` within a
        forward pass of the model.
        """
        self._check()
        self._passes.swap()
        return self.version

    def wait(self, version: int, timeout: float | None = None) -> int:
        """Blocks until weights of a version, or a later one, have arrived, and puts them into the model.

        Returns the model's version. Raises `DeadlineExceeded`, with both versions, after `timeout` seconds, by default
        those of the session; and what `update` raises.
        """
        version = check_min_version(version)
        seconds = self._session.timeout if timeout is None else timeout
        until = time.monotonic() + seconds
        while self.version < version:
            self._check()
            left = until - time.monotonic()
            if left <= 0:
                hint = f"; version {version} of job {self._session.job!r} was asked for, and it is at version"
                newest = self._versions.newest
                raise DeadlineExceeded(
                    rpc="Follower.wait",
                    address=self._session.address,
                    seconds=f"{seconds:g}",
                    hint=f"{hint} {self.version if newest is None else newest}",
                )
            self._spares.wait_for(version, self._is_over, left)
            self._passes.swap()
        self._check()
        return self.version

    def close(self) -> None:
        """Ends the following; the model keeps its weights. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._end()
        self._spares.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_over(self) -> bool:
        return self._failure is not None or self._closed.is_set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed.is_set():
            raise SessionClosed(job=self._session.job)

    def _fail(self, problem: Exception) -> None:
        if self._closed.is_set():
            return
        self._failure = problem
        self._spares.wake()
        logger.warning("%s", self._message())

    def _tell(self) -> None:
        """Warns once, in a forward pass, that the model follows no longer."""
        if self._failure is not None and not self._is_told:
            self._is_told = True
            warn_caller(self._message())

    def _message(self) -> str:
        kept = f"the model keeps the weights of version {self.version}"
        return f"optd.torch.Follower no longer follows job {self._session.job!r}, and {kept}: {self._failure}"


def _opened(session: Session | None, arguments: dict[str, object]) -> Session:
    given = {name: value for name, value in arguments.items() if value is not None}
    if session is not None:
        if given:
            late = ", ".join(f"{name}=" for name in given)
            raise InvalidRequest(problem=f"{late} must be given to optd.connect(), which opened the session")
        return session
    job = job_of(str(given.pop("job")) if "job" in given else None)
    if job is None:
        raise InvalidRequest(problem="a follower must know whom to follow: pass job= or set OPTD_JOB")
    how = {"timeout": CALL_SECONDS, **given}
    return connect(how.pop("server", None), job=job, **how)  # type: ignore[arg-type]


def _follow(ref: "weakref.ref[Follower]", versions: Versions, interval: float, closed: threading.Event) -> None:
    """Pulls each version that comes. Refers to the follower only while it pulls, so that it can become garbage."""
    try:
        for _ in versions:
            while not _has_pulled(ref):
                if closed.wait(RETRY_SECONDS):
                    return
            if closed.wait(interval):
                return
    except Exception as problem:  # noqa: BLE001 - the next forward pass tells of it
        follower = ref()
        if follower is not None:
            follower._fail(problem)


def _has_pulled(ref: "weakref.ref[Follower]") -> bool:
    """Pulls; returns whether that need not be done again. A reader may be too slow once, or a server too busy."""
    follower = ref()
    if follower is not None:
        try:
            follower._spares.pull()
        except (TooSlow, Stalled, ResourceExhausted) as problem:
            logger.warning("job %s: a follower pulls again: %s", follower._session.job, problem)
            return False
    return True


def _end(closed: threading.Event, versions: Versions, session: Session | None) -> None:
    closed.set()
    versions.close()
    if session is not None:
        with suppress(OptdError):
            session.close()
