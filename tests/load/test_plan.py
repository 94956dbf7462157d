"""The plan of a load: what it says of a good file, and that it says everything of a bad one."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from qtransformers.archs import spec_of
from qtransformers.archs.llama import SPEC
from qtransformers.archs.spec import Slot
from qtransformers.cache import CODECS, PagedCache
from qtransformers.errors import ConfigError, LoadError, QTransformersError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.load import prepare, resolve
from qtransformers.load.footprint import cache_bytes, program_bytes
from qtransformers.load.plan import kernel_of, match_tensors
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME, TYPES


def prepared(path, **arguments):
    return prepare(resolve(path), **arguments)


@pytest.fixture
def demo(data):
    return data / "demo-Q8_0.gguf"


def test_a_good_file(demo):
    plan = prepared(demo).plan
    with GGUFFile(demo) as file:
        assert [t.slot.name for t in plan.tensors][:3] == ["token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"]  # fmt: skip
        assert {t.slot.name for t in plan.tensors} == set(file.tensors)
        assert plan.weights_bytes == sum(t.nbytes for t in file.tensors.values())
    assert plan.ties == {"output": "token_embd"}
    assert plan.context_length == 1024 and plan.cache == "f16" and not plan.warnings
    assert plan.program_bytes == program_bytes(2048, 1597)
    assert plan.total_bytes == plan.weights_bytes + plan.cache_bytes + plan.activations_bytes
    by_name = {t.slot.name: (t.place, t.kernel) for t in plan.tensors}
    assert by_name["token_embd.weight"] == ("mmap", "embedding Q8_0")
    assert by_name["blk.3.ffn_down.weight"] == ("mmap", "linear Q8_0")
    assert by_name["output_norm.weight"] == ("cpu", "read as F32")
    assert "linear Q8_0" in plan.text() and "1,024 tokens, f16" in plan.text()
    with pytest.raises(AttributeError):
        plan.cache = "f32"


def test_the_cache_is_counted_to_the_byte(demo):
    for tokens in (1, 256, 257, 1024):
        for codec in CODECS:
            assert cache_bytes(prepared(demo).hparams, tokens, codec) == PagedCache.allocate(4, 2, 64, 64, tokens, codec).nbytes  # fmt: skip


MEASURE = """
import re, sys
from qtransformers.cache import Batch, PagedCache
from qtransformers.kernels.cpu import Pool
from qtransformers.load import load

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

m = load(sys.argv[1])
h = m.hparams
cache = PagedCache.allocate(h.n_layers, h.n_kv_heads, h.head_dim, h.head_dim_v, 1024)
pages = cache.take(4)
pool = Pool(1, "")
pool.__enter__()
m.spec.forward(m.weights, h, Batch.single([1], 0, pages), cache)  # weights and code are at hand now
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
before = status("VmRSS")
m.spec.forward(m.weights, h, Batch.single(list(range(1000)), 0, pages, outputs=int(sys.argv[2])), cache)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no way to measure peak memory here")
@pytest.mark.parametrize("outputs", [1, 1000])
def test_temporaries_are_what_is_measured(demo, outputs):
    done = subprocess.run([sys.executable, "-c", MEASURE, demo, str(outputs)], check=True, capture_output=True, text=True)  # fmt: skip
    plan = prepared(demo, prefill_chunk=1000, logits_rows=outputs, threads=1).plan
    assert plan.activations_bytes + plan.cache_bytes == pytest.approx(int(done.stdout), rel=0.15)


def test_arguments(demo):
    assert prepared(demo, context_length=300, cache="f32").plan.context_length == 300
    for bad in (0, -1, 1.5, True, "4096"):
        with pytest.raises(ConfigError, match="context_length="):
            prepared(demo, context_length=bad)
    with pytest.raises(ConfigError, match="cache='q5'; expected one of"):
        prepared(demo, cache="q5")
    assert "exceeds the 1024 tokens" in prepared(demo, context_length=4096).plan.warnings[0]


