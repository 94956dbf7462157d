"""The engine with weights, caches and vectors on other devices than the CPU: the same tokens, wherever they are."""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
import torch

import interpreter  # noqa: F401
from qtransformers import Model, machine
from qtransformers.cache import CODECS, Batch, PagedCache
from qtransformers.cache.batch import room
from qtransformers.cli import answers as answers_
from qtransformers.errors import ConfigError, InsufficientMemoryError, UnsupportedError
from qtransformers.generate import choose
from qtransformers.generate.choose import _among_few
from qtransformers.generate.device import Rows, fill
from qtransformers.generate.requests import Request
from qtransformers.generate.sequence import Sequence
from qtransformers.kernels.kv import encode_page
from qtransformers.sampling import Sampling

CARD = machine.Gpu("a card", 8 << 30, 8 << 30, (9, 0))
GREEDY = {"temperature": 0, "max_tokens": 2}


@pytest.fixture
def card(monkeypatch):
    """One card, which in Triton's interpreter is main memory."""
    monkeypatch.setattr(machine, "gpus", lambda: [CARD])


@pytest.fixture(scope="module")
def there(data):
    """Answers of the CPU alone."""
    with load(data, "cpu") as model:
        return answers(model)


def load(data, placement, **more):
    return Model.load(
        data / "demo-Q8_0.gguf", placement=placement, context_length=512, cache="f32", accuracy="exact", **more
    )


def answers(model):
    alone = model.generate("One day a", **GREEDY)
    both = model.generate_many(["A dog", "The cat was"], **GREEDY)
    return alone.tokens, [answer.tokens for answer in both], model.logits([5, 6, 7])


def same(found, expected):
    assert found[:2] == expected[:2]
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4)


@pytest.mark.parametrize("placement", ["cpu,kv[1]=cuda:0"])
def test_parts_on_a_card(data, card, there, placement):
    with load(data, placement) as model:
        assert model.plan.devices == ("cuda:0",)
        same(answers(model), there)


def test_no_card(data):
    with pytest.raises(ConfigError, match="there is no cuda:0: the system shows no CUDA device"):
        load(data, "cuda:0")


def test_an_old_card(data, monkeypatch, recwarn):
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("Tesla V100", 32 << 30, 32 << 30, (7, 0))])
    with pytest.raises(UnsupportedError, match=r"Tesla V100.*capability 7.0; the kernels need 8.0"):
        load(data, "cuda:0")
    with load(data, "auto") as model:
        assert not model.plan.devices and "Tesla V100" in model.plan.warnings[0]


def test_the_same_bits_in_any_company_are_not_promised_on_a_card(data, card):
    with load(data, "auto", deterministic=True) as model:
        assert not model.plan.devices
    with pytest.raises(
        UnsupportedError, match="deterministic=True, placement='cpu,norm=cuda:0': on a GPU the last bits"
    ):
        load(data, "cpu,norm=cuda:0", deterministic=True)


def test_without_torch(data, card, monkeypatch):
    from qtransformers.load import devices

    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"needs torch and triton: pip install 'qtransformers\[torch\]'"):
        load(data, "experts=cpu,cuda:0")


def test_torch_that_cannot_use_the_card(data, card, monkeypatch, recwarn):
    """A driver shows a card, torch is the CPU's: what is left to `auto` runs, what asks for the card is told why not."""
    from qtransformers.kernels.triton import device

    monkeypatch.setattr(device, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match=r"placement='cuda:0': torch .*, built for .*, can use 0 of the GPUs.*pytorch.org"):  # fmt: skip
        load(data, "cuda:0")
    with load(data, "auto") as model:
        assert not model.plan.devices and "can use 0 of the GPUs" in model.plan.warnings[-1]
        assert model.generate("One day a", **GREEDY).tokens


def test_a_small_card(data, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("small", 1 << 30, 1 << 20, (8, 0))])
    with pytest.raises(
        InsufficientMemoryError, match=r"cuda:0 would hold .* of weights, .* of cache .* has 1 MiB free"
    ):
        load(data, "cuda:0")
    with load(data, "auto") as model:
        assert not model.plan.devices


def test_a_bar_shows_how_fast_weights_go_to_a_card(data, card, monkeypatch):
    """By what `run` loads with: bytes so far, in all, and nothing of what stays on the CPU."""
    seen = []
    monkeypatch.setattr(answers_, "progress", lambda title, color: nullcontext(lambda *at: seen.append((title, *at))))
    placement = {"placement": "cpu,attn[1]=cuda:0", "context_length": 256}
    with answers_.on_its_way("off", data / "demo-Q8_0.gguf", None, **placement) as model:
        total = sum(t.nbytes for t in model.plan.tensors if t.device == "cuda:0")
    assert len(seen) == 4 and seen[-1] == ("sending weights to the GPU", total, total)
    with answers_.on_its_way("off", data / "demo-Q8_0.gguf", None, placement="cpu", context_length=256):
        assert len(seen) == 4


