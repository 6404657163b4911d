"""What the server reports besides its RPCs: its log lines, which `logs.py` formats. Open that file first.

What can be asked over RPC is in `rpc/services/inspection.py`. This folder only sets logging up; each module writes its
own log lines.
"""
