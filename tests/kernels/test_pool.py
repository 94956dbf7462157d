"""The pool of threads: nesting, sharing, sleeping, forking."""

import itertools
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu
from qtransformers.native import lib
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

KIND = BY_NAME["Q8_0"]


@pytest.fixture(scope="module")
def product():
    """A product large enough to wake the pool, and its result on one thread."""
    w = cpu.bind(QTensor("w", KIND, (200, 512), random_blocks(KIND, 200 * 512 // 32)))
    x = np.random.default_rng(0).standard_normal((20, 512), np.float32)
    truth = cpu.linear(x, w)
    return lambda: cpu.linear(x, w), truth


def test_it_says_what_it_is():
    pool = cpu.Pool(3)
    assert (pool.threads, pool.isa) == (3, lib.isa())
    assert [cpu.Pool(1, isa).isa for isa in lib.isas()] == lib.isas()
    assert (lib.isas()[0], lib.isas()[-1]) == (lib.isa(), "generic")


def test_blocks_nest_and_end(product):
    compute, truth = product
    outer, inner = cpu.Pool(3), cpu.Pool(2)
    with outer as entered:
        assert entered is outer
        with inner, inner, outer:
            np.testing.assert_array_equal(compute(), truth)
        np.testing.assert_array_equal(compute(), truth)
    np.testing.assert_array_equal(compute(), truth)


def test_the_innermost_pool_counts(product):
    compute, _ = product

    def bits(*isas):
        pools = [cpu.Pool(1, isa) for isa in isas]
        for p in pools:
            p.__enter__()
        y = compute()
        for p in reversed(pools):
            p.__exit__(None, None, None)
        return y.tobytes()

    generic, best = bits("generic"), bits()
    if lib.isa() == "generic":
        pytest.skip("one instruction set only")
    assert generic != best, "the sums of different instruction sets differ in their last bits"
    assert bits("generic", "") == bits("") == best
    assert bits("", "generic") == generic
    assert bits() == best, "nothing stays behind"


def test_an_error_inside_the_block_leaves_it():
    pool = cpu.Pool(2)
    with pytest.raises(ZeroDivisionError), pool:
        1 / 0
    with pytest.raises(ConfigError, match="had not entered"):
        pool.__exit__(None, None, None)


def test_it_is_left_on_the_thread_that_entered_it():
    pool, errors = cpu.Pool(2), []

    def leave():
        try:
            pool.__exit__(None, None, None)
        except ConfigError as e:
            errors.append(e)

    with pool:
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
    assert len(errors) == 1


@pytest.mark.parametrize("threads, isa, message", [(0, "", "threads is 0"), (-3, "", "threads is -3"), (10**6, "", "threads is 1000000"),  ("2", "", "threads is '2'; expected 1 to 4096"), (2**40, "", "threads is 1099511627776"), (None, "", "threads is None"), (1.5, "", "threads is 1.5"), (1, None, "isa is None; expected the name"), (1, "mmx", "'mmx' is not available here; expected one of .*generic")])  # fmt: skip
def test_what_cannot_be(threads, isa, message):
    with pytest.raises(ConfigError, match=message):
        cpu.Pool(threads, isa)


def test_many_live_and_die(product):
    compute, truth = product
    for threads in range(1, 40):
        with cpu.Pool(threads):
            np.testing.assert_array_equal(compute(), truth)


def test_sleepers_wake(product):
    compute, truth = product
    with cpu.Pool(4):
        for pause in (0, 0.0001, 0.0003, 0.02):
            for _ in range(10):
                time.sleep(pause)
                np.testing.assert_array_equal(compute(), truth)


def test_idle_threads_sleep(product):
    compute, _ = product
    with cpu.Pool(8):
        compute()
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.05


@pytest.mark.parametrize("shared", [True, False], ids=["one pool", "a pool each"])
def test_several_python_threads(product, shared):
    compute, truth = product
    pools = [cpu.Pool(3)] * 4 if shared else [cpu.Pool(i + 1) for i in range(4)]
    wrong = []

    def work(pool):
        for _ in range(50):
            with pool:
                if not np.array_equal(compute(), truth):
                    wrong.append(pool)

    threads = [threading.Thread(target=work, args=(p,)) for p in pools]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_pool_outlives_its_name_while_it_is_entered(product):
    compute, truth = product
    cpu.Pool(3).__enter__().__enter__()
    np.testing.assert_array_equal(compute(), truth)
    done = []
    thread = threading.Thread(target=lambda: (cpu.Pool(3).__enter__(), done.append(compute())))
    thread.start()  # the thread ends inside the block: its pool goes with it
    thread.join()
    np.testing.assert_array_equal(done[0], truth)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_its_threads_anew(product):
    compute, truth = product
    with cpu.Pool(3) as pool:
        compute()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                good = np.array_equal(compute(), truth)
                with cpu.Pool(2), pool:
                    good = good and np.array_equal(compute(), truth)
                del pool
                status = 0 if good else 2
            finally:
                os._exit(status)
        assert waited(child) == 0
        np.testing.assert_array_equal(compute(), truth)


def waited(child, seconds=20):
    """Exit status of a child; None, and an end to it, where it hangs."""
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(ended[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_amid_the_work_of_other_threads():
    """Experts take and return memory of the pool without the interpreter's lock: a child may come while they are at it.

    What they take is too much to be kept, so that most of it goes back to the system, which takes a while.
    """
    width = 32
    up, down = (cpu.bind(QTensor("w", KIND, (2, width, width), random_blocks(KIND, 2 * width * width // 32))) for _ in range(2))  # fmt: skip
    over = threading.Event()

    def compute(n):
        return cpu.moe(np.ones((n, width), np.float32), np.zeros((n, 1), np.int32), np.ones((n, 1), np.float32), up, up, down)  # fmt: skip

    def work(first):
        with pool:
            for n in itertools.cycle(range(first, first + 200_000, 50_000)):
                if over.is_set():
                    break
                compute(n)

    with cpu.Pool(2) as pool:
        truth = compute(1000)
        threads = [threading.Thread(target=work, args=(n,)) for n in (60_000, 80_000, 100_000)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(25):
                child = os.fork()
                if child == 0:
                    os._exit(0 if np.array_equal(compute(1000), truth) else 3)
                assert waited(child) == 0
        finally:
            over.set()
            for thread in threads:
                thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_arrays_of_the_parent_go_in_the_child():
    with cpu.Pool(2) as pool:
        x, ones = np.full((1, 1 << 17), 3, np.float32), np.ones(1 << 17, np.float32)
        held, gone = cpu.rms_norm(x, ones, 0.0), cpu.rms_norm(x, ones, 0.0)
        del gone  # spare in the parent
        child = os.fork()
        if child == 0:
            good = held[0, 0] == 1
            del held
            again = [cpu.rms_norm(x * i, ones, 0.0) for i in range(1, 4)]
            del pool
            os._exit(0 if good and all((a == 1).all() for a in again) else 3)
        assert waited(child) == 0
        assert (held == 1).all() and (cpu.rms_norm(x, ones, 0.0) == 1).all()


def test_the_process_ends_inside_a_block(tmp_path):
    import subprocess

    script = (
        "from qtransformers.kernels import cpu; pools = [cpu.Pool(3) for _ in range(3)]; [p.__enter__() for p in pools]"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
