"""Numbers that are computed with in float32, as torch does with a learning rate that is a tensor of float32."""


class Single(float):
    """A float that came as a float32. It equals the float of its value; `is_single` tells what to compute with."""

    __slots__ = ()
    is_single = True
