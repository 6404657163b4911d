"""Generated from proto/optd/storage/v1 by proto/generate.py; not edited by hand."""
