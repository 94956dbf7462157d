"""Bodies on their way in."""

import gc
import socket
import tracemalloc

import httpx2 as httpx


def test_bodies_that_end_amid_leave_nothing(served):
    """Whether or not the collector runs, which a server lets run rarely."""
    url, _ = served
    host, port = url.removeprefix("http://").split(":")
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n"

    def broken_off():
        with socket.create_connection((host, int(port))) as s:
            s.sendall(head + bytes(3_000_000))
            s.shutdown(socket.SHUT_WR)
            while s.recv(1 << 16):
                pass

    broken_off()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(8):
            broken_off()
        assert httpx.get(f"{url}/health").status_code == 200
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
        assert tracemalloc.get_traced_memory()[1] > 3_000_000, "they were read"
    finally:
        tracemalloc.stop()
        gc.enable()
