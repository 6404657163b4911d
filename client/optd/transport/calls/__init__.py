"""The RPCs over a connection, in plain values: one file for each service of the contract.

Nothing here retries, and nothing here knows sessions or gRPC. Open `jobs` first: the other files have its form.
"""
