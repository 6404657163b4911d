"""The arithmetic of one step: new weights beside the current ones, state in place. Runs off the event loop."""

from optd_server.engine.groups import Groups
from optd_server.engine.offload import Offload
from optd_server.optim.step import apply
from optd_server.store.flat import FlatBuffers
from optd_server.store.gradients import Gradient


def take_step(
    groups: Groups, version: int, gradient: Gradient, current: FlatBuffers, following: FlatBuffers, offload: Offload
) -> None:
    """Writes the weights after the step from `version` into `following`, and updates the state in `groups`."""
    options = groups.effective(version)
    for number, index, slab, state in groups.slabs():
        apply(
            groups.algorithm,
            [options[group] for group in slab.groups],
            state,
            weights=current.slabs[number][index],
            gradient=gradient.slabs[number][index] if number < len(gradient.slabs) else current.slabs[number][index],
            out=following.slabs[number][index],
            present=gradient.presence[number][index],
            threads=offload.threads,
            backend=offload.kernels,
        )
