"""Side by side, the forwards bring to every weight what they would alone, once, in order; new weights are gone on with."""

import numpy as np
import pytest

from archs.cases import CASES
from archs.models import Ours, gguf, reference
from qtransformers.quantize.observe import as_weight, sites, watched
from qtransformers.quantize.relay import Moments, relay


@pytest.fixture(scope="module", params=["mistral", "deepseek-v3", "qwen3next", "gpt-oss"])
def model(request, tmp_path_factory):
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return Ours.load(gguf(reference(case, request.param), folder, "m", case), case)


ROWS = np.random.default_rng(5).integers(0, 250, (6, 24)).astype(np.int32)


def test_moments_are_those_of_the_forwards_alone(model):
    expected: dict = {}

    def arrive(site, x, which):
        here = expected.setdefault(site.place, Moments.empty(site.n_matrices, x.shape[1]))
        here.add(x, which)
        return site.weight

    for row in ROWS.tolist():
        model._logits(watched(model.loaded, arrive), model.loaded.hparams, row, 24)
    found = {}

    def step(site, moments):
        assert site.place not in found
        found[site.place] = moments
        return site.weight

    relay(model.loaded, ROWS, step)
    assert list(found)[-1] == (None, "output") and set(found) == {site.place for site in sites(model.loaded)}
    for place, moments in found.items():
        assert np.array_equal(moments.counts, expected[place].counts), place
        for attr in ("products", "squares", "sizes"):
            np.testing.assert_allclose(getattr(moments, attr), getattr(expected[place], attr), rtol=2e-3, atol=1e-3)


def test_later_weights_see_what_earlier_ones_became(model):
    seen: dict = {}

    def run(times):
        def step(site, moments):
            seen.setdefault(site.place, []).append(moments.squares.sum())
            values = site.tensor.dequantize()
            if len(seen) == 1:  # rows by different factors, which no norm undoes
                values = values * np.linspace(1, times, values.shape[-2], dtype=np.float32)[:, None]
            return as_weight(values, site.name)

        relay(model.loaded, ROWS, step)

    run(1)
    first = next(iter(seen))
    once = {place: values[0] for place, values in seen.items()}
    seen.clear()
    run(3)
    assert seen[first][0] == pytest.approx(once[first])
    changed = [place for place in once if seen[place][0] != pytest.approx(once[place], rel=1e-6)]
    assert len(changed) > len(once) // 2


def test_an_error_ends_all(model):
    def step(site, moments):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        relay(model.loaded, ROWS, step)


def test_few_inputs_are_drawn_to_all(model):
    moments = Moments.empty(2, 2)
    moments.add(np.array([[1, 0], [1, 0]], np.float32), np.array([0, 0], np.int32))
    moments.add(np.array([[0, 2]], np.float32), np.array([1], np.int32))
    np.testing.assert_allclose(moments.mean_product(1, pull=0), [[0, 0], [0, 4]])
    np.testing.assert_allclose(
        moments.mean_product(1, pull=2), (np.array([[0, 0], [0, 4]]) + 2 * np.diag([2 / 3, 4 / 3])) / 3
    )
