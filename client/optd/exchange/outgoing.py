"""The gradients of a push as they leave: frames in an encoding, or numbers in shared memory."""

from collections.abc import Callable
from itertools import chain

from optd.exchange.feedback import ErrorFeedback
from optd.exchange.row_gradients import GradientsByGroup, WithRows, has_rows, whole_ones
from optd.exchange.stochastic import random_bits, round_at_random
from optd.params.copying import copy_all
from optd.params.flat_view import Array, ArraysByGroup, OptionalArraysByGroup
from optd.params.group_arrays import GroupArrays
from optd.session.push_settings import PushSettings
from optd.session.session import Session
from optd.transport.encoding import MessageEncoding
from optd.transport.lane import PlacedGradients, SharedBuffers
from optd.transport.numbers import Source
from optd_wire.encodings.base import Encoding
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame


class OutgoingGradients:
    """The gradients of a registration, push after push."""

    def __init__(self, session: Session, own: GroupArrays) -> None:
        self._session = session
        self._own = own
        self._feedback: dict[str, ErrorFeedback] = {}
        self._shared: tuple[SharedBuffers, list[list[Array]], list[list[Array]]] | None = None

    def shared_gradients(self) -> list[list[Array]] | None:
        """The memory that the server reads gradients of parameters from, by group and place.

        The same list for the same memory. None if there is no shared memory, and while the server may still read a push
        whose fate is unknown.
        """
        shared = self._shared_rows()
        return None if shared is None else shared[1]

    def _shared_rows(self) -> tuple[list[list[Array]], list[list[Array]]] | None:
        """That memory for all groups, and without the group of the buffers."""
        memory = self._session.shared_memory
        # The memory also has room for groups that other workers have added.
        if memory is None or self._session.in_doubt or len(memory.gradients) < len(self._own):
            return None
        if self._shared is None or self._shared[0] is not memory or len(self._shared[1]) != len(self._own):
            segments = [
                Frame.of(group, segment.offset, values)
                for group, (layout, arrays) in enumerate(zip(self._own.view.layouts, memory.gradients, strict=False))
                for segment, values in zip(layout.segments, arrays, strict=True)
            ]
            rows = self._own.view.rows(segments)
            self._shared = (memory, rows, rows[self._own.first :])
        return self._shared[1:]

    def wire(self, encoding: str | None) -> MessageEncoding:
        """How a push and its reply carry numbers; raises `InvalidRequest` if the lane cannot encode them."""
        wire = self._session.wire if encoding is None else MessageEncoding.of(encoding)
        if not wire.exact and self._session.shared_memory is not None:
            problem = f"lane 'shm' carries numbers unchanged; encoding {wire.name!r} is for lane 'grpc'"
            raise InvalidRequest(problem=problem)
        return wire

    def source(
        self, gradients: GradientsByGroup, wire: MessageEncoding, settings: PushSettings, *, has_weights: bool = False
    ) -> tuple[Source, Callable[[bool], None]]:
        """What to send, encoded or already in shared memory, and the callback that takes whether it was applied.

        `gradients` are of all groups; those of buffers are values, which travel exactly. What an encoding has left out
        of earlier gradients is added, if this push has the same encoding.
        """
        if wire.stochastic:
            first, bits = self._own.first, random_bits(self._session.worker, *self._session.next_push)
            gradients = [*gradients[:first], *round_at_random(gradients[first:], bits)]
        whole, with_rows = whole_ones(gradients), has_rows(gradients)
        shared = None if with_rows else self._shared_rows()
        if shared is not None:
            return self._shared_source(whole, shared[0]), _forget
        source, settle = self._whole_source(whole, wire.gradients, wire.name, settings.loss_scale or 1.0)
        if with_rows:
            source = WithRows(source, gradients, wire.gradients, self._session.batch_bytes, has_weights)
        return source, settle

    def forget_residuals(self) -> None:
        """Forgets what encodings have left out of earlier gradients: the pushes that it belongs to no longer count."""
        self._feedback.clear()

    def _whole_source(
        self, gradients: OptionalArraysByGroup, encoding: Encoding | None, name: str, loss_scale: float
    ) -> tuple[Source, Callable[[bool], None]]:
        own = self._own
        if encoding is None:
            return own.view.source(gradients), _forget
        values = own.view.source([row if i < own.first else [None] * len(row) for i, row in enumerate(gradients)])
        gradients = [[None] * len(row) if i < own.first else row for i, row in enumerate(gradients)]
        if not encoding.leaves_out:
            return _in_turn(values, own.view.source(gradients, encoding=encoding)), _forget
        feedback = self._feedback.setdefault(name, ErrorFeedback(encoding))
        return _in_turn(values, feedback.begin(own.view, gradients, loss_scale)), feedback.settle

    def _shared_source(self, gradients: OptionalArraysByGroup, shared: ArraysByGroup) -> Source:
        memory = self._session.shared_memory
        assert memory is not None
        pairs = [
            (target, given)
            for row, given_row in zip(shared, gradients, strict=True)
            for target, given in zip(row, given_row, strict=True)
            if given is not None
        ]
        whole = len(pairs) == sum(map(len, shared))
        moved = [pair for pair in pairs if pair[0] is not pair[1]]
        # A gradient that lies in another parameter's place is copied, before that place is overwritten.
        copy_all([(target, given.copy() if memory.holds(given) else given) for target, given in moved])
        everything = whole and len(memory.gradients) == len(self._own)
        ranges = None if everything else tuple(self._own.view.ranges(gradients))
        return PlacedGradients(memory, ranges, self._own.view.source(gradients))


def _in_turn(first: Source, second: Source) -> Source:
    return lambda: chain(first(), second())


def _forget(_: bool) -> None:
    """The callback of pushes that keep no residuals."""