def test_everything_wrong_is_reported_at_once(remake, make):
    path = remake(
        drop=("blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.3.attn_q.weight", "output_norm.weight"),
        add=[
            *(
                make.tensor(f"blk.{i}.attn_qkv.weight", np.zeros((512, 256))) for i in (0, 1, 3)
            ),  # not what it should be
            make.tensor("blk.2.ffn_down.weight", np.zeros((256, 512)), "F16"),
            make.tensor("blk.1.attn_norm.bias", np.zeros(256)),
            make.tensor("blk.2.attn_k.weight", np.zeros((128, 256)), "I32"),
            make.tensor("blk.4.attn_norm.weight", np.zeros(256)),
            make.tensor("mystery", np.zeros(3)),
        ],
    )
    with pytest.raises(LoadError) as e:
        prepared(path)
    lines = str(e.value).splitlines()
    assert lines[0].startswith(f"{path} cannot be loaded") and lines[0].endswith(", 8 problems:")
    text = {line.split(": ", 1)[1] for line in lines[1:]}

    def one(start):
        (found,) = [t for t in text if t.startswith(start)]
        return found

    assert "is missing; expected [256, 256]" in one("blk.0-1,3.attn_q.weight")
    assert "Nearest in the file: blk.*.attn_qkv.weight" in one("blk.0-1,3.attn_q.weight")
    assert "is missing; expected [256]" in one("output_norm.weight")
    assert "llama has no such tensor" in one("blk.0-1,3.attn_qkv.weight")
    assert "is [256, 512]; expected [256, 768] (n_embd, n_ff)" in one("blk.2.ffn_down.weight")
    assert "has no bias there" in one("blk.1.attn_norm.bias")
    assert "I32 holds whole numbers" in one("blk.2.attn_k.weight")
    assert "block_count is 4" in one("blk.4.attn_norm.weight")
    assert "no such tensor" in one("mystery")


def test_only_unsupported_things_are_an_unsupported_error(remake, make):
    with pytest.raises(UnsupportedError, match="I32 holds whole numbers"):
        prepared(remake(add=[make.tensor("blk.2.attn_k.weight", np.zeros((128, 256)), "I32")]))
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q\.scale scales a whole tensor"):
        prepared(remake("b.gguf", add=[make.tensor("blk.0.attn_q.scale", [2.0])]))
    with pytest.raises(UnsupportedError, match=r"general\.architecture is 'mamba'"):
        prepared(remake("c.gguf", metadata={"general.architecture": "mamba"}))


def test_what_nothing_reads_is_a_warning(remake, make):
    path = remake(
        metadata={"llama.new_setting": 2.0},
        add=[make.tensor(f"blk.{i}.attn_rot_embd", np.zeros(32)) for i in range(4)]
        + [make.tensor("blk.0.attn_q.scale", [1.0]), make.tensor("blk.0.attn_q.input_scale", [0.5])],
    )
    warnings = prepared(path).plan.warnings
    assert len(warnings) == 3
    assert "llama.new_setting = 2.0 is not read" in warnings[0]
    assert warnings[1].startswith("blk.0-3.attn_rot_embd is not used")
    assert warnings[2].startswith("blk.0.attn_q.input_scale is not used")


def test_optional_tensors_are_welcome(remake, make):
    path = remake(add=[*(make.tensor(f"blk.{i}.attn_q.bias", np.ones(256)) for i in range(4)), make.tensor("rope_freqs.weight", np.ones(32)), make.tensor("output.weight", np.zeros((2048, 256)), "F16")])  # fmt: skip
    plan = prepared(path).plan
    assert not plan.ties and not plan.warnings
    assert {"blk.1.attn_q.bias", "rope_freqs.weight", "output.weight"} < {t.slot.name for t in plan.tensors}


def test_optional_tensors_are_in_all_layers_or_in_none(remake, make):
    path = remake(add=[make.tensor(f"blk.{i}.attn_q.bias", np.ones(256)) for i in (1, 2)])
    with pytest.raises(LoadError, match=r"blk\.0,3\.attn_q\.bias is missing, but in the file for blk\.1-2"):
        prepared(path)


def test_what_belongs_together_is_there_together():
    spec = spec_of("command-r", "m.gguf")
    h = {
        "n_layers": 2,
        "n_embd": 64,
        "n_ff": 96,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "head_dim_v": 16,
        "vocab_size": 100,
    }
    tensors = {}
    for slot in spec.slots(h):
        if slot.presence == "required" or slot.attr == "attn_q_norm":
            data = np.zeros(slot.shape(h), np.float32)
            tensors[slot.name] = QTensor(slot.name, BY_NAME["F32"], data.shape, data.reshape(-1).view(np.uint8))
    _, _, problems = match_tensors(spec, h, tensors)
    assert [p.text.split(".", 1)[1] for p in problems if p.grade == "error"] == [
        "0-1.attn_q_norm.weight is in the file without attn_k_norm, which goes with it. The file is incomplete or of another architecture: download or convert it again."
    ]


def test_layers_that_guess_further_tokens_are_left_out(remake, make, demo):
    ahead = [
        make.tensor("blk.4.attn_norm.weight", np.ones(256)),
        make.tensor("blk.4.nextn.eh_proj.weight", np.ones((256, 512))),
    ]
    found = prepared(remake(metadata={"llama.block_count": 5, "llama.nextn_predict_layers": 1}, add=ahead))
    assert found.hparams.n_layers == 4 and len(found.plan.tensors) == len(prepared(demo).plan.tensors)
    (warning,) = found.plan.warnings
    assert "blk.4 is not used: it guesses further tokens" in warning
    with pytest.raises(LoadError, match=r"llama\.block_count is -?\d+; expected a whole number of at least 1"):
        prepared(remake("b.gguf", metadata={"llama.nextn_predict_layers": 4}))


