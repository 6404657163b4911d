"""How long a call waits for something that may never happen."""

import asyncio

STEP_SECONDS = 1.0
"""How long a caller that asks for a gradient waits for the next step: a running job makes one in less time."""


async def wait_for_step() -> None:
    """Sleep for as long as a caller may wait for a step."""
    await asyncio.sleep(STEP_SECONDS)
