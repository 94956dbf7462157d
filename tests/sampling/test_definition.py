"""The stages in NumPy against what their papers say, in numbers worked out by hand."""

import numpy as np
import pytest

from qtransformers.sampling import Sampling
from qtransformers.sampling.definition import pick, temperature, weights

INF = float("inf")
LOGITS = np.log(np.array([0.05, 0.4, 0.15, 0.3, 0.1], np.float32))  # likeliest: 1, 3, 2, 4, 0


def kept(logits, coin=1.0, mu=0.0, **settings):
    """Ids that can still be drawn, likeliest first."""
    ids, w, _ = weights(logits, Sampling(**settings), coin, mu)
    return ids[np.argsort(-w, kind="stable")].tolist()


def plain(logits, top_k=0, top_p=1.0, min_p=0.0):
    """The definition, by sorting everything."""
    ids = np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))
    if top_k:
        ids = ids[:top_k]
    p = np.exp(logits[ids].astype(np.float64) - logits.max())
    p /= p.sum()
    if top_p < 1:
        ids = ids[: np.searchsorted(np.cumsum(p), top_p) + 1]
    if min_p:
        ids = ids[np.exp(logits[ids].astype(np.float64) - logits.max()) >= min_p]
    return ids.tolist()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [1, 3, 2, 4, 0]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 2]),
        ({"top_k": 99}, [1, 3, 2, 4, 0]),
        ({"top_p": 0.5}, [1, 3]),  # 0.4 is below a half: the token that crosses it stays
        ({"top_p": 0.8}, [1, 3, 2]),
        ({"top_p": 0.0}, [1]),
        ({"top_p": 0.999}, [1, 3, 2, 4, 0]),
        ({"min_p": 0.3}, [1, 3, 2]),  # at least 0.12
        ({"min_p": 1.0}, [1]),
        ({"top_k": 2, "top_p": 0.5}, [1]),  # 0.4 of the 0.7 that top_k left is 0.57
        ({"top_k": 4, "min_p": 0.5}, [1, 3]),
        # Surprises in nats: 3.00, 0.92, 1.90, 1.20, 2.30; the entropy is 1.392: nearest are 3 (0.19), 1 (0.48), 2 (0.51), 4 (0.91)
        ({"typical_p": 0.0}, [3]),
        ({"typical_p": 0.29}, [3]),
        ({"typical_p": 0.31}, [1, 3]),
        ({"typical_p": 0.69}, [1, 3]),
        ({"typical_p": 0.8}, [1, 3, 2]),
        ({"typical_p": 0.9}, [1, 3, 2, 4]),
        ({"typical_p": 0.9, "top_k": 2}, [1, 3]),  # 4/7 and 3/7: an entropy of 0.68, between 0.56 and 0.85
        ({"typical_p": 0.5, "top_k": 2}, [1]),
        ({"typical_p": 0.29, "top_p": 0.9}, [3]),
        # The deviation is 0.718, so 0.7 of it reach down to exp(-0.916 - 0.503) = 0.242
        ({"top_n_sigma": 0.7}, [1, 3]),
        ({"top_n_sigma": 1.5}, [1, 3, 2]),  # 0.136
        ({"top_n_sigma": 2.0}, [1, 3, 2, 4]),  # 0.095
        ({"top_n_sigma": 2.0, "top_k": 1}, [1]),
    ],
)
def test_cuts(settings, expected):
    assert kept(LOGITS, **settings) == expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("settings", [{"top_k": 40}, {"top_p": 0.95}, {"top_p": 0.2}, {"min_p": 0.05}, {"top_k": 500, "top_p": 0.9, "min_p": 0.01}])  # fmt: skip
def test_cuts_of_a_large_vocabulary_are_the_definition(seed, settings):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(50_000) * rng.choice([0.5, 3, 8])).astype(np.float32)
    logits[rng.integers(0, 50_000, 2_000)] = logits[0]  # ties
    assert kept(logits, **settings) == plain(logits, **settings)


