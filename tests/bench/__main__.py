"""`python -m bench`, with the folder `tests` on the path: what `make bench` runs."""

import sys

# Processes that rows start import this module again, under another name.
if __name__ == "__main__":
    from bench.command import main

    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
