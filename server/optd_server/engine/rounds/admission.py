"""Checks of a push as it comes: whether it is what it claims to be, and whether it goes with those that wait."""

from collections.abc import Sequence

from optd_server.engine.offload import Offload
from optd_server.engine.rounds.digest import Digest, differs
from optd_server.engine.rounds.push import GradientSource, Push, has_gradient
from optd_server.engine.rounds.waiting import Waiting
from optd_server.engine.state import JobState
from optd_wire.errors import InvalidRequest, OtherPayload
from optd_wire.frames import Received
from optd_wire.values import PushHeader, PushResult


async def check_repeated(
    state: JobState, header: PushHeader, known: PushResult | Push, source: GradientSource, offload: Offload
) -> None:
    """Read a push that is sent again; raise `OtherPayload` if it is another one under the same number."""
    # Now: when it has been read, the worker's next push may have been applied.
    first, digest = _checksum_of(state, header, known), Digest(header)

    async def read(frames: Sequence[Received]) -> None:
        await digest.added(frames, offload)

    await source.receive(read)
    _compare(first, digest, state, header)


def check_same(state: JobState, header: PushHeader, known: PushResult | Push, digest: Digest) -> None:
    """Raise `OtherPayload` unless a push that is sent again has the content of the first one."""
    _compare(_checksum_of(state, header, known), digest, state, header)


def _checksum_of(state: JobState, header: PushHeader, known: PushResult | Push) -> int:
    """Return the checksum of a push whose gradient is there, or that was its worker's last one; 0: unknown."""
    if isinstance(known, Push):
        return known.digest.checksum
    member = state.members.find(header.worker)
    return 0 if member is None else member.checksum


def _compare(first: int, digest: Digest, state: JobState, header: PushHeader) -> None:
    if differs(first, digest.checksum):
        expected = header.sequence + 1
        raise OtherPayload(worker=header.worker, job=state.name, sequence=header.sequence, expected=expected)


def check_flush(push: Push) -> None:
    """Raise `InvalidRequest` if a flush has a gradient in shared memory."""
    if push.header.flush and push.shared is not None and has_gradient(push.shared):
        raise InvalidRequest(problem="a flush brings no gradient, and this one has some in shared memory")


def problem_of_kinds(push: Push, waiting: Waiting) -> InvalidRequest | None:
    """Return what is wrong if a flush would share its round with gradients; None if nothing is."""
    if not waiting.policy.receives_first:
        return None  # each push is a step of its own
    header = push.header
    others = [each.header for each in waiting.pushes if each.header.fragment == header.fragment]
    other = next((each for each in others if each.flush != header.flush), None)
    if other is None:
        return None
    waits, comes = ("a flush", "brings gradients") if other.flush else ("gradients", "flushes")
    return InvalidRequest(
        problem=f"worker {other.worker!r} waits for its round with {waits}, and worker {header.worker!r} {comes}: all "
        "workers of a round flush, or none does"
    )