def test_ties_at_the_edge_go_to_the_first_ids():
    assert kept(np.zeros(1000, np.float32), top_k=3) == [0, 1, 2]


@pytest.mark.parametrize(
    "threshold, expected",
    [
        (0.5, [1, 3, 2, 4, 0]),  # nothing reaches it
        (0.35, [1, 3, 2, 4, 0]),  # one does: it stays
        (0.25, [3, 2, 4, 0]),
        (0.09, [4, 0]),
        (0.0, [0]),
    ],
)
def test_xtc(threshold, expected):
    assert kept(LOGITS, coin=0.2, xtc_probability=0.3, xtc_threshold=threshold) == expected
    assert kept(LOGITS, coin=0.3, xtc_probability=0.3, xtc_threshold=threshold) == [1, 3, 2, 4, 0]


def test_xtc_keeps_the_first_of_equals():
    assert kept(np.zeros(4, np.float32), coin=0, xtc_probability=1, xtc_threshold=0.2) == [0]


def test_xtc_sees_what_the_cuts_left():
    assert kept(LOGITS, coin=0, xtc_probability=1, xtc_threshold=0.4, top_k=2) == [3]  # 4/7 and 3/7


def test_temperature():
    for t, powers in ((0.5, [0.0025, 0.16, 0.0225, 0.09, 0.01]), (2.0, np.sqrt([0.05, 0.4, 0.15, 0.3, 0.1]))):
        _, w, _ = weights(LOGITS, Sampling(temperature=t))
        np.testing.assert_allclose(w / w.sum(), powers / np.sum(powers), rtol=1e-6)


def test_dynamic_temperature():
    """The entropy of 0.4 ... 0.05 is 1.3923 of at most log 5 = 1.6094."""
    s = Sampling(temperature=1.0, dynatemp_range=0.4)
    x = LOGITS.astype(np.float64)
    assert temperature(x, s) == pytest.approx(0.6 + 0.8 * 1.3923 / 1.6094, abs=1e-4)
    assert temperature(x, s.override(dynatemp_exponent=2.0)) == pytest.approx(
        0.6 + 0.8 * (1.3923 / 1.6094) ** 2, abs=1e-4
    )
    assert temperature(x, s.override(dynatemp_range=3.0)) == pytest.approx(4 * 1.3923 / 1.6094, abs=1e-3)  # from 0
    assert temperature(np.zeros(7), s) == pytest.approx(1.4)  # all is open
    assert temperature(np.array([0.0, -INF]), s) == pytest.approx(0.6)  # nothing is


def test_mirostat():
    """Surprises in bits: 1.32 (of 0.4), 1.74, 2.74, 3.32, 4.32."""
    for mu, expected, part in (
        (9, [1, 3, 2, 4, 0], 1),
        (3.33, [1, 3, 2, 4], 0.95),
        (2.7, [1, 3], 0.7),
        (1.0, [1], 0.4),
    ):
        assert kept(LOGITS, mu=mu, mirostat_tau=3) == expected
        assert weights(LOGITS, Sampling(mirostat_tau=3), mu=mu)[2] == pytest.approx(part)
    # 0.4 ** 2 and 0.3 ** 2 of 0.285: 0.83 and 1.66 bits
    assert kept(LOGITS, mu=1.7, mirostat_tau=3, temperature=0.5) == [1, 3]
    assert kept(LOGITS, mu=1.6, mirostat_tau=3, temperature=0.5) == [1]


def test_ids_share_the_unit_interval_in_their_order():
    ids, w = np.array([3, 5, 8]), np.array([1.0, 2.0, 1.0])
    assert [pick(ids, w, u) for u in (0, 0.249, 0.25, 0.749, 0.75, 1 - 2**-53)] == [3, 3, 5, 5, 8, 8]
