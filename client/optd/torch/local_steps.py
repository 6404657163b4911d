"""`optd.torch.LocalSteps`, for any optimizer of torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from optd.local_steps.face import LocalStepsFace
from optd.local_steps.outer import DILOCO, Place
from optd.local_steps.settings import Settings
from optd.params.flat_view import Array
from optd.params.groups import NAME, PARAMS, ParamGroup
from optd.session.session import Session
from optd.torch import preemption
from optd.torch.arrays import as_array, as_tensor, served_dtype
from optd.torch.checks import check_parameter
from optd.torch.distributed import policy_of_ranks, shared_by_ranks
from optd.torch.naming import distinct_name, parameter_names
from optd.torch.options import as_torch
from optd.torch.tensors import PARAM_NAMES
from optd_wire.dtypes import check_dtype
from optd_wire.errors import EmptyGroup, InvalidRequest

_ARRAYS = ("base", "counted")
"""The parts of a state that are arrays by the names of their parameters."""


class TensorWeights:
    """The tensors of an optimizer, by group and place."""

    def __init__(self, tensors: list[list[torch.Tensor]]) -> None:
        self._tensors = tensors

    def read(self, place: Place) -> Array:
        """The tensor's own memory, or a copy on the host."""
        return as_array(self._tensors[place[0]][place[1]])

    @torch.no_grad()
    def write(self, place: Place, array: Array) -> None:
        """Copies into the tensor."""
        tensor = self._tensors[place[0]][place[1]]
        tensor.copy_(as_tensor(np.ascontiguousarray(array), is_complex=tensor.is_complex()))


class LocalSteps(LocalStepsFace):
    """Lets any optimizer of torch train a model on its own, and syncs it with a job from time to time (DiLoCo).

        inner = torch.optim.AdamW(model.named_parameters(), lr=3e-4)
        with optd.torch.LocalSteps(inner, every=100, server="127.0.0.1:50051", job="chars") as local:
            for batch in batches:
                inner.zero_grad()
                loss(model(batch)).backward()
                inner.step()  # every 100 steps it also syncs

    Every `every` steps of `inner` the last global weights minus those of the model travel as a gradient; the job's
    algorithm is the outer optimizer; the new global weights come back into the model. The state of `inner` stays with
    its worker. Works as a hook of `inner` from when it is made until `close()`, or as a context manager.
    docs/local-steps.md says how, and what happens to late and lost workers.

    Args:
        inner: An optimizer of torch, or any other that inherits its hooks. All of its parameters that require a
            gradient take part, under the names that `named_parameters()` gives them, else `param0`, ….
        every, session, outer, fragments, delay, alpha, encoding, weight: As `optd.LocalSteps` takes them.
        server, job, worker, if_exists, policy, gradients, averages, progress, durable, recreate: As `optd.connect`
            takes them, for a session that is opened here. If torch.distributed runs with several ranks, they share a
            job without a name, whose policy is `optd.Sync(workers=WORLD_SIZE)` unless another one is named.

    The first worker creates the job with the weights of its model; the models of others get the job's weights. Buffers
    of the model, such as the running statistics of BatchNorm, stay with each worker.

    What keeps a sync from its answer is raised by `inner.step()`, as `optd.LocalSteps.step` raises it.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        *,
        every: int | str,
        session: Session | None = None,
        outer: Mapping[str, Any] = DILOCO,
        fragments: int = 1,
        delay: int = 0,
        alpha: float | None = None,
        encoding: str | None = None,
        weight: float | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(inner, torch.optim.Optimizer):
            problem = (
                f"LocalSteps takes an optimizer of torch, got {type(inner).__name__}; optd.LocalSteps takes arrays"
            )
            raise InvalidRequest(problem=problem)
        settings = Settings.of(every, fragments, delay, alpha, encoding, weight)
        self.inner = inner
        groups, tensors = _read(inner)
        self._open(
            groups,
            TensorWeights(tensors),
            settings,
            outer,
            session,
            arguments,
            unnamed=shared_by_ranks,
            policy=policy_of_ranks(),
            shown=as_torch,
        )
        self._hooks = (
            inner.register_step_pre_hook(lambda *_: self._before_step()),
            inner.register_step_post_hook(lambda *_: self._after_step()),
        )
        preemption.install()

    def state_dict(self) -> dict[str, Any]:
        """As `optd.LocalSteps.state_dict`, with tensors, so that `torch.load(weights_only=True)` reads it."""
        state = super().state_dict()
        for part in _ARRAYS:
            state[part] = {name: as_tensor(array) for name, array in state[part].items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """As `optd.LocalSteps.load_state_dict`; load the model and `inner` before."""
        arrays = {part: {name: as_array(tensor) for name, tensor in state[part].items()} for part in _ARRAYS}
        return super().load_state_dict({**state, **arrays})

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_step(self) -> None:
        preemption.begin_step()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_step(self) -> None:
        with preemption.end_step():
            self._worker.after_step()

    def _close(self, *, wait: bool) -> None:
        for hook in self._hooks:
            hook.remove()
        super()._close(wait=wait)


def _read(inner: torch.optim.Optimizer) -> tuple[list[ParamGroup], list[list[torch.Tensor]]]:
    """The groups of an optimizer with copies of their weights, and their tensors; without what is frozen.

    Raises `UnsupportedDtype`, `NotAnArray`, or `EmptyGroup` if nothing is left.
    """
    groups: list[ParamGroup] = []
    tensors: list[list[torch.Tensor]] = []
    first = 0
    for number, given in enumerate(inner.param_groups):
        own = distinct_name(str(given.get(NAME) or f"group{number}"), [group.name for group in groups])
        members = list(given[PARAMS])
        wanted = given.get(PARAM_NAMES) or [f"param{index}" for index in range(first, first + len(members))]
        names = parameter_names(own, map(str, wanted), [name for group in groups for name in group.names])
        first += len(members)
        trained = [(name, tensor) for name, tensor in zip(names, members, strict=True) if tensor.requires_grad]
        for name, tensor in trained:
            check_parameter(name, tensor)
            check_dtype(name, served_dtype(tensor))
        if trained:
            arrays = [np.array(as_array(tensor), order="C") for _, tensor in trained]
            groups.append(ParamGroup(own, [name for name, _ in trained], arrays))
            tensors.append([tensor for _, tensor in trained])
    if not groups:
        raise EmptyGroup(what="the parameters of the inner optimizer that require a gradient")
    return groups, tensors
