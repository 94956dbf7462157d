"""Every kernel compiled ahead of time for cards of three generations: what it takes, and that nothing spills.

Tiles of every type are slow: `make test-tiles`.
"""

from pathlib import Path

import pytest

import ahead

pytest.importorskip("torch")
pytest.importorskip("triton")

SLOW = ("ahead_tiles",)
FILES = [
    pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else (), id=path.stem)
    for path in sorted(Path(__file__).parent.glob("ahead_*.py"))
]


@pytest.fixture(scope="module", params=FILES)
def kernels(request):
    return ahead.compiled(request.param)


def test_kernels_fit_and_do_not_spill(kernels):
    assert {k["arch"] for k in kernels} >= set(ahead.ARCHS)
    for k in kernels:
        what = {key: k[key] for key in ("call", "kernel", "arch", "registers", "spilled", "shared", "limits")}
        allowed = k["limits"].get("spilled", 0)
        assert k["spilled"] <= allowed, what
        assert k["registers"] <= k["limits"]["registers"], what
        assert k["shared"] <= k["limits"]["shared"], what
        assert allowed or not {"LDL", "STL"} & {op.split(".")[0] for op in k["sass"]}, what


def test_no_product_and_sum_are_rounded_as_one_where_bits_are_promised(kernels):
    for k in kernels:
        if k["kernel"] in k["limits"].get("exact", ()):
            divides = any(op.startswith(("div", "sqrt")) for op in k["ptx"])  # which machine code does by such steps
            alone = ("FFMA2",) if divides else ("FFMA", "DFMA")
            found = [op for op in (*k["ptx"], *k["sass"]) if op.startswith(("fma", *alone))]
            assert not found, (k["call"], k["arch"], found)


def test_reads_and_writes_are_wide_where_they_can_be(kernels):
    for k in kernels:
        stores, loads = ({op for op in k["sass"] if op.startswith(start)} for start in ("STG", "LDG"))
        assert stores == {"STG.E.128"} or not k["limits"].get("writes_wide"), (k["call"], k["arch"], stores)
        assert "LDG.E.128" in loads or not k["limits"].get("reads_wide"), (k["call"], k["arch"], loads)
