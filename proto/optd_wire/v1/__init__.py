"""Generated from proto/optd/v1 by proto/generate.py; not edited by hand."""
