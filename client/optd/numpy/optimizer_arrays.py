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
        """The current weights in the structure of the params; for groups a list with what "params" was of each.

        Leaves are those of `weights`. After `add_param_group` it is a list for groups, too.
        """
        groups = self._registration.groups
        made = [
            trees.rebuild(group.outline, iter(row)) for group, row in zip(groups, self._current_leaves(), strict=True)
        ]
        return made if self._in_groups else made[0]

    @property
    def weights(self) -> dict[str, Any]:
        """The current weights by parameter name: the arrays of params, or what takes their place (see `params`).

        With `zero_copy`, where the session shares memory with the server: arrays that cannot be written to, and that
        hold these weights until the next step or pull, whatever other workers do. Take them from here anew after each;
        what is to outlive that, copy. After the session is closed they stay as they are.
        """
        groups = self._registration.groups
        return {
            name: leaf
            for group, row in zip(groups, self._current_leaves(), strict=True)
            for name, leaf in zip(group.names, row, strict=True)
        }

    def _current_leaves(self) -> list[list[Any]]:
        """The weights by group and place as their owner sees them; the same ones until the next step or pull."""
        if self._leaves is None:
            registration = self._registration
            self._leaves = [
                [_leaf(*each) for each in zip(group.renewals, group.arrays, row, strict=True)]
                for group, row in zip(registration.groups, registration.weights, strict=True)
            ]
        return self._leaves

    def _check_arrays(self) -> None:
        """Raises what keeps weights from being written to the arrays, before anything changes anywhere."""
        self._registered.check(self._registration.groups, self.param_groups)

    @contextmanager
    def _receiving(self) -> Iterator[Registration]:
        """The registration, for a call that brings weights. After one that fails, changes are changes still."""
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
        """Arrays to put or add up gradients in, by parameter name, for a `step()` without arguments; zeros at first.

        An entry may be replaced by another array, or by None where a parameter has no gradient.

        With `zero_copy`, where the session shares memory with the server, they lie there. After a step that nobody
        knows the fate of, they have moved: take them from here again.
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
        """Forgets `gradients`, or with `set_to_none=False` fills them with zeros."""
        if set_to_none:
            self._gradients = None
        else:
            for gradient in self.gradients.values():
                if gradient is not None:  # which says that there is none
                    gradient.fill(0)

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """For a call that sends gradients: where its fate is unknown, the server may still read them."""
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
                return self._gradient_rows  # which were made to fit
        return read_gradients(gradients, self._registration.groups, in_groups=self._in_groups)


def _leaf(renew: Renew | None, own: Array, array: Array) -> Any:
    """What the owner of a parameter sees of its weights, which lie in `array`."""
    if renew is not None:
        return renew(array)
    if array is own:
        return own
    view = array.view()
    view.flags.writeable = False
    return view
