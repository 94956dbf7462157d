import numpy as np

from qtransformers.cache import Batch


def test_single():
    b = Batch.single([5, 6, 7], past=300, pages=[4, 9], outputs=2)
    assert b.tokens.tolist() == [5, 6, 7] and b.positions.tolist() == [300, 301, 302]
    assert b.starts.tolist() == [0, 3] and b.page_tables.tolist() == [[4, 9]] and b.output_rows.tolist() == [1, 2]
    assert Batch.single([5, 6], 0, [0], outputs=None).output_rows.tolist() == [0, 1]
    assert Batch.single([5, 6], 0, [0], outputs=0).output_rows.tolist() == []
    assert Batch.single([5], 0, [0], outputs=7).output_rows.tolist() == [0]


def test_join_puts_sequences_one_after_another():
    prefill = Batch.single([1, 2, 3], past=0, pages=[0], outputs=0)
    decode = Batch.single([7], past=600, pages=[5, 3, 1], outputs=1)
    scored = Batch.single([8, 9], past=10, pages=[2], outputs=None)
    b = Batch.join([prefill, decode, scored])
    assert b.tokens.tolist() == [1, 2, 3, 7, 8, 9]
    assert b.positions.tolist() == [0, 1, 2, 600, 10, 11]
    assert b.starts.tolist() == [0, 3, 4, 6]
    assert b.page_tables.tolist() == [[0, -1, -1], [5, 3, 1], [2, -1, -1]]
    assert b.output_rows.tolist() == [3, 4, 5]
    assert all(a.dtype == np.int32 for a in (b.tokens, b.positions, b.starts, b.page_tables, b.output_rows))
    assert Batch.join([decode]) is decode
    nested = Batch.join([Batch.join([prefill, decode]), scored])
    assert nested.starts.tolist() == b.starts.tolist() and nested.page_tables.tolist() == b.page_tables.tolist()
