"""The log on disk: torn tails are cut off, and damage is never taken for one."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults.processes import wait_for

from optd_server.durability.data_dir import JobFolder
from optd_server.durability.log import framing
from optd_server.durability.log.scan import Tail, records, segment_paths
from optd_server.durability.log.segment import Segment
from optd_server.durability.log.syncer import Syncer
from optd_server.durability.log.writer import LogWriter
from optd_server.durability.problems import Damage, NewerFormat
from optd_server.durability.recovery import Recovered, prepare_log

EVENTS = [b"one", b"", b"a third event" * 7, bytes(range(256)), b"x" * 1000]


def read(folder: Path, after: int = 0) -> tuple[list[bytes], Tail]:
    tail = Tail()
    return [bytes(record.data) for record in records(folder, tail, after=after)], tail


def written(folder: Path, *, synced: int = 0, events: list[bytes] = EVENTS, size: int = 8192) -> Path:
    segment = Segment(folder, first_event=1, version=0, chain=0, size=size)
    for number, event in enumerate(events, 1):
        segment.append([event], event=number, version=number, synced=min(synced, number - 1))
    segment.sync()
    return segment.path


def ends(path: Path) -> list[int]:
    """Where each record ends."""
    found, position = [], framing.HEADER
    for event in EVENTS:
        position += framing.HEADER + framing.aligned(len(event))
        found.append(position)
    return found


def whole_events(length: int) -> int:
    """How many events are whole in the first bytes of a segment. The padding behind an event need not be there."""
    position, count = framing.HEADER, 0
    for event in EVENTS:
        count += position + framing.HEADER + len(event) <= length
        position += framing.HEADER + framing.aligned(len(event))
    return count


def test_what_was_written_is_read(tmp_path):
    written(tmp_path)
    events, tail = read(tmp_path)
    assert events == EVENTS
    assert (tail.event, tail.version, tail.torn_bytes) == (5, 5, 0)
    assert read(tmp_path, after=3)[0] == EVENTS[3:]


def test_5_a_log_cut_at_any_byte_has_the_events_before_it(tmp_path):
    path = written(tmp_path)
    whole, stops = path.read_bytes(), ends(path)
    for length in range(framing.HEADER, stops[-1] + 1):
        path.write_bytes(whole[:length])
        events, tail = read(tmp_path)
        # The padding behind an event need not be there.
        count = whole_events(length)
        assert events == EVENTS[:count], length
        assert tail.event == count
        # What is zero at the end of a file was only reserved, as far as anyone can tell.
        cut = whole[stops[count - 1] if count else framing.HEADER : length].rstrip(b"\0")
        assert tail.torn_bytes == len(cut)


def test_5_a_tail_that_was_reserved_and_never_written_is_no_damage(tmp_path):
    path = written(tmp_path)
    whole, stops = path.read_bytes(), ends(path)
    for length in range(framing.HEADER, stops[-1], 7):
        path.write_bytes(whole[:length].ljust(len(whole), b"\0"))
        assert read(tmp_path)[0] == EVENTS[: whole_events(length)]


@given(st.integers(0, 7), st.data())
@settings(deadline=None, max_examples=200)
def test_6_a_flipped_bit_in_a_synced_event_is_damage_with_its_place(tmp_path_factory, bit, data):
    folder = tmp_path_factory.mktemp("log")
    path = written(folder, synced=len(EVENTS))
    whole, stops = bytearray(path.read_bytes()), ends(path)
    # The last record says that all before it are synced; of itself it cannot say so.
    position = data.draw(st.integers(framing.HEADER, stops[-2] - 1))
    whole[position] ^= 1 << bit
    path.write_bytes(whole)
    starts = [framing.HEADER, *stops]
    padding = [
        range(start + framing.HEADER + len(event), stop)
        for start, event, stop in zip(starts, EVENTS, stops, strict=False)
    ]
    if any(position in each for each in padding):
        assert read(folder)[0] == EVENTS
        return
    with pytest.raises(Damage) as found:
        read(folder)
    assert found.value.path == path
    assert found.value.offset == max(start for start in starts if start <= position)


def test_6_damage_to_events_that_were_never_synced_is_a_torn_tail(tmp_path):
    path = written(tmp_path, synced=2)
    whole, stops = bytearray(path.read_bytes()), ends(path)
    whole[stops[3] - 10] ^= 1
    path.write_bytes(whole)
    events, tail = read(tmp_path)
    assert events == EVENTS[:3]
    assert tail.torn_bytes == stops[4] - stops[2]


def test_damage_to_the_header_of_a_segment_is_told(tmp_path):
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    for position in range(48):
        changed = bytearray(whole)
        changed[position] ^= 1
        if position in range(12, 16):  # unused
            continue
        path.write_bytes(changed)
        with pytest.raises((Damage, NewerFormat)):
            read(tmp_path)


def test_12_a_newer_format_is_refused_with_both_versions(tmp_path, monkeypatch):
    written(tmp_path)
    header = framing.SegmentHeader(salt=1, first_event=1, first_version=0, chain=0, format=9)
    path = segment_paths(tmp_path)[0]
    path.write_bytes(framing.segment_header(header)[0])
    with pytest.raises(NewerFormat, match="has format 9, and this version of optd reads formats up to 1"):
        read(tmp_path)


def test_records_of_another_segment_never_pass(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    first, second = written(one), written(other, events=[each.upper() for each in EVENTS])
    stops = ends(first)
    mixed = first.read_bytes()[: stops[1]] + second.read_bytes()[stops[1] :]
    first.write_bytes(mixed)
    assert read(one)[0] == EVENTS[:2]


def test_a_missing_segment_is_damage(tmp_path):
    chain = 0
    for first in (1, 3, 5):
        segment = Segment(tmp_path, first_event=first, version=first - 1, chain=chain, size=4096)
        for event in (first, first + 1):
            segment.append([b"e%d" % event], event=event, version=event, synced=0)
        chain = segment.chain
        segment.finish()
    assert read(tmp_path)[0] == [b"e1", b"e2", b"e3", b"e4", b"e5", b"e6"]
    assert read(tmp_path, after=4)[0] == [b"e5", b"e6"]
    segment_paths(tmp_path)[1].unlink()
    with pytest.raises(Damage, match="events after 2 are missing"):
        read(tmp_path)


def test_a_torn_segment_before_the_last_is_damage(tmp_path):
    first = written(tmp_path)
    Segment(tmp_path, first_event=6, version=5, chain=0, size=4096).finish()
    whole = first.read_bytes()
    first.write_bytes(whole[: ends(first)[4] - 1])
    with pytest.raises(Damage):
        read(tmp_path)


# The writer


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("leaves", ["a header", "a torn record", "a mark"])
def test_2_a_log_goes_on_behind_a_segment_that_holds_no_event(tmp_path, writers, earlier, leaves):
    """A server may end after it has made a segment, and before the first event is in it. The next one has its name."""
    chain = 0
    if earlier:
        first = Segment(tmp_path, first_event=1, version=0, chain=0, size=4096)
        for event in range(1, earlier + 1):
            first.append([b"old %d" % event], event=event, version=event, synced=0)
        first.finish()
        chain = first.chain
    empty = Segment(tmp_path, first_event=earlier + 1, version=earlier, chain=chain, size=4096)
    if leaves == "a mark":
        empty.mark(event=earlier, version=earlier, synced=earlier)
    elif leaves == "a torn record":
        empty.append([b"x" * 100], event=earlier + 1, version=earlier + 1, synced=0)
        os.ftruncate(empty.descriptor, empty.end - 50)
    os.close(empty.descriptor)
    tail = read(tmp_path)[1]
    assert tail.event == earlier
    prepare_log(JobFolder(tmp_path.parent, "j", ""), Recovered(None, tail, []))  # type: ignore[arg-type]

    async def go_on():
        writer = writers.make(tail)
        await writer.append([b"new"], earlier + 1)
        writer.close()

    asyncio.run(go_on())
    assert read(tmp_path)[0] == [*(b"old %d" % event for event in range(1, earlier + 1)), b"new"]


class Writers:
    def __init__(self, folder: Path, *, commits: bool = True, interval: float = 60.0) -> None:
        self.folder = folder
        self.problems: list[BaseException] = []
        self.executor = ThreadPoolExecutor(2)
        self.syncer = Syncer(interval, self.problems.append)
        self.commits = commits

    def make(self, tail: Tail | None = None) -> LogWriter:
        return LogWriter(
            self.folder,
            tail or Tail(),
            syncer=self.syncer,
            executor=self.executor,
            commits=self.commits,
            failed=self.problems.append,
        )

    def close(self) -> None:
        self.syncer.close()
        self.executor.shutdown()


@pytest.fixture
def writers(tmp_path):
    made = Writers(tmp_path)
    yield made
    made.close()
    assert not made.problems


def test_a_writer_goes_on_where_another_has_ended(tmp_path, writers):
    async def first():
        writer = writers.make()
        for version in range(1, 4):
            assert await writer.append([b"event %d" % version], version) == version
        await writer.wait(3)
        assert writer.synced_version == 3
        writer.close()

    async def second(tail):
        writer = writers.make(tail)
        await writer.append([b"another"], 3)
        await writer.append([b"z" * (3 << 20)], 4)  # larger than a segment
        await writer.append([b"small"], 5)
        await writer.wait(6)
        assert (writer.synced_event, writer.synced_version) == (6, 5)
        writer.close()

    asyncio.run(first())
    asyncio.run(second(read(tmp_path)[1]))
    events, tail = read(tmp_path)
    assert events == [b"event 1", b"event 2", b"event 3", b"another", b"z" * (3 << 20), b"small"]
    assert tail.version == 5


def test_an_event_that_was_taken_back_is_not_there(tmp_path, writers):
    async def play():
        writer = writers.make()
        await writer.append([b"good"], 1)
        await writer.append([b"bad"], 2)
        writer.take_back(1)
        assert (writer.event, writer.version) == (1, 1)
        assert read(tmp_path)[0] == [b"good"]
        assert await writer.append([b"better"], 2) == 2
        await writer.wait(2)
        assert writer.synced_version == 2
        writer.close()

    asyncio.run(play())
    assert read(tmp_path)[0] == [b"good", b"better"]


def test_an_event_that_was_synced_and_marked_can_be_taken_back(tmp_path, writers):
    """A step that fails after a while: the log has been synced meanwhile, and says so."""

    async def play():
        writer = writers.make()
        await writer.append([b"good"], 1)
        await writer.append([b"bad" * 1000], 2)
        await writer.wait_synced(2)
        await asyncio.to_thread(writer.sync)  # as at the next tick
        assert writer._marked == 2
        writer.take_back(1)
        events, tail = read(tmp_path)
        assert events == [b"good"] and tail.torn_bytes <= 4096
        await writer.append([b"better"], 2)
        await writer.wait_synced(2)
        writer.close()

    asyncio.run(play())
    assert read(tmp_path)[0] == [b"good", b"better"]


def test_a_segment_that_holds_no_event_makes_way_for_the_next_one_of_its_name(tmp_path, writers):
    """Its only event was taken back, or was being written when the server was killed."""
    first, large = b"x" * (1 << 17), b"z" * (1 << 20)

    async def play(tail, *, is_killed):
        writer = writers.make(tail)
        await writer.append([first], 1)
        await writer.append([first], 2)  # in a segment of its own
        writer.take_back(1)
        assert len(segment_paths(tmp_path)) == 2
        if is_killed:
            return
        await writer.append([large], 2)  # has no room there
        writer.close()

    asyncio.run(play(None, is_killed=True))
    events, tail = read(tmp_path)
    assert events == [first]
    log = SimpleNamespace(log=tmp_path)
    prepare_log(log, SimpleNamespace(tail=tail))

    async def go_on():
        writer = writers.make(tail)
        await writer.append([large], 2)
        writer.close()

    asyncio.run(go_on())
    assert read(tmp_path)[0] == [first, large]
    for path in segment_paths(tmp_path):
        path.unlink()
    asyncio.run(play(None, is_killed=False))
    assert read(tmp_path)[0] == [first, large]


def test_one_sync_serves_all_that_waits(tmp_path, writers, monkeypatch):
    calls = []
    real = __import__("os").fdatasync
    monkeypatch.setattr("os.fdatasync", lambda fd: (calls.append(fd), real(fd)))

    async def play():
        writer = writers.make()
        await writer.append([b"first"], 1)  # makes the segment
        await writer.wait(1)
        calls.clear()
        for version in range(2, 102):
            await writer.append([b"event"], version)
        await asyncio.gather(*(writer.wait(event) for event in range(2, 102)))
        assert writer.synced_event == 101
        writer.close()

    asyncio.run(play())
    assert 1 <= len(calls) <= 2


def test_a_log_that_rests_says_that_it_is_synced(tmp_path):
    """So that damage to its last event cannot pass for a torn one."""
    writers = Writers(tmp_path, commits=False, interval=0.02)

    async def play():
        writer = writers.make()
        await writer.append([b"the last event"], 1)
        await asyncio.to_thread(
            wait_for, lambda: segment_paths(tmp_path)[0].read_bytes().count(framing.RECORD_MAGIC) == 2, "a mark"
        )

    asyncio.run(play())
    writers.close()
    path = segment_paths(tmp_path)[0]
    assert read(tmp_path)[0] == [b"the last event"]
    whole = bytearray(path.read_bytes())
    whole[framing.HEADER + framing.HEADER + 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(Damage, match="event 1 was synced"):
        read(tmp_path)
