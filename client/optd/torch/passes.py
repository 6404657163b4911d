"""Forward passes of a followed model: new weights come between two of them, never within one."""

import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from optd.torch.frames import has_ended, hooked_call
from optd.torch.spares import Spares
from optd_wire.errors import InvalidRequest

PATIENCE_SECONDS = 1.0
"""How long a pass waits for passes of other threads to end, so that new weights can come in between. A pass that waited
for ever might wait for itself: for a pass that waits for this thread."""


class Passes:
    """Counts the passes under way. `tell` is called at the beginning of each pass."""

    def __init__(self, spares: Spares, tell: Callable[[], None]) -> None:
        self._spares = spares
        self._tell = tell
        self._changed = threading.Condition()
        self._inside: dict[int, list[FrameType]] = {}
        """By thread, its passes of the model, the outermost first."""
        self._swaps = 0

    def watch(self, model: torch.nn.Module) -> tuple[Any, ...]:
        """Brings the weights in before each pass; returns the handles that end this."""
        return (
            model.register_forward_pre_hook(Hook(self._before), prepend=True),
            model.register_forward_hook(Hook(self._after), always_call=True),
        )

    def swap(self) -> None:
        """Brings the weights in that are ready, unless a pass of another thread takes long.

        Raises `InvalidRequest` within a pass, or while a CUDA graph is recorded.
        """
        with self._changed:
            self._forget_interrupted()
            if threading.get_ident() in self._inside or _is_capturing():
                what = "within a forward pass of the model, or while a CUDA graph is recorded"
                raise InvalidRequest(problem=f"a follower brings no weights in {what}: do it between two passes")
            self._swap()

    def _swap(self) -> None:
        if not self._spares.are_ready or _is_capturing():
            return
        self._forget_interrupted()
        if threading.get_ident() in self._inside:
            return
        swaps = self._swaps
        # A pass waits once: for those that were under way when it came.
        self._changed.wait_for(lambda: not self._inside or self._swaps != swaps, PATIENCE_SECONDS)
        self._forget_interrupted()
        if not self._inside:
            self._spares.take()
            self._swaps += 1
            self._changed.notify_all()

    def _forget_interrupted(self) -> None:
        """Forgets passes that have ended without `_after`: torch does not call it after a `KeyboardInterrupt`."""
        under_way = {
            thread: [each for each in passes if not has_ended(each)] for thread, passes in self._inside.items()
        }
        self._inside = {thread: passes for thread, passes in under_way.items() if passes}

    def _before(self) -> None:
        self._tell()
        me = threading.get_ident()
        with self._changed:
            self._swap()
            # Without those that were interrupted, whose frames hold the arguments of their passes.
            passes = [each for each in self._inside.get(me, ()) if not has_ended(each)]
            self._inside[me] = [*passes, hooked_call()]

    def _after(self) -> None:
        me = threading.get_ident()
        with self._changed:
            outer = self._inside.pop(me, [])[:-1]
            if outer:
                self._inside[me] = outer
            self._changed.notify_all()


class Hook:
    """A hook of a module that follows. A copy of the module does not follow: there the hook does nothing."""

    def __init__(self, act: Callable[[], None] | None = None) -> None:
        self._act = act

    # What it does is no part of a graph that torch compiles.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *_: Any) -> None:
        """Acts; the arguments of the pass stay as they are."""
        if self._act is not None:
            self._act()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return Hook()

    def __reduce__(self) -> tuple[type["Hook"], tuple[()]]:
        return Hook, ()


def _is_capturing() -> bool:
    """Whether the pass is recorded in a CUDA graph, in which nothing may wait for the device."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
