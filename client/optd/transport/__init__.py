"""How calls reach a server: a seam of four calls, what implements it, the RPCs over it, and the lanes of numbers.

Nothing here retries or knows sessions, and nothing else in the client knows gRPC or generated messages. Open
`connection` first, which is the seam, then `server_calls`.
"""
