"""Attention over pages of rows, and what is stored in them, against the twin in float64."""

import os

import numpy as np
import pytest
import torch

from paged import PagedCase
from qtransformers.errors import ConfigError
from qtransformers.kernels import kv, kv_rows, reference
from qtransformers.kernels.triton import attend as gpu
from qtransformers.kernels.triton.kv import store

DEVICE = "cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu"
CODECS = list(kv.CODECS)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes in NumPy
TOLERANCE = {"f32": 1e-5}  # of the largest value; keys, queries and weights of values in f16: 1e-3


def on_device(x):
    return None if x is None else torch.from_numpy(x).to(DEVICE)


class Case(PagedCase):
    """A case whose queries the twin does not round: the GPU does not."""

    @property
    def sizes(self):
        return self.codec, self.k.shape[2], self.v.shape[2]

    def rows_of(self, pages):
        return kv_rows.from_cpu_layout(pages, *self.sizes)

    def truth(self, monkeypatch):
        monkeypatch.setattr(kv, "quantise_query", lambda x, limit: x)
        pages = self.pages.copy()
        return self.run(reference.attention, pages), self.rows_of(pages)

    def fast(self, kind=torch.float32, **more):
        pages = on_device(self.rows_of(self.pages))
        y = gpu.attention(
            *(on_device(x).to(kind) for x in (self.q, self.k, self.v)), pages, self.codec,
            *(on_device(x) for x in (self.positions, self.starts, self.tables)), self.scale, self.window, self.softcap,
            on_device(self.sinks), self.causal, **more,
        )  # fmt: skip
        assert y.dtype == kind
        return y.float().cpu().numpy(), pages.cpu().numpy()

    def check(self, monkeypatch, **more):
        truth, expected = self.truth(monkeypatch)
        y, pages = self.fast(**more)
        np.testing.assert_array_equal(pages, expected)
        assert y.shape == truth.shape
        assert np.isfinite(truth).all()
        assert np.abs(y - truth).max() <= TOLERANCE.get(self.codec, 1e-3) * max(1, np.abs(truth).max())
        assert np.abs(truth).max() > 0.1


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("lengths, past", [([1, 2], [300, 5]), ([9, 1], [250, 0])])
def test_codecs(lengths, past, codec, monkeypatch):
    """Few rows a sequence, and many beside few."""
    Case(lengths, past, 4, 2, 64, 64, codec).check(monkeypatch)


# Every cache type with plain, padded and two-tiled heads, and every form with two types at least.
HEADS = [
    ((1, 1, 8, 8), ("f32", "q6", "q4")),
    ((3, 1, 80, 80), ("f16", "q8")),
    ((7, 1, 96, 72), ("q6", "k8v4")),
    ((4, 4, 40, 112), ("f16", "q4")),
    ((20, 1, 192, 128), ("f32", "q8")),
]


@pytest.mark.parametrize("heads, codec", [(heads, codec) for heads, codecs in HEADS for codec in codecs])
def test_heads(heads, codec, monkeypatch):
    Case([1, 10], [40, 3], *heads, codec).check(monkeypatch)


@pytest.mark.parametrize("codec", ["f32", "f16", "q4"])
def test_latent_heads(codec, monkeypatch):
    """One head of 576 keys and 512 values for many of queries (MLA), and odd ones that no other kernel would take."""
    Case([1], [60], 18, 1, 576, 512, codec).check(monkeypatch)
    if codec != "q4":
        Case([2], [5], 3, 1, 13, 21, codec).check(monkeypatch)


@pytest.mark.parametrize("causal, window", [(True, 1), (True, 65), (True, 300), (False, 16), (False, 65)])
def test_windows(window, causal, monkeypatch):
    Case([90, 2], [40, 300], 4, 2, 24, 24, "f16", window=window, causal=causal).check(monkeypatch)


def test_both_directions(monkeypatch):
    Case([130, 3], [0, 20], 2, 1, 24, 24, "q8", causal=False).check(monkeypatch)


@pytest.mark.parametrize("lengths, softcap", [([1], 50.0), ([12], 0.5)])
def test_softcap(lengths, softcap, monkeypatch):
    Case(lengths, [40], 4, 2, 24, 24, "f32", scale=3.0, softcap=softcap).check(monkeypatch)


@pytest.mark.parametrize("lengths, sinks", [([1, 1], 1), ([12, 1], 0), ([12, 1], 30)])
def test_sinks(lengths, sinks, monkeypatch):
    Case(lengths, [10, 600], 2, 1, 24, 24, "f16", sinks=sinks).check(monkeypatch)


@pytest.mark.parametrize("codec, d", [("f16", 64), ("q6", 256), ("q8", 576)])
def test_the_tiles_of_large_cards(codec, d, monkeypatch):
    """Which the interpreter, without shared memory, would not choose."""
    if DEVICE == "cpu":
        monkeypatch.setattr(gpu, "shared_bytes", lambda device: 227 << 10)
    Case([70, 1], [30, 100], 4, 1, d, min(d, 512), codec).check(monkeypatch)


def test_many_sequences_and_empty_ones(monkeypatch):
    case = Case([1, 1, 0, 30, 0, 9, 1, 0], [3, 130, 0, 2, 0, 7, 1, 0], 4, 1, 32, 32, "q8")
    case.check(monkeypatch)


def test_how_many_rows_a_sequence_has_may_be_said(monkeypatch):
    Case([1, 0, 2, 1], [3, 0, 300, 17], 4, 2, 32, 32, "f16").check(monkeypatch, rows=2)


