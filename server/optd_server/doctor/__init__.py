"""`optctl doctor`: looks at a data directory that no server has, and says what a server would recover from it.

`examination.py` reads and returns values, `repair.py` cuts off torn tails, and `__main__.py` is the program that
`optctl` starts, which prints a JSON document. How it is shown to people is the business of `optctl`. Nothing here reads
the format of a file: that is done by `durability`. Open `examination.py` first.
"""
