"""Regions as a worker maps them: what the server writes is seen, what is written here is not, until one says so."""

import mmap
import os

import numpy as np
import pytest

from optd.transport.shared_region import Region

PAGES = 5
COUNT = PAGES * mmap.PAGESIZE // 4
F4 = np.dtype(np.float32)


class Server:
    """A region, and what the server writes there."""

    def __init__(self):
        self.descriptor = os.memfd_create("test")
        os.ftruncate(self.descriptor, 4 * COUNT)
        self.numbers = np.frombuffer(mmap.mmap(self.descriptor, 4 * COUNT), F4)
        self.numbers[:] = 1

    def region(self, *, shared=False):
        return Region(os.dup(self.descriptor), 4 * COUNT, shared=shared)


@pytest.fixture
def server():
    made = Server()
    yield made
    os.close(made.descriptor)


@pytest.fixture(params=["as it is", "without a look at pages", "an old kernel"])
def blind(request, monkeypatch):
    if request.param == "without a look at pages":
        monkeypatch.setattr(Region, "_has_own_pages", lambda _: True)
    if request.param == "an old kernel":
        monkeypatch.setattr("optd.transport.shared_region._POPULATE_WRITE", 9999)


@pytest.mark.usefixtures("blind")
def test_refresh_gives_up_what_was_written_here(server):
    region = server.region()
    numbers = region.array(F4, 0, COUNT)
    numbers[7], numbers[-1] = 5, 6
    server.numbers[:] = 2
    assert (numbers[7], numbers[8], numbers[-1]) == (5, 1, 6), "a page of one's own shows nothing new"
    region.refresh()
    assert set(numbers) == {2}
    assert set(server.numbers) == {2}
    server.numbers[3] = 9
    region.refresh()
    assert numbers[3] == 9


@pytest.mark.usefixtures("blind")
def test_keep_leaves_all_as_it_is(server):
    region = server.region()
    numbers = region.array(F4, 0, COUNT)
    numbers[7] = 5
    region.keep()
    server.numbers[:] = 2
    assert set(numbers) == {1, 5}
    region.refresh()
    assert set(numbers) == {2}


def test_pages_of_ones_own_are_noticed(server):
    region = server.region()
    numbers = region.array(F4, 0, COUNT)
    assert not region._has_own_pages()
    assert numbers.sum() == COUNT
    assert not region._has_own_pages()
    numbers[COUNT // 2] = 3
    assert region._has_own_pages()
    region.refresh()
    assert not region._has_own_pages()


def test_a_shared_one_is_written_for_both(server):
    numbers = server.region(shared=True).array(F4, 4, 2)
    numbers[:] = 4
    assert server.numbers[:4].tolist() == [1, 4, 4, 1], "and stays mapped as long as the array is there"
