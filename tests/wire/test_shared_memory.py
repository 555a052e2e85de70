from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from streamwsi.memory import BEGIN, CACHE_LINE
from streamwsi.wire import shared_memory
from streamwsi.wire.shared_memory import SharedSlots, SlotsError, SlotsSpec, make_slots, reserve_slots

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="shared memory is for POSIX")


@pytest.fixture
def spec() -> Iterator[SlotsSpec]:
    made = make_slots(3, 10_000)
    reserve_slots(made)
    yield made
    os.close(made.descriptor)


def test_what_one_process_writes_another_reads(spec: SlotsSpec) -> None:
    slots = SharedSlots(spec)
    slots.slot(1)[:5] = range(5)
    code = (
        "import sys; from streamwsi.wire.shared_memory import *;"
        f"slots = SharedSlots(SlotsSpec({spec.descriptor}, {spec.count}, {spec.slot_bytes}));"
        "print(slots.slot(1)[:5].tolist()); slots.slot(2)[:] = 7"
    )
    done = subprocess.run([sys.executable, "-c", code], pass_fds=[spec.descriptor], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4]"
    assert np.all(slots.slot(2) == 7) and not slots.slot(0).any()


def test_slots_are_as_large_as_asked_for_and_do_not_overlap(spec: SlotsSpec) -> None:
    slots = SharedSlots(spec)
    for number in range(3):
        assert len(slots.slot(number)) == slots.room_bytes >= 10_000
        slots.slot(number)[...] = number
    assert [slots.slot(number).max() for number in range(3)] == [slots.slot(number).min() for number in range(3)] == [0, 1, 2]
    for number in (-1, 3):
        with pytest.raises(IndexError, match=f"there is no slot {number}"):
            slots.slot(number)


def test_whole_pages_are_room_for_as_much_and_begin_where_pixels_should() -> None:
    spec = make_slots(2, 3 * mmap.PAGESIZE)
    slots = SharedSlots(spec)
    os.close(spec.descriptor)
    assert slots.room_bytes >= 3 * mmap.PAGESIZE
    assert {slots.slot(number).__array_interface__["data"][0] % CACHE_LINE for number in range(2)} == {BEGIN}


@pytest.mark.parametrize("view", [lambda a: a[10:20], lambda a: a[:60].reshape(4, 5, 3)[1:, 2], lambda a: memoryview(a)[3:]])
def test_whoever_holds_a_view_holds_the_slot(spec: SlotsSpec, view) -> None:
    slot = SharedSlots(spec).slot(0)
    alive, held = weakref.ref(slot), view(slot)
    del slot
    gc.collect()
    assert alive() is not None
    del held
    assert alive() is None


def test_the_memory_has_no_name(spec: SlotsSpec) -> None:
    target = os.readlink(f"/proc/self/fd/{spec.descriptor}")
    assert target.endswith("(deleted)")
    assert not [name for name in os.listdir("/dev/shm") if "streamwsi" in name]


def test_all_of_it_is_had_at_once(spec: SlotsSpec) -> None:
    assert os.fstat(spec.descriptor).st_blocks * 512 >= spec.count * spec.slot_bytes


def test_more_than_is_free_is_refused_and_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SlotsError, match=r"MB are more than half of the \d+ MB that are free"):
        make_slots(1000, 1 << 40)
    assert os.listdir("/proc/self/fd") == before


def test_what_the_system_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "from streamwsi.wire.shared_memory import *; import os; before = os.listdir('/proc/self/fd')\n"
        "try: make_slots(4, 1 << 20)\n"
        "except SlotsError as error: print(error, os.listdir('/proc/self/fd') == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4 MB cannot be had: File too large True"


def test_without_memfd_a_file_whose_name_is_gone_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    spec = make_slots(2, 5000)
    reserve_slots(spec)
    try:
        assert os.readlink(f"/proc/self/fd/{spec.descriptor}").startswith("/dev/shm/")
        assert os.fstat(spec.descriptor).st_nlink == 0
        slots = SharedSlots(spec)
        slots.slot(1)[...] = 9
        assert slots.slot(1).sum() == 9 * slots.room_bytes
    finally:
        os.close(spec.descriptor)


def test_without_memfd_a_folder_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    there = os.statvfs("/dev/shm")
    small = os.statvfs_result((*there[:4], 10, *there[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(SlotsError, match="/dev/shm has 0 MB left, 4 are needed"):
        make_slots(4, 1 << 20)


def test_more_than_half_of_what_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "free_memory_bytes", lambda: 20_000_000)
    with pytest.raises(SlotsError, match="11 MB are more than half of the 20 MB that are free"):
        make_slots(1, 11_000_000)
