"""Options that every group has, whatever its algorithm: declared here, added to those of the algorithm."""

from optd_server.optim.option import Option

GROUP_OPTIONS: tuple[Option, ...] = ()
