"""The arrays of an optimizer: weights as their owner sees them, and gradients to fill."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np

from optd.exchange.read_gradients import read_gradients
from optd.exchange.row_gradients import GradientsByGroup
from optd.numpy.registered_arrays import RegisteredArrays
from optd.params import trees
from optd.params.array_like import Renew
from optd.params.flat_view import Array
from optd.registration.group_algorithms import check_algorithms
from optd.registration.local_changes import LocalChanges
from optd.registration.registration import Registration
from optd.session.session import Session


class OptimizerArrays:
    """What steps and state have in common; see `optd.numpy.optimizer.Optimizer`."""

    session: Session
    param_groups: list[dict[str, Any]]
    _registration: Registration
    _registered: RegisteredArrays
    _changes: LocalChanges
    _in_groups: bool
    """Whether params were given as groups, or a group was added since."""
    _leaves: list[list[Any]] | None
    _gradients: dict[str, Any] | None
    _gradient_rows: list[list[Array | None]]

    @property
    def params(self) -> Any:
        """The current weights in the structure of the params; for groups a list of the structures of each "params".

        The leaves are those of `weights`. After `add_param_group` this is always a list.
        """
        groups = self._registration.groups
        made = [
            trees.rebuild(group.outline, iter(row)) for group, row in zip(groups, self._current_leaves(), strict=True)
        ]
        return made if self._in_groups else made[0]

    @property
    def weights(self) -> dict[str, Any]:
        """The current weights by parameter name: the arrays of params, or new leaves in their place (see `params`).

        With `zero_copy`, if the session shares memory with the server: read-only arrays that hold these weights until
        the next step or pull, whatever other workers do. Read this property again after each; copy weights that must
        live longer. After the session is closed they keep their values.
        """
        groups = self._registration.groups
        return {
            name: leaf
            for group, row in zip(groups, self._current_leaves(), strict=True)
            for name, leaf in zip(group.names, row, strict=True)
        }

    def _current_leaves(self) -> list[list[Any]]:
        """The weights by group and place as leaves; the same objects until the next step or pull."""
        if self._leaves is None:
            registration = self._registration
            self._leaves = [
                [_leaf(*each) for each in zip(group.renewals, group.arrays, row, strict=True)]
                for group, row in zip(registration.groups, registration.weights, strict=True)
            ]
        return self._leaves

    def _check_arrays(self) -> None:
        """Raises what prevents writing weights to the arrays, before anything changes anywhere."""
        self._registered.check(self._registration.groups, self.param_groups)
        check_algorithms(self._registration.default, self._registration.groups, self.param_groups)

    @contextmanager
    def _receiving(self) -> Iterator[Registration]:
        """The registration, for a call that writes weights. If it fails, unsent changes still count as changes."""
        self._changes.expect()
        unsent: Collection[int] = self._changes.unsent
        try:
            yield self._registration
            unsent = ()
        finally:
            self._leaves = None
            self._changes.note(but=unsent)

    @property
    def gradients(self) -> dict[str, Any]:
        """Arrays to fill with gradients, by parameter name, for a `step()` without arguments; zeros at first.

        An entry may be replaced with another array, or with None if the parameter has no gradient.

        With `zero_copy`, if the session shares memory with the server, they lie in that memory. After a step whose fate
        is unknown they are other arrays: read this property again.
        """
        if self._gradients is None:
            self._gradients = self._new_gradients()
        return self._gradients

    def _new_gradients(self) -> dict[str, Any]:
        registration = self._registration
        rows = registration.shared_gradients() if registration.zero_copy else None
        if rows is None:
            rows = [[np.empty_like(array) for array in group.arrays] for group in registration.groups]
        named = {
            name: array
            for group, row in zip(registration.groups, rows, strict=True)
            for name, array in zip(group.names, row, strict=True)
        }
        for array in named.values():
            array.fill(0)
        self._gradient_rows = [list(row) for row in rows]
        return named

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops `gradients`, or with `set_to_none=False` fills them with zeros."""
        if set_to_none:
            self._gradients = None
        else:
            for gradient in self.gradients.values():
                if gradient is not None:  # None stands for no gradient
                    gradient.fill(0)

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """For a call that sends gradients; copies them if its fate is unknown, as the server may still read them."""
        try:
            yield
        except BaseException:
            if self._gradients is not None and self._registration.zero_copy and self.session.in_doubt:
                self._gradients = {
                    name: None if array is None else array.copy() for name, array in self._gradients.items()
                }
            raise

    def _rows(self, gradients: Any) -> GradientsByGroup:
        if gradients is None:
            gradients = self._gradients or {}
            made = [array for row in self._gradient_rows for array in row]
            if made and len(gradients) == len(made) and all(map(is_, gradients.values(), made)):
                return self._gradient_rows  # made here, so they need no check
        return read_gradients(gradients, self._registration.groups, in_groups=self._in_groups)


def _leaf(renew: Renew | None, own: Array, array: Array) -> Any:
    """The leaf that shows a parameter's weights, which lie in `array`."""
    if renew is not None:
        return renew(array)
    if array is own:
        return own
    view = array.view()
    view.flags.writeable = False
    return view
