"""Error feedback: what a lossy encoding leaves out of one gradient is added to the next one.

Without it the little that `topk` leaves out of a parameter for a thousand steps is lost; with it every bit of a
gradient arrives in the end (Karimireddy et al., "Error Feedback Fixes SignSGD", 2019). It works with every lossy
encoding: `topk` needs it, `int8` gains by it, for one more pass over the gradient.
"""

import math
from collections.abc import Sequence

import numpy as np

from optd.params.flat_view import Array, FlatView
from optd.transport.numbers import Source
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.encodings.base import Encoding
from optd_wire.frames import Frame, GatheredFrame, Outgoing


class ErrorFeedback:
    """The residuals of a job's parameters, as large as its gradients, zeros at first. One push at a time.

    `begin` encodes a push, and `settle` takes whether it was applied. In between the push exists as bytes, and every
    attempt sends these.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        # By group and offset of the segment that they belong to.
        self._residuals: dict[tuple[int, int], Array] = {}
        self._scale = 1.0
        self._pending: list[tuple[Array, Array]] | None = None

    @property
    def pending(self) -> bool:
        """Whether a push has not been settled yet."""
        return self._pending is not None

    def begin(self, view: FlatView, gradients: Sequence[Sequence[Array | None]], scale: float = 1.0) -> Source:
        """Encodes gradients plus the residuals of earlier ones; every attempt sends the same bytes.

        Parameters without a gradient keep their residuals. `scale` is what the server divides the gradients by;
        residuals of gradients with another scale are converted. `gradients` may be reused afterwards. Raises
        `EncodingOverflow`, and has then changed nothing.
        """
        if self.pending:
            raise RuntimeError("the push before has not been settled")
        self._bring_to(scale)
        batches: list[list[Outgoing]] = []
        pending: list[tuple[Array, Array]] = []
        for batch in view.batches(gradients, encoding=self.encoding):
            frames: list[Outgoing] = []
            for gathered in batch:
                held = self.residual(view, gathered.group, gathered.offset, gathered.count)
                frame, rest = self._encode(gathered, held)
                frames.append(frame)
                pending.append((held, rest))
            batches.append(frames)
        self._pending = pending

        return lambda: iter(batches)

    def _bring_to(self, scale: float) -> None:
        if 0 < scale < math.inf and scale != self._scale:  # the server refuses any other scale
            for residual in self._residuals.values():
                np.multiply(residual, scale / self._scale, out=residual)
            self._scale = scale

    def settle(self, applied: bool) -> None:
        """Ends a push: if it was `applied`, what it left out becomes the residual; if not, nothing changes.

        The caller must know: a wrong answer loses a part of the gradient or applies it twice.
        """
        if applied:
            for held, rest in self._pending or ():
                held[:] = rest
        self._pending = None

    def residual(self, view: FlatView, group: int, offset: int, count: int) -> Array:
        """The residual of a range of a group's flat buffer, which lies in one segment; a view."""
        segments = view.layouts[group].segments
        segment = next(s for s in segments if s.offset <= offset and offset + count <= s.offset + s.count)
        key = group, segment.offset
        if key not in self._residuals:
            self._residuals[key] = np.zeros(segment.count, DTYPES[COMPUTED[segment.dtype]])
        return self._residuals[key][offset - segment.offset : offset - segment.offset + count]

    def _encode(self, gathered: GatheredFrame, held: Array) -> tuple[Frame, Array]:
        rest = np.concatenate(gathered.arrays).astype(held.dtype, copy=False)
        rest += held
        payload = self.encoding.encode(rest)
        frame = Frame(gathered.group, gathered.offset, gathered.count, self.encoding, payload, gathered.field)
        sent = np.empty_like(rest)
        frame.decode_into(sent)
        # If the server does not refuse the push, NaN and infinities are dropped, and leave no residual.
        sent[~np.isfinite(sent)] = 0
        rest -= sent
        rest[~np.isfinite(rest)] = 0
        return frame, rest
