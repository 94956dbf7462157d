"""Memory of output arrays is used again: never while somebody holds it, never beyond the life of its pool."""

import gc
import sys
import threading

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers import machine
from qtransformers.kernels import cpu
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

LARGE = 1 << 16  # values; a quarter of a megabyte
KEPT = 64 << 20  # bytes a pool keeps at most


def norm(n, value=1.0):
    return cpu.rms_norm(np.full((1, n), value, np.float32), np.full(n, value, np.float32), 0.0)


def address(a):
    return a.__array_interface__["data"][0]


def test_an_array_takes_the_memory_of_one_let_go():
    with cpu.Pool(1):
        first = norm(LARGE)
        where = address(first)
        del first
        assert address(norm(LARGE)) == where
        assert address(norm(LARGE - 100)) == where, "a little less fits too"
        small = norm(LARGE // 2)
        assert address(small) != where, "half would waste the other half"


def test_what_is_held_stays_as_it_was():
    with cpu.Pool(2):
        held = [norm(LARGE, value) for value in (1.0, 2.0, 3.0)]
        views = [held[0][:, :10], held[1].reshape(2, -1)]
        assert len({address(a) for a in held}) == 3
        del held
        more = [norm(LARGE, value) for value in (4.0, 5.0, 6.0)]
        np.testing.assert_array_equal(views[0], 1)
        np.testing.assert_array_equal(views[1], 2)
        for value, a in zip((4.0, 5.0, 6.0), more, strict=True):
            np.testing.assert_array_equal(a, value)


def test_arrays_outlive_their_pool_and_threads():
    kept = []

    def work():
        with cpu.Pool(1):
            kept.extend(norm(LARGE, value) for value in (1.0, 2.0))
            norm(LARGE)  # spare when the pool goes

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect()
    np.testing.assert_array_equal(kept[0], 1)
    np.testing.assert_array_equal(kept[1], 2)
    kept.clear()
    np.testing.assert_array_equal(norm(LARGE, 3.0), 3)


def test_arrays_are_aligned_and_empty_ones_exist():
    with cpu.Pool(1):
        for n in (1, 3, LARGE, LARGE + 1):
            assert address(norm(n)) % 64 == 0
        assert cpu.rms_norm(np.empty((0, 5), np.float32), np.ones(5, np.float32), 0.0).shape == (0, 5)


def resident():
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096
    except OSError:
        pytest.skip("no /proc/self/statm here")


def test_a_pool_keeps_64_mib_at_most_and_gives_them_back():
    before = resident()
    n = 4 << 20  # 16 MiB each
    with cpu.Pool(1):
        arrays = [norm(n) for _ in range(8)]
        del arrays
        assert resident() - before < KEPT + (24 << 20)
    gc.collect()
    assert resident() - before < 24 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_what_a_product_packs_stays_with_the_pool_not_with_the_thread():
    """Each of four threads packs 27 MB of a prompt, in turn, and lives on: they had kept 27 MB each."""
    kind = BY_NAME["Q4_0"]
    w = cpu.bind(QTensor("w", kind, (8, 8192), random_blocks(kind, 8 * 8192 // 32)), "fast")
    x, over, pool, grown = np.ones((2048, 8192), np.float32), threading.Event(), cpu.Pool(2), []

    def work(done):
        with pool:
            cpu.linear(x, w)
        done.set()
        over.wait()

    threads = []
    for _ in range(4):
        done = threading.Event()
        threads.append(threading.Thread(target=work, args=(done,)))
        threads[-1].start()
        assert done.wait(60)
        grown.append(machine.resident())
    over.set()
    for thread in threads:
        thread.join()
    assert grown[-1] - grown[0] < 20 << 20
