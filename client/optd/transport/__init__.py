"""How calls reach a server: a seam of four calls, what implements it, the RPCs over it, and the lanes of numbers.

Nothing here retries or knows sessions; gRPC and generated messages are known here and nowhere else in the client. Open
`connection` first, which is the seam, then `server_calls`.
"""