def test_files_without_weights_or_architecture(tmp_path, make):
    vocabulary = make(tmp_path / "v.gguf", {"general.architecture": "llama"}, [])
    with pytest.raises(LoadError, match="a vocabulary and no weights"):
        prepared(vocabulary)
    nameless = make(tmp_path / "n.gguf", {"general.name": "x"}, [make.tensor("x", [1.0])])
    with pytest.raises(LoadError, match=r"general\.architecture is missing"):
        prepared(nameless)


def test_metadata_and_shapes_that_disagree(remake):
    with pytest.raises(LoadError, match=r"blk\.0-3\.ffn_down\.weight is \[256, 768\]; expected \[256, 1024\] \(n_embd, n_ff\)"):  # fmt: skip
        prepared(remake(metadata={"llama.feed_forward_length": 1024}))
    with pytest.raises(LoadError, match=r"blk\.4-499\.attn_norm\.weight is missing"):
        prepared(remake("b.gguf", metadata={"llama.block_count": 500}))
    with pytest.raises(LoadError, match=r"llama\.embedding_length is missing"):
        prepared(remake("c.gguf", metadata={"llama.embedding_length": None}))


def test_every_type_has_a_kernel_or_a_reason():
    matrix, norm = Slot(SPEC.layer_tensors[1], 0, "weight"), Slot(SPEC.layer_tensors[0], 0, "weight")
    for t in TYPES.values():
        for slot in (matrix, norm):
            kernel, refusal = kernel_of(slot, t)
            assert bool(kernel) != bool(refusal)
            assert bool(refusal) == (t.family == "int" or t.activation)


def test_planning_reads_no_weights(demo):
    """Headers alone: the bytes of the weights are never touched, whatever they are."""
    sources = resolve(demo)
    poisoned = {name: _Untouchable(t) for name, t in sources.gguf.tensors.items()}
    from qtransformers.load.plan import make_plan

    h = prepare(sources).hparams
    plan, problems = make_plan(SPEC, h, poisoned, "x")
    assert not problems and math.prod(plan.tensors[0].shape) == 2048 * 256


class _Untouchable:
    def __init__(self, t):
        self.name, self.type, self.shape, self.nbytes, self.n_values = t.name, t.type, t.shape, t.nbytes, t.n_values


def tiny(make, path, **changes):
    keys = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 64, "llama.embedding_length": 32, "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 8, "llama.attention.value_length": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 8, "llama.rope.freq_base": 1e4, "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 1.0, "llama.attention.sliding_window": 0, "llama.expert_count": 0, "llama.vocab_size": 50, **changes,
    }  # fmt: skip
    h = {"n_embd": 32, "n_ff": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "head_dim_v": 8, "vocab_size": 50, "rope_dim": 8}  # fmt: skip
    slots = [s for s in SPEC.slots({"n_layers": 1, "n_experts": 0}) if s.part == "weight" and s.presence == "required"]
    return make(path, keys, [make.tensor(s.name, np.zeros(s.shape(h))) for s in slots])


def test_hostile_metadata(make, tmp_path):
    """Any value under any key is an error of ours, or harmless; none takes long or much memory."""
    path = tmp_path / "tiny.gguf"
    values = [True, -1, 0, 1, 2**31 - 1, 2**40, 2**63, 0.0, -1.0, math.nan, math.inf, "", "x", [], ["a"], np.zeros(0, np.int32), np.array([4, 5], np.int32), np.full(100_000, 4, np.uint8)]  # fmt: skip
    tiny(make, path)
    assert prepared(path).hparams.n_heads == 4
    refused = 0
    for p in SPEC.hparams:
        for value in values:
            tiny(make, path, **{f"llama.{p.key}": value})
            try:
                prepared(path)
            except QTransformersError as e:
                refused += 1
                assert len(str(e)) < 5000
    assert refused > 150


def test_files_of_old_converters_are_told_from_broken_ones(remake, make):
    """Mixtral's experts in a tensor each: one line of what to do, not one for each tensor."""
    names = [f"blk.{i}.ffn_{k}.{e}.weight" for i in range(4) for k in ("gate", "up", "down") for e in range(8)]
    plain = [f"blk.{i}.ffn_{k}.weight" for i in range(4) for k in ("gate", "up", "down")]
    keys = {"llama.expert_count": 8, "llama.expert_used_count": 2}
    path = remake(metadata=keys, drop=plain, add=[make.tensor(n, np.zeros((2, 2))) for n in names])
    with pytest.raises(UnsupportedError) as e:
        prepared(path)
    text = str(e.value)
    assert "blk.0-3.ffn_gate.*.weight holds one expert" in text and "convert it again" in text
    assert text.count("\n") == 3 and "is missing" not in text
