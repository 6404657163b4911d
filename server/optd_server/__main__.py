"""`python -m optd_server` is the program `optd`."""

from optd_server.cli import main

main()
