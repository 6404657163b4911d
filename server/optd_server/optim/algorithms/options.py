"""Options that several algorithms have, with torch's ranges."""

from optd_server.optim.option import Option, Range

NOT_NEGATIVE = Range(low=0)
FRACTION = Range(low=0, high=1, high_open=True)

BETAS = Option(
    "betas",
    "floats",
    (0.9, 0.999),
    entries=(FRACTION, FRACTION),
    doc="decay of the running averages of the gradient and of its square",
)
MAXIMIZE = Option("maximize", "bool", False, doc="maximize the objective, instead of minimizing it")
DECOUPLED_WEIGHT_DECAY = Option(
    "decoupled_weight_decay", "bool", False, doc="decay the weights themselves, as AdamW does"
)


def learning_rate(default: float) -> Option:
    """Declare `lr`."""
    return Option("lr", "float", default, NOT_NEGATIVE, doc="learning rate")


def epsilon(default: float) -> Option:
    """Declare `eps`."""
    return Option("eps", "float", default, NOT_NEGATIVE, doc="added to the denominator, for numerical stability")


def penalty(default: float = 0.0) -> Option:
    """Declare a `weight_decay` that is added to the gradient."""
    return Option("weight_decay", "float", default, NOT_NEGATIVE, doc="weight decay (L2 penalty)")
