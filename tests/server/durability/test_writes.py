"""9: a write that is cut short goes on behind what it has written, and one that fails leaves the log as it was."""

import errno
import os
import random

import numpy as np
import pytest

from optd_server.durability.files import write_all, write_file
from optd_server.durability.log.scan import Tail, records
from optd_server.durability.log.segment import Segment
from optd_server.durability.snapshots.tensors import file_checksum, pieces_of, write
from optd_wire.checkpoint_format import checksum_of


@pytest.fixture
def short(monkeypatch):
    """Makes `os.pwritev` write no more than some bytes at a time, as a disk that is nearly full does."""
    real = os.pwritev
    draw = random.Random(9)
    sizes: list[int] = []

    def pwritev(descriptor, buffers, offset):
        whole = b"".join(bytes(each) for each in buffers)
        assert len(buffers) <= 512
        written = real(descriptor, [whole[: draw.randint(1, 100)]], offset)
        sizes.append(written)
        return written

    monkeypatch.setattr(os, "pwritev", pwritev)
    return sizes


def test_9_parts_of_all_sizes_are_written_whole(tmp_path, short):
    draw = random.Random(1)
    parts = [draw.randbytes(draw.choice([0, 1, 3, 8, 64, 100, 1000])) for _ in range(700)]
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        end = write_all(descriptor, parts, 5)
    finally:
        os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"".join(parts)
    assert end == 5 + sum(map(len, parts))
    assert len(short) > 700


def test_9_a_log_a_file_and_a_snapshot_are_whole(tmp_path, short):
    events = [b"", b"one", b"x" * 999]
    segment = Segment(tmp_path, first_event=1, version=0, chain=0, size=8192)
    for number, event in enumerate(events, 1):
        segment.append([event[:2], event[2:]], event=number, version=number, synced=0)
    segment.finish()
    assert [bytes(record.data) for record in records(tmp_path, Tail())] == events
    write_file(tmp_path / "file", b"y" * 999)
    assert (tmp_path / "file").read_bytes() == b"y" * 999
    pieces = pieces_of({"w": np.arange(500.0), "v": np.ones(3, np.float32)})
    write(tmp_path / "tensors", pieces)
    assert file_checksum(tmp_path / "tensors") == checksum_of(pieces)


def test_9_an_event_that_was_half_written_when_the_disk_was_full_is_not_there(tmp_path, monkeypatch):
    """The next event takes its place."""
    segment = Segment(tmp_path, first_event=1, version=0, chain=0, size=8192)
    segment.append([b"first"], event=1, version=1, synced=0)
    real, calls = os.pwritev, []

    def pwritev(descriptor, buffers, offset):
        if calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        calls.append(offset)
        return real(descriptor, [b"".join(bytes(each) for each in buffers)[:100]], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", pwritev)
        with pytest.raises(OSError, match="No space"):
            segment.append([b"x" * 500], event=2, version=2, synced=1)
    tail = Tail()
    assert [bytes(record.data) for record in records(tmp_path, tail)] == [b"first"]
    assert tail.torn_bytes == 100
    segment.append([b"second"], event=2, version=2, synced=1)
    segment.append([b"third"], event=3, version=3, synced=1)
    segment.finish()
    tail = Tail()
    assert [bytes(record.data) for record in records(tmp_path, tail)] == [b"first", b"second", b"third"]
    assert tail.torn_bytes == 0


def test_9_a_write_of_nothing_is_an_error_and_no_endless_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        write_file(tmp_path / "file", b"x")
