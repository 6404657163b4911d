"""AdamW: Adam with weight decay that enters neither moment.

Loshchilov & Hutter, https://arxiv.org/abs/1711.05101; ``torch/optim/adamw.py``, which is Adam with
``decoupled_weight_decay=True`` and another default.
"""

from optd_server.optim.algorithm import Algorithm
from optd_server.optim.algorithms.adam import AMSGRAD, BETAS, EPS, LR, MAXIMIZE, STATE, coefficients, fused, update
from optd_server.optim.option import Option, Range

ADAMW = Algorithm(
    name="adamw",
    title="AdamW",
    doc="AdamW: Adam with decoupled weight decay.",
    options=(
        LR,
        BETAS,
        EPS,
        Option("weight_decay", "float", 1e-2, Range(low=0), doc="weight decay (decoupled)"),
        AMSGRAD,
        MAXIMIZE,
    ),
    state=STATE,
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
)