def test_memory_that_runs_out_half_way_is_given_back(data, card, monkeypatch):
    from qtransformers.kernels.triton.upload import Upload

    kept, room, blocks = [], 3_000_000, Upload.blocks

    def until_full(self, data):
        if self.done + data.size > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")
        kept.append(weakref.ref(found := blocks(self, data)))
        return found

    monkeypatch.setattr(Upload, "blocks", until_full)
    with pytest.raises(
        InsufficientMemoryError, match=r"all of it was freed.*cuda:0: .* GiB of weights.*Tried to allocate"
    ):
        load(data, "cuda:0")
    gc.collect()
    assert len(kept) > 3 and not any(ref() is not None for ref in kept)


@pytest.mark.parametrize("codec", ["f16", "q6"])
def test_pages_of_a_card_are_read_as_those_of_the_cpu(codec):
    """What `write` was given `read` gives, and each layer's pages are laid out as its device wants them."""
    both = PagedCache.allocate(2, 1, 16, 16, 512, codec, places=("cpu", "cuda:0"))
    assert (
        both.n_pages == 2
        and both.page_shape == (2, 1, both.pages[0].shape[2])
        and both.nbytes == both.pages[0].nbytes * 2
    )
    rng, (kind, _) = np.random.default_rng(0), CODECS[codec]
    page = np.concatenate(
        [encode_page(rng.standard_normal((256, 16), np.float32), kind, is_key) for is_key in (True, False)]
    )
    held = np.stack([page, page[::-1]])[:, None] if codec == "f16" else np.stack([page, page])[:, None]
    both.write(1, held)
    assert (both.read(1) == held).all() and not both.read(0).any()
    assert (both.pages[0][1] == held[0]).all() and not (both.pages[1][1].cpu().numpy() == held[1]).all()
    both.copy(1, 0)
    assert (both.read(0) == held).all()


def test_sessions_of_a_card(data, card, there, tmp_path):
    """What was computed on a card goes on on the CPU, from a file."""
    text = "One day a little girl went to the park with her mother and her big dog"
    with load(data, "cpu,kv[1]=cuda:0") as model:
        first = model.generate(text, max_tokens=1, temperature=0)
        n = model.save_session(tmp_path / "s.gguf", first.prompt)
    with load(data, "cpu") as model:
        assert len(model.load_session(tmp_path / "s.gguf")) == n >= 16
        again = model.generate(text, max_tokens=1, temperature=0)
        assert again.timings.cached_tokens >= 16 and again.tokens == first.tokens


SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "top_k": Sampling(temperature=0.8, top_k=5, seed=3),
    "a chain": Sampling(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, typical_p=0.9, xtc_probability=0.5, seed=5),
    "top_p": Sampling(temperature=1.0, top_p=0.9, seed=3),
    "min_p": Sampling(temperature=1.5, min_p=0.05, seed=4),
    "both": Sampling(temperature=0.7, top_p=0.8, min_p=0.01, xtc_probability=0.5, dynatemp_range=0.2, seed=6),
    "wide": Sampling(temperature=1.0, top_p=0.9999, seed=3),
    "of all": Sampling(temperature=1.0, seed=3),
    "typical": Sampling(temperature=1.0, top_p=0.9, typical_p=0.5, seed=3),
    "sigma": Sampling(temperature=1.0, top_k=9, top_n_sigma=1.0, seed=3),
    "edited": Sampling(temperature=0, banned_tokens=(7,)),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("ties", [False, True])
def test_few_logits_give_the_token_that_all_give(name, ties, monkeypatch):
    """Where they cannot, they say so."""
    monkeypatch.setattr(choose, "MOST_CANDIDATES", 300)
    x = np.random.default_rng(1).standard_normal((40, 600), np.float32) * 2
    if ties:
        x = np.round(x)
    request = Request(prompt=(1, 2), sampling=SAMPLINGS[name], stop_ids=frozenset(), max_tokens=9)
    rows, decided = Rows(torch.from_numpy(x), 590)[:], 0
    for row, all_ in zip(rows, x, strict=True):
        sequence, sampler = (Sequence(request, None, 590) for _ in range(2))
        token = _among_few(sequence, row)
        decided += token >= 0
        assert token in (-1, sampler.sampler(all_[:590].copy(), (1, 2), 2))
    assert decided == (0 if name in ("of all", "sigma", "edited", "wide", "typical") else decided or -1)
    assert ties or not decided or decided >= len(rows) - 2, "but where a sum is too near to top-p"


