"""An optimizer for torch's parameters by the names of algorithms: of its groups, or of all that name none."""

from typing import Any

import torch

from optd.options.group_options import GROUP_OPTIONS
from optd.registration.group_algorithms import check_has_owner, default_and_params
from optd.registration.local_changes import SEND, check_local_changes
from optd.registration.shared_arguments import names_shared
from optd.session.connect_arguments import SessionArguments
from optd.session.session import Session
from optd.torch.checks import check_ordered
from optd.torch.forms import form_by_name
from optd.torch.module_buffers import BuffersOf, holder_of
from optd.torch.optimizer import Served
from optd.torch.tensor_exchange import TensorExchange


class Optimizer(Served):
    """Any algorithms of the server, also such as a plugin has added.

        Optimizer([
            {"params": matrices, "algorithm": "muon", "lr": 0.02},
            {"params": others, "algorithm": "adamw", "lr": 3e-4},
        ])
        Optimizer("adabelief", params, lr=0.01)

    Args:
        algorithm: The default algorithm, as `optctl algorithms` lists it: that of all groups that name none. May be
            left out if each group names one.
        params: The parameters, as torch takes them; see `Served` for this, for groups that name their algorithm, and
            for the arguments that follow.
        **options: Options of the default algorithm: defaults of the groups that have it. The server's defaults count
            for the others. Refused if there is no default algorithm.

    Raises:
        UnknownAlgorithm: The server has no such algorithm; the message names the nearest one.
        UnknownOption, OptionOutOfRange, InvalidOption: The server refuses an option.
        UnservedGroups, UnservedShape: A group's algorithm must be alone in its job, or takes other shapes.
        InvalidRequest: A group names no algorithm, and there is no default.
    """

    @names_shared
    def __init__(
        self,
        algorithm: Any = None,
        params: Any = None,
        *,
        session: Session | None = None,
        zero_copy: bool = False,
        local_changes: str = SEND,
        norms: bool = False,
        buffers: BuffersOf | None = None,
        **options: Any,
    ) -> None:
        self._norms = norms
        holder = holder_of(buffers)
        self.algorithm, params = default_and_params(algorithm, params)
        self._form = form_by_name(self.algorithm)
        self._exchange = TensorExchange(check_local_changes(local_changes))
        self._common = {name: options.pop(name) for name in GROUP_OPTIONS if name in options}
        arguments = SessionArguments.taken_from(options)
        check_has_owner(self.algorithm, options)
        self._open(arguments, session)
        self._read(self._read_params, params, options)
        self._serve(zero_copy, holder)

    def _read_params(self, params: Any, options: dict[str, Any]) -> None:
        declared = self.session.algorithm(self.algorithm).options if self.algorithm else ()
        defaults = {option.name: option.default_value for option in declared} | options
        check_ordered(params)
        torch.optim.Optimizer.__init__(self, params, defaults)
