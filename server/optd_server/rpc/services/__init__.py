"""The services of the contract, one file each. A method reads its messages, calls the engine and builds the answer.

Decisions belong in `engine`, what all calls share in the files of `rpc`. Open `training.py` first: it has the push, the
pull and the step.
"""