def test_rows_that_are_broken_are_looked_at_whole():
    x = np.zeros((2, 8), np.float32)
    x[0, 3] = np.nan
    rows = Rows(torch.from_numpy(x), 8)
    assert rows[:][0].best() == -1 and rows[:][0].largest(2) is None and rows[:][1].best() == 0
    values = rows[1:2][0].values()
    values[:] = 1
    assert not rows.values(1).any() and np.asarray(rows).shape == (2, 8)


def test_a_batch_fills_a_wider_one():
    """As captured steps see it: what is beyond belongs to no sequence."""
    shapes = ((8,), (8,), (5,), (4, 8), (8,), (4, 2))
    host = Batch.over(np.full(room(shapes), 77, np.int32), shapes, 2)
    parts = [Batch.single([5, 6], 300, [3, 4], outputs=None), Batch.single([7], 0, [9], outputs=None)]
    states = np.arange(4, dtype=np.int32).reshape(2, 2)  # addresses
    batch = replace(Batch.join(parts), states=states)
    fill(host, batch)
    assert host.tokens.tolist() == [5, 6, 7, 0, 0, 0, 0, 0] and host.positions.tolist() == [300, 301, 0, 0, 0, 0, 0, 0]
    assert host.starts.tolist() == [0, 2, 3, 3, 3] and host.page_tables[:3, :3].tolist() == [
        [3, 4, -1],
        [9, -1, -1],
        [-1] * 3,
    ]
    assert host.states[:2].tolist() == states.tolist()
    there = batch.on("cpu")
    assert there.rows == 2 and all(x.data_ptr() % 16 == there.tokens.data_ptr() % 16 for x in there.arrays)
    assert [x.tolist() for x in there.arrays] == [x.tolist() for x in batch.arrays]
    assert Batch.join(parts).on("cpu").states is None


def test_what_a_captured_step_reads_is_kept(monkeypatch):
    """A graph holds addresses, not tensors: what lies there must live as long as it."""
    from qtransformers.generate.device import DeviceForward
    from qtransformers.kernels.triton import graphs

    class Recording:
        def __init__(self, *args):
            self.rehearse = self.capture = nullcontext

    batches = []

    def forward(weights, h, batch, cache):
        batches.append(weakref.ref(batch))
        return torch.full((len(batch.tokens), 9), float(batch.tokens[0]))

    monkeypatch.setattr(graphs, "Recording", Recording)
    device = DeviceForward(forward, None, {"vocab_size": 9}, "cuda:0", n_tokens=9)
    device._captures = True  # as on a card
    cache = PagedCache.allocate(1, 1, 16, 16, 512, "f16")
    assert np.asarray(device(Batch.single([5], 300, [3, 4]), cache)).tolist() == [[5] * 9]
    gc.collect()
    [captured] = device._captured.values()
    assert len(batches) == 2 and all(ref() is captured.there for ref in batches)
    assert np.asarray(device(Batch.single([6, 7, 8], 0, [3], outputs=None), cache)).tolist() == [[6] * 9] * 3
    assert {c.logits.data_ptr() for c in device._captured.values()} == {
        captured.logits.data_ptr()
    }  # of all, or each would take it
    assert len(device._captured) == 2
    other = PagedCache.allocate(1, 1, 16, 16, 512, "f16")
    assert np.asarray(device(Batch.single([5], 300, [3, 4]), other)).tolist() == [[5] * 9]
    assert len(device._captured) == 1, "graphs write to the pages of the cache they were captured with"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("placement", ["cuda:0", "cuda:0,dense_ffn=cpu", "cuda:0,layers[1]=cpu"])
def test_captured_steps_give_the_tokens_of_the_cpu(data, placement):
    """On a card: graphs for one and several answers, parted where the CPU computes."""
    texts, asked = ["One day a", "A dog", "The cat was very"], {"temperature": 0, "max_tokens": 24}

    def answers(model):
        return [model.generate(texts[0], **asked).tokens, *(a.tokens for a in model.generate_many(texts, **asked))]

    with load(data, "cpu") as model:
        expected = answers(model)
    with load(data, placement) as model:
        assert answers(model) == expected
        captured = model._engine._parts.forward._captured
        assert len(captured) >= 2 and all(
            (c.recording.n_graphs > 1) == (placement != "cuda:0") for c in captured.values()
        )
