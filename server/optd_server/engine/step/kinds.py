"""Checks that the algorithms of the groups support the kind of a push's gradients: whole parameters, or rows."""

from collections.abc import Iterable, Mapping

import numpy as np

from optd_server.engine.options.by_name import distinct, match
from optd_server.engine.options.groups import Groups
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.store.ledger import Presence
from optd_server.store.rows import RowPlace
from optd_wire.errors import RowsNeedZero, RowsNotTaken, RowsOnly
from optd_wire.values import Options


def check_gradients(
    groups: Groups, options: Mapping[int, Options], tables: Iterable[RowPlace], whole: Presence
) -> None:
    """Raises `RowsNotTaken`, `RowsNeedZero` or `RowsOnly` if torch's class would refuse such gradients.

    `options` has the new options of the groups whose options are about to change. `tables` are the parameters that come
    in rows, and `whole` tells which parameters come whole.
    """
    for table in tables:
        algorithm = groups.algorithms[table.group]
        rule = algorithm.rows
        if rule is None:
            takers = ", ".join(each.name for each in ALGORITHMS.values() if each.rows is not None)
            raise RowsNotTaken(algorithm=algorithm.name, parameter=table.name, takers=takers)
        given = options.get(table.group, groups.options[table.group].options)
        (given,) = distinct(algorithm, given, match(given, [table.name]))
        for option in rule.zero:
            if given[option] != 0:
                raise RowsNeedZero(algorithm=algorithm.name, option=option, parameter=table.name, value=given[option])
    for number, index, algorithm in groups.rows_only:
        if number < len(whole) and whole[number][index].any():
            extent = groups.extents[number]
            name = extent.parameters(extent.slabs[index])[int(np.argmax(whole[number][index]))].name
            raise RowsOnly(algorithm=algorithm.name, parameter=name)
