"""How long calls wait for what may not come."""

import asyncio

STEP_SECONDS = 1.0
"""For the next step, whose gradient somebody wants to see: jobs that run make one in less, and others keep nobody."""


async def wait_for_step() -> None:
    """Waits as long as is waited for a step."""
    await asyncio.sleep(STEP_SECONDS)
