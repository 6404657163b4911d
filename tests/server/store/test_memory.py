import ctypes
import fcntl
import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from optd_server.store.memory import Region, readable_by_workers, writable_by_workers

SIZE = 3 * mmap.PAGESIZE


@pytest.fixture(params=["readable_by_workers", "writable_by_workers"])
def region(request):
    return {"readable_by_workers": readable_by_workers, "writable_by_workers": writable_by_workers}[request.param](SIZE)


@pytest.fixture
def descriptor(request):
    """That of a region as its receiver has it: another one for the same memory."""
    return lambda region: os.dup(region.descriptor)


def bytes_of(region):
    return region.array(np.dtype("u1"), 0, SIZE)


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1, 10 * SIZE])
def test_nobody_changes_its_size(region, descriptor, size):
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor(region), size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor(region), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(region.descriptor).st_size == SIZE


def test_it_begins_with_zeros(region):
    assert not bytes_of(region).any()


def test_what_is_received_is_written_by_others(descriptor):
    region = writable_by_workers(SIZE)
    mapped = mmap.mmap(descriptor(region), SIZE)
    mapped[5] = 7
    assert bytes_of(region)[5] == 7


def test_what_is_published_nobody_else_writes_to(descriptor):
    region = readable_by_workers(SIZE)
    theirs = descriptor(region)
    with pytest.raises(PermissionError):
        mmap.mmap(theirs, SIZE)
    with pytest.raises(PermissionError):
        os.pwrite(theirs, b"x", 0)
    again = os.open(f"/proc/self/fd/{theirs}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(again, SIZE)
    with pytest.raises(PermissionError):
        os.pwrite(again, b"x", 0)
    # What may be read may not be made writable later.
    reading = mmap.mmap(theirs, SIZE, prot=mmap.PROT_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    address = np.frombuffer(reading, "u1").ctypes.data
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), mmap.PROT_READ | mmap.PROT_WRITE) == -1
    assert not bytes_of(region).any()


def test_a_private_mapping_of_what_is_published_sees_it_and_changes_only_itself(descriptor):
    region = readable_by_workers(SIZE)
    private = mmap.mmap(descriptor(region), SIZE, flags=mmap.MAP_PRIVATE)
    bytes_of(region)[:] = 3
    assert private[10] == 3
    private[0] = 9
    assert bytes_of(region)[0] == 3
    assert private[0] == 9


def test_it_has_no_name_that_others_find_and_its_descriptor_ends_with_it(region):
    number = region.descriptor
    assert "deleted" in str(Path(f"/proc/self/fd/{number}").readlink())
    assert not os.get_inheritable(number)
    assert os.fstat(number).st_nlink == 0


def test_descriptors_do_not_pile_up():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        readable_by_workers(SIZE)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_arrays_outlive_their_region():
    array = bytes_of(readable_by_workers(SIZE))
    gc.collect()
    array[:] = 1
    assert array.all()


def test_regions_have_numbers_of_their_own():
    assert len({readable_by_workers(8).number, writable_by_workers(8).number, readable_by_workers(8).number}) == 3


@pytest.mark.parametrize("allocate", [Region, readable_by_workers, writable_by_workers])
def test_a_region_may_be_empty(allocate):
    assert allocate(0).array(np.dtype("f4"), 0, 0).size == 0
