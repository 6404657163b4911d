"""The RPCs over a connection, in plain values: one file for each service of the contract.

Nothing here retries or knows sessions, and nothing here knows gRPC. Open `jobs` first: the others are of its kind.
"""