@pytest.mark.parametrize("codec", ["f16", "q4"])
def test_parts_of_a_chunk(codec, monkeypatch):
    """A chunk of a prompt after a long past: its context is cut in parts too."""
    case = Case([20, 1], [1500, 30], 2, 1, 32, 32, codec)
    launches = gpu.plan(21, 2, 21, 1, 2, case.tables.shape[1] * 256, 32, 32, 16, 0)
    assert [launch.parts > 1 for launch in launches] == [True, True]
    case.check(monkeypatch)


def test_pages_may_be_shared(monkeypatch):
    """Two sequences that begin with the same page read the same keys."""
    case = Case([1, 1], [256, 256], 4, 2, 32, 32, "q6")
    case.tables[1, 0] = case.tables[0, 0]
    case.check(monkeypatch)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_narrow_arrays(kind, monkeypatch):
    case = Case([1, 10], [40, 3], 4, 2, 32, 32, "f16")
    for name in "qkv":
        setattr(case, name, torch.from_numpy(getattr(case, name)).to(kind).float().numpy())
    truth, expected = case.truth(monkeypatch)
    y, pages = case.fast(kind)
    np.testing.assert_array_equal(pages, expected)
    assert np.abs(y - truth).max() <= {torch.float16: 2e-3, torch.bfloat16: 1e-2}[kind] * np.abs(truth).max()


def test_no_rows():
    case = Case([0], [0], 4, 2, 32, 32, "f16")
    y, pages = case.fast()
    assert y.shape == (0, 128)
    np.testing.assert_array_equal(pages, case.rows_of(case.pages))


def test_rows_beyond_the_last_sequence_and_pages_that_are_not_there_are_left_alone():
    """A graph's batch is padded: rows that belong to nobody store nothing."""
    case = Case([1, 1], [4, 6], 4, 2, 32, 32, "f16")
    case.starts[:] = [0, 1, 1]
    alone = Case([1, 1], [4, 6], 4, 2, 32, 32, "f16")
    alone.tables[1] = -1
    for padded in (case, alone):
        y, pages = padded.fast()
        before = padded.rows_of(padded.pages)
        changed = {int(p) for p in np.nonzero((pages != before).any((1, 2)))[0]}
        assert changed == {int(padded.tables[0, 0])}
        assert np.isfinite(y[0]).all()


def special(n, d):
    """Rows of extremes beside normal ones."""
    x = np.random.default_rng(3).standard_normal((n, 1, d), np.float32)
    for i, value in enumerate([0, np.inf, -np.inf, np.nan, 3e38, 7e4, 1e-7, 1e-45, -0.0]):
        x[i] = value
        x[i + 9, 0, ::5] = value
    x[18:] *= np.geomspace(1e-9, 1e5, n - 18, dtype=np.float32)[:, None, None]
    return x


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("d, dv", [(64, 32), (24, 80)])
def test_stored_as_the_twin_stores(codec, d, dv):
    """Extremes too, to the last bit: only which NaN a float is may differ."""
    case = Case([60], [230], 2, 1, d, dv, codec)
    case.k, case.v = special(60, d), special(60, dv)
    pages = on_device(case.rows_of(case.pages))
    store(*(on_device(x) for x in (case.k, case.v, case.q)), pages, codec, *(on_device(x) for x in (case.positions, case.starts, case.tables)), 1.0)  # fmt: skip
    expected = case.pages.copy()
    cut = kv.key_bytes(kv.CODECS[codec][0], d)
    with np.errstate(all="ignore"):
        for page in range(2):
            rows = np.nonzero(case.positions // 256 == page)[0]
            head = expected[case.tables[0, page], 0]
            kv.store(head[:cut], kv.CODECS[codec][0], True, case.positions[rows] % 256, case.k[rows, 0])
            kv.store(head[cut:], kv.CODECS[codec][1], False, case.positions[rows] % 256, case.v[rows, 0])
    kind = np.float32 if codec == "f32" else np.float16
    for found, wanted, part in ((pages.cpu().numpy(), case.rows_of(expected), slice(None)),):
        if kv.CODECS[codec][0].planes:
            differ = found != wanted
            nan = np.isnan(found[..., part].view(np.float16)).repeat(2, -1) & np.isnan(wanted.view(np.float16)).repeat(2, -1)  # fmt: skip
            assert not (differ & ~nan).any()
        else:
            np.testing.assert_array_equal(found.view(kind), wanted.view(kind))


@pytest.mark.parametrize(
    "change",
    [{"codec": "q5"}, {"codec": "q8"}, {"k": (2, 3, 32)}, {"q": (2, 3, 32)}, {"v": (2, 2, 16)}, {"starts": (2,)}],
)
def test_what_does_not_fit_is_refused(change):
    case = Case([1, 1], [4, 6], 4, 2, 32, 32, "f16")
    arrays = {"q": case.q, "k": case.k, "v": case.v, "starts": case.starts}
    arrays |= {name: np.zeros(shape, arrays[name].dtype) for name, shape in change.items() if name != "codec"}
    with pytest.raises(ConfigError, match=r"codec|attention in"):
        gpu.attention(
            *(on_device(arrays[name]) for name in "qkv"), on_device(case.pages), change.get("codec", "f16"),
            on_device(case.positions), on_device(arrays["starts"]), on_device(case.tables), 1.0,
        )  # fmt: skip
