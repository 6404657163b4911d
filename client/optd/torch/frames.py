"""Calls of torch that hooks surround: whether they have ended, also if an exception has kept the last hook away."""

import sys
from types import FrameType

_PASSED_OVER = ("optd.torch", "torch._dynamo")
"""Modules that lie between a hook and the call that runs it: this package, and torch's wrappers of its functions."""


def hooked_call() -> FrameType:
    """The frame of the call that runs the hook in which this is asked.

    The frame holds the arguments of its call: forget it soon after the call has ended.
    """
    frame = sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(_PASSED_OVER):
        frame = frame.f_back
    return frame


def has_ended(call: FrameType) -> bool:
    """Whether a call has ended, in whichever thread; its frame has no local variables after that."""
    # Frames have no other way to tell. To look for one on the stack of a thread that runs meanwhile may miss it.
    try:
        call.clear()
    except RuntimeError:  # it is executing
        return False
    return True
