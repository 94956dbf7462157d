"""Launches of attention: which tiles, and how a context is cut."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from qtransformers.kernels.triton.attend_plan import ANY, plan

H100, A100, CONSUMER = 227 << 10, 163 << 10, 99 << 10


@pytest.mark.parametrize(
    "shared, bits, d, few, many",
    [
        (H100, 16, 128, (64, 64, 4, 3), (128, 64, 8, 3)),
        (A100, 16, 128, (64, 64, 4, 3), (64, 64, 8, 3)),
        (0, 4, 64, (64, 64, 4, 3), (64, 64, 8, 3)),
        (H100, 16, 256, (64, 32, 8, 3), (64, 32, 8, 2)),
        (A100, 16, 256, (64, 32, 8, 3), (64, 32, 8, 2)),
        (H100, 8, 256, (64, 32, 8, 3), (64, 32, 8, 2)),
        (H100, 6, 256, (64, 32, 8, 3), (32, 32, 4, 2)),
        (CONSUMER, 8, 256, (64, 32, 8, 3), (32, 32, 4, 2)),
        (A100, 16, 576, (32, 32, 8, 2), (32, 32, 8, 2)),
        (CONSUMER, 16, 576, (32, 16, 8, 2), (32, 16, 8, 2)),
        (H100, 8, 576, (32, 32, 8, 2), (32, 32, 8, 2)),
        (H100, 6, 576, (16, 32, 4, 2), (32, 32, 8, 1)),
        (H100, 32, 128, (16, 16, 4, 2), (32, 16, 4, 1)),
        (H100, 32, 256, (16, 16, 4, 2), (16, 16, 4, 1)),
        (H100, 16, 1024, (16, 16, 8, 1), (16, 16, 8, 1)),
    ],
)
def test_tiles_by_heads_cache_and_card(shared, bits, d, few, many):
    launches = plan(2048, 3, 2048, 1, 128, 8192, d, min(d, 512), bits, shared)
    assert [tuple(launch.tile.values()) for launch in launches] == [few, many]
    assert [(launch.least, launch.most) for launch in launches] == [(1, 8), (9, ANY)]


@pytest.mark.parametrize(
    "group, rows, d, tile, tiles",
    [(4, 1, 128, (16, 4), 1), (4, 8, 128, (32, 4), 1), (8, 1, 256, (16, 4), 1), (16, 1, 576, (16, 8), 1), (128, 1, 576, (32, 8), 4), (3, 7, 64, (32, 4), 1), (71, 1, 64, (64, 4), 2)],
)  # fmt: skip
def test_tiles_of_answers_have_no_more_rows_than_there_are(group, rows, d, tile, tiles):
    (launch,) = plan(5 * rows, 5, rows, 2, group, 4096, d, d, 8, H100)
    assert (launch.tile["M"], launch.tile["num_warps"]) == tile
    assert (launch.tiles, launch.n_tiles, launch.most) == (tiles, 5 * tiles, rows)


def test_contexts_are_cut_in_as_many_parts_as_fill_a_card():
    parts = {
        (n, context): plan(n, n, 1, 8, 4, context, 128, 128, 16, H100)[0].parts
        for n in (1, 16, 400) for context in (256, 8192, 65536)
    }  # fmt: skip
    assert parts == {
        (1, 256): 4, (1, 8192): 64, (1, 65536): 64,
        (16, 256): 4, (16, 8192): 16, (16, 65536): 16,
        (400, 256): 1, (400, 8192): 1, (400, 65536): 1,
    }  # fmt: skip
    assert [launch.parts for launch in plan(100, 1, 100, 1, 1, 65536, 128, 128, 16, H100)] == [64, 16]
