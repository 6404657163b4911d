"""Options that several algorithms share, with torch's ranges."""

from optd_server.optim.option import Option, Range

NOT_NEGATIVE = Range(low=0)
FRACTION = Range(low=0, high=1, high_open=True)

BETAS = Option(
    "betas",
    "floats",
    (0.9, 0.999),
    entries=(FRACTION, FRACTION),
    doc="How much of itself the running average of the gradient keeps at each step, and that of its square.",
)
MAXIMIZE = Option("maximize", "bool", False, doc="Maximize the objective instead of minimizing it.")
DECOUPLED_WEIGHT_DECAY = Option(
    "decoupled_weight_decay",
    "bool",
    False,
    doc="Shrink the weights by `lr * weight_decay`, as AdamW does, instead of adding the penalty to the gradient.",
)


def learning_rate(default: float) -> Option:
    """`lr`."""
    return Option("lr", "float", default, NOT_NEGATIVE, doc="Learning rate: the factor of each step.")


def epsilon(default: float) -> Option:
    """`eps`."""
    return Option("eps", "float", default, NOT_NEGATIVE, doc="Added to the denominator for numerical stability.")


def penalty(default: float = 0.0) -> Option:
    """`weight_decay` that adds an L2 penalty to the gradient."""
    return Option(
        "weight_decay",
        "float",
        default,
        NOT_NEGATIVE,
        doc="L2 penalty: this times the weights is added to the gradient.",
    )


def decoupled_decay(default: float) -> Option:
    """`weight_decay` that shrinks the weights and leaves the gradient alone."""
    doc = "Decoupled weight decay: each step first shrinks the weights by `lr * weight_decay` of their value."
    return Option("weight_decay", "float", default, NOT_NEGATIVE, doc=doc)
