"""An optimizer for torch's parameters by the name of its algorithm, for algorithms that have no class."""

from typing import Any

import torch

from optd.options.group_options import GROUP_OPTIONS
from optd.registration.local_changes import SEND, check_local_changes
from optd.registration.shared_arguments import names_shared
from optd.session.connect_arguments import SessionArguments
from optd.session.session import Session
from optd.torch.checks import check_ordered
from optd.torch.distributed import shared_by_ranks
from optd.torch.optimizer import Served
from optd.torch.options import OptionRules
from optd.torch.tensor_exchange import TensorExchange


class Optimizer(Served):
    """Any algorithm of the server, such as one that a plugin has added.

    Args:
        algorithm: Its name, as `optctl algorithms` lists it.
        params: The parameters, as torch takes them; see `Served` for this and for the arguments that follow.
        **options: The options of the algorithm, as defaults of all groups; the server's defaults count for the others.

    Raises `UnknownAlgorithm`, or the server's error about an option.
    """

    _keeps_step = True

    @names_shared
    def __init__(
        self,
        algorithm: str,
        params: Any,
        *,
        session: Session | None = None,
        zero_copy: bool = False,
        local_changes: str = SEND,
        norms: bool = False,
        **options: Any,
    ) -> None:
        self._norms = norms
        self.algorithm = algorithm
        self._rules = OptionRules(algorithm, {})
        self._exchange = TensorExchange(check_local_changes(local_changes))
        self._common = {name: options.pop(name) for name in GROUP_OPTIONS if name in options}
        arguments = SessionArguments.taken_from(options)
        opened, owned = arguments.session(session, unnamed=shared_by_ranks)
        try:
            declared = opened.algorithm(algorithm).options
            defaults = {option.name: option.default_value for option in declared} | options
            check_ordered(params)
            torch.optim.Optimizer.__init__(self, params, defaults)
        except BaseException:
            if owned:
                opened.close()
            raise
        self._serve(opened, owned, zero_copy)
