"""The commands of `optctl`, by topic. Each is a function of an `Invocation` and of what its command line says."""
