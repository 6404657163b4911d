"""AdamW: Adam with weight decay that enters neither moment.

Loshchilov & Hutter, https://arxiv.org/abs/1711.05101; ``torch/optim/adamw.py``, which is Adam with
``decoupled_weight_decay=True`` and another default.
"""

from optd_server.optim.algorithm import Elementwise
from optd_server.optim.algorithms.adam import AMSGRAD, STATE, coefficients, fused, update
from optd_server.optim.algorithms.options import BETAS, MAXIMIZE, NOT_NEGATIVE, epsilon, learning_rate
from optd_server.optim.option import Option

ADAMW = Elementwise(
    name="adamw",
    title="AdamW",
    doc="AdamW: Adam with decoupled weight decay.",
    options=(
        learning_rate(1e-3),
        BETAS,
        epsilon(1e-8),
        Option("weight_decay", "float", 1e-2, NOT_NEGATIVE, doc="weight decay (decoupled)"),
        AMSGRAD,
        MAXIMIZE,
    ),
    state=STATE,
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
)
