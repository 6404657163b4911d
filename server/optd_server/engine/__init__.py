"""Jobs: the fold that changes them (`state`, `events`, `apply`), and the asyncio shell around it (`job`, `writer`).

The algorithms are in `optim`, the memory of weights and gradients in `store`, and gRPC in `rpc`. Nothing here reads a
clock, a socket or the environment. Each job lives on one event loop, and only arithmetic runs in other threads. Open
`state.py`, `events.py` and `apply.py` first, then `job.py`.

The way of a push:

    rpc        a service calls `Job.push` with a header and a source of frames
    rounds     `in_flight` admits it, `waiting` offers it to the policy, and a `round` receives its gradient
    writer     when all gradients of the round have arrived, `due` has `committer` take its step, one round at a time:
    step         `reduction` and `accumulation` make one gradient of the round, `conditioning` clips it
    events       `decide` and `committer` make a `Stepped`, complete with marks, options and gradient
    log          `fold` appends the event
    apply        `apply` runs the arithmetic of `step` into a spare set of weights, and writes the replies' marks
    publish      `fold` swaps the snapshot that readers see: weights and options together
    answer     `Job` waits until the event is durable, outside the writer, and returns the reply
"""
