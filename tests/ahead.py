"""Kernels compiled ahead of time, without a card: `python ahead.py FILE [ARCH...]` prints what became of FILE's `calls()`.
With N/OF among the arguments, of every OF-th call from the N-th.

`calls(arch)` yields names, functions without arguments, and what their kernels may take: at most `registers` a thread, bytes of
`shared` memory and bytes `spilled` (0); in the kernels named in `exact` no product and sum are rounded as one; where `writes_wide`,
all stores are of 16 bytes a thread, where `reads_wide`, some loads are. The functions call the library on tensors of torch's meta
device; a driver in place of Triton's compiles what is launched for the card asked for, notes it, and runs nothing. This takes a
process of its own, for in that of the tests kernels are interpreted.
"""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Bytes of shared memory that one program may have, by compute capability.
SHARED = {80: 166_912, 86: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
ARCHS = (80, 90, 100)  # unless a file says ARCHS


def compiled(file, *archs):
    """The kernels that the calls of a file launched: a list of dictionaries, as `_facts` makes them, with the call's name."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    n = min(4, os.cpu_count() or 1)

    def share(i):
        command = [sys.executable, __file__, str(file), *map(str, archs), f"{i}/{n}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(n) as threads:
        return list(itertools.chain.from_iterable(threads.map(share, range(n))))


class Driver:
    """A card of the architecture `device`, on which nothing runs."""

    def __init__(self):
        self.arch = 0
        self.loaded = []
        self.utils = self

    def get_current_device(self):
        return self.arch

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED[self.arch], "multiprocessor_count": 132}

    def load_binary(self, name, kernel, shared, device):
        return None, 0, 0, 0, 1024

    def launcher_cls(self, source, metadata):
        return lambda *args: None

    def note(self, module, function, name, files, hash):
        paths = {Path(path).suffix: Path(path) for path in files.values()}
        self.loaded.append(_facts(name, paths))


def _facts(name, paths):
    """Registers, bytes spilled and shared of a kernel, and how often it has which instructions, in PTX and in machine code."""
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    metadata = json.loads(paths[".json"].read_text())
    dump = subprocess.run(
        [tool, "--dump-resource-usage", "-sass", paths[".cubin"]], capture_output=True, text=True, check=True
    ).stdout
    used = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump)}
    ptx = Counter(re.findall(r"^\s+(?:@%p\d+ )?([a-z][\w.:]*) ", paths[".ptx"].read_text(), re.MULTILINE))
    sass = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", dump, re.MULTILINE))
    return {
        "kernel": name, "warps": metadata["num_warps"], "shared": metadata["shared"], "registers": used["REG"],
        "spilled": used["STACK"] + used["LOCAL"], "ptx": ptx, "sass": sass,
    }  # fmt: skip


def main(file, arguments):
    import triton

    driver = Driver()
    triton.runtime.driver.set_active(driver)
    triton.knobs.runtime.kernel_load_start_hook = driver.note
    sys.path.append(str(Path(file).parent))  # one file may take from another
    spec = importlib.util.spec_from_file_location("calls", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    archs = [int(x) for x in arguments if "/" not in x] or getattr(module, "ARCHS", ARCHS)
    part, of = next((map(int, x.split("/")) for x in arguments if "/" in x), (0, 1))
    calls = ((arch, *rest) for arch in archs for rest in module.calls(arch))
    for driver.arch, name, call, limits in itertools.islice(calls, part, None, of):
        driver.loaded = []
        try:
            call()
        except Exception as e:
            raise RuntimeError(f"{name}: not compiled for sm_{driver.arch}") from e
        for facts in driver.loaded:
            print(json.dumps({"call": name, "arch": driver.arch, "limits": limits, **facts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
