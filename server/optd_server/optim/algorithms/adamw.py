"""AdamW: Adam with weight decay that enters neither moment.

Loshchilov & Hutter, https://arxiv.org/abs/1711.05101; ``torch/optim/adamw.py``, which is Adam with
``decoupled_weight_decay=True`` and another default.
"""

from optd_server.optim.algorithm import Elementwise
from optd_server.optim.algorithms.adam import AMSGRAD, STATE, coefficients, fused, update
from optd_server.optim.algorithms.options import BETAS, MAXIMIZE, decoupled_decay, epsilon, learning_rate

ADAMW = Elementwise(
    name="adamw",
    title="AdamW",
    doc="AdamW: Adam with decoupled weight decay.",
    options=(
        learning_rate(1e-3),
        BETAS,
        epsilon(1e-8),
        decoupled_decay(1e-2),
        AMSGRAD,
        MAXIMIZE,
    ),
    state=STATE,
    coefficients=coefficients,
    update=update,
    scratch=2,
    fused=fused,
)
