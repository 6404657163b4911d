"""What torch's processes say on standard error when their partners end; nothing of it is news here."""

import os
import warnings


def quiet() -> None:
    """To be called before torch is imported."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
