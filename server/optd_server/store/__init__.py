"""Numbers at rest: groups laid out on flat buffers, snapshots of the weights, gradients on their way into a step."""
