"""`python -m optd.ctl` is `optctl`."""

from optd.ctl.app import main

main()
