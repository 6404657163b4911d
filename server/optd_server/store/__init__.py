"""Numbers at rest: groups laid out on flat buffers, snapshots of the weights, and gradients that wait for their step.

Nothing here decides, computes a step or knows a message: `engine` decides, `optim` computes, and `optd_wire.layout`
defines the flat buffer of one group. Open `extents.py` first, which lays groups out, then `flat.py`, which holds them.

How the pieces lie in one another. Here groups 0 and 1 were registered together, and group 2 was added later:

    as frames address them     group 0: [ seg f32 | seg bf16 ]     group 1: [ seg f32 ]       group 2: [ seg f32 ]

    as they lie in memory      extent 0                                                       extent 1
                               slab 0: float32                       slab 1: bfloat16         slab 0: float32
                               +------------------+----------------+ +----------------------+ +----------------+
                               | segment, group 0 | segm., group 1 | | segment, group 0     | | segm., group 2 |
                               +------------------+----------------+ +----------------------+ +----------------+
                               region                                                         region

- A *segment* is the parameters of one dtype in one group, in one piece.
- A *slab* is the segments of one dtype in all groups of an extent that the same arithmetic is done on. It is one array.
- An *extent* is the slabs of the groups that were registered together.
- A *region* is the memory of one extent: private, or shared with workers of this host. Each slab in it is aligned.

`FlatBuffers` holds one region for each extent. A set of weights is one `FlatBuffers`, and so is a slot for a gradient.
"""
