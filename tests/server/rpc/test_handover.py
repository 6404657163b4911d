"""The sockets of a folder: which of them a server that starts removes."""

import os
import socket
import time
from pathlib import Path

import pytest

from optd_server.rpc.handover import UNFINISHED_SECONDS, remove_dead


def bound(path: Path) -> None:
    """A socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.bind(str(path))


@pytest.mark.parametrize(("age", "stays"), [(0, True), (UNFINISHED_SECONDS + 10, False)])
def test_what_another_server_is_about_to_listen_on_stays_for_a_while(tmp_path, age, stays):
    path = tmp_path / "optd-a.new"
    bound(path)
    then = time.time() - age
    os.utime(path, (then, then))
    remove_dead(tmp_path)
    assert path.exists() == stays


def test_a_socket_that_gets_its_name_meanwhile_is_no_reason_not_to_start(tmp_path, monkeypatch):
    """Two servers start at once: what one of them has seen of the other is there no more."""
    for name in ("optd-a.new", "optd-b.sock"):
        bound(tmp_path / name)
    lstat = Path.lstat

    def renamed_before(path):
        if path.suffix == ".new":
            path.rename(path.with_suffix(".sock"))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", renamed_before)
    remove_dead(tmp_path)
    assert not (tmp_path / "optd-b.sock").exists()
