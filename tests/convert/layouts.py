"""Quantised checkpoints in the layouts they are published in, written bit by bit, and what their values are."""

import json
import math

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds


def words(codes, bits, order=None):
    """Codes `[n, k]` as int32 `[n, k * bits / 32]`, the first in the lowest bits; `order`: which each place holds."""
    if 32 % bits:
        each = (codes[..., None] >> np.arange(bits) & 1).astype(np.uint8).reshape(len(codes), -1)
        return np.packbits(each, axis=1, bitorder="little").view(np.int32)
    per = 32 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per))).astype(np.uint64)
    out = np.zeros((len(codes), padded.shape[1] // per), np.uint64)
    for word in range(out.shape[1]):
        for place in range(per):
            out[:, word] |= padded[:, word * per + (order[place] if order else place)] << np.uint64(bits * place)
    return out.astype(np.uint32).view(np.int32)


def grid(shape, group, bits=4, symmetric=False, seed=0):
    """Codes `[out, in]`, zeros and scales `[out, in / group]` of random values, what they stand for, and their error (power)."""
    rng = np.random.default_rng(seed)
    return rounded(rng.standard_normal(shape) * rng.uniform(0.01, 0.05, (shape[0], 1)), group, bits, symmetric)


def rounded(x, group, bits=4, symmetric=False):
    """The same of given values, rounded to nearest."""
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    groups = x.astype(np.float64).reshape(len(x), -1, group)
    if symmetric:
        scales = (np.abs(groups).max(axis=2) / (middle - 1)).astype(np.float16).astype(np.float64)
        zeros = np.full(scales.shape, middle)
    else:
        low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
        scales = ((high - low) / top).astype(np.float16).astype(np.float64)
        zeros = np.clip(-np.round(low / scales), 0, top).astype(int)
    codes = np.clip(np.round(groups / scales[..., None]) + zeros[..., None], 0, top).astype(int)
    values = ((codes - zeros[..., None]) * scales[..., None]).reshape(x.shape)
    return codes.reshape(x.shape), zeros, scales, values, float(((values - x) ** 2).sum())


def quantised_copy(model, folder, layout, said, **how):
    """A Hugging Face model with its linear layers rounded and in a layout."""
    import shutil

    from safetensors.numpy import save_file

    from qtransformers.convert.sources import Lying
    from qtransformers.load.checkpoint import open_checkpoint

    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {}
    for name, tensor in open_checkpoint(model).items():
        x = Lying(tensor).rows(slice(None)).reshape(tensor.shape)
        if name.endswith("_proj.weight"):
            parts = layout(*rounded(x, **how)[:3])
            tensors |= {f"{name.removesuffix('.weight')}.{part}": np.ascontiguousarray(t) for part, t in parts.items()}
        else:
            tensors[name] = x
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return folder


def awq_gemm(codes, zeros, scales):
    return {
        "qweight": words(codes.T, 4, AWQ_ORDER), "qzeros": words(zeros.T, 4, AWQ_ORDER), "scales": scales.T.astype(np.float16),
    }  # fmt: skip


def awq_gemv(codes, zeros, scales):
    group = codes.shape[1] // zeros.shape[1]
    times = {32: 4, 64: 2}.get(group, 1)  # so many words of zeros at least
    width = math.ceil(zeros.shape[1] / (8 * times)) * times * 8
    room = ((0, 0), (0, width - zeros.shape[1]))
    return {
        "qweight": words(codes, 4),
        "qzeros": words(np.pad(zeros, room), 4),
        "scales": np.pad(scales, room).astype(np.float16),
    }


def gptq(codes, zeros, scales, bits=4, less=1, order=None):
    n_in = codes.shape[1]
    group = n_in // zeros.shape[1]
    return {
        "qweight": np.ascontiguousarray(words(codes, bits).T), "qzeros": words((zeros.T - less) % (1 << bits), bits),
        "scales": scales.T.astype(np.float16), "g_idx": (np.arange(n_in) // group if order is None else order).astype(np.int32),
    }  # fmt: skip


def compressed_words(codes, zeros, scales, bits=4, asymmetric=False):
    found = {
        "weight_packed": words(codes, bits),
        "weight_scale": scales.astype(np.float16),
        "weight_shape": np.array(codes.shape),
    }
    return found | ({"weight_zero_point": np.ascontiguousarray(words(zeros.T, bits).T)} if asymmetric else {})


def compressed_bytes(codes, zeros, scales):
    return {"weight": (codes - 128).astype(np.int8), "weight_scale": scales.astype(np.float32)}


def write_llama(folder, linears, said, byte_bpe, n_embd=256, n_ff=512, heads=4, kv_heads=2):
    """A Llama of one layer whose linear layers `linears(name, shape, seed)` gives as (tensors, values); values by name."""
    from safetensors.numpy import save_file

    folder.mkdir()
    rng = np.random.default_rng(5)
    dim = n_embd // heads
    layer = "model.layers.0."
    shapes = {
        "self_attn.q_proj": (n_embd, n_embd), "self_attn.k_proj": (kv_heads * dim, n_embd), "self_attn.v_proj": (kv_heads * dim, n_embd),
        "self_attn.o_proj": (n_embd, n_embd), "mlp.gate_proj": (n_ff, n_embd), "mlp.up_proj": (n_ff, n_embd), "mlp.down_proj": (n_embd, n_ff),
    }  # fmt: skip
    plain = {"model.embed_tokens": (340, n_embd), "lm_head": (340, n_embd), "model.norm": (n_embd,)}
    plain |= {layer + n: (n_embd,) for n in ("input_layernorm", "post_attention_layernorm")}
    values = {n: (rng.standard_normal(s) * 0.1 + (len(s) == 1)).astype(np.float16) for n, s in plain.items()}
    tensors = {f"{n}.weight": v for n, v in values.items()}
    for seed, (name, shape) in enumerate(shapes.items()):
        parts, values[layer + name] = linears(layer + name, shape, seed)
        tensors |= {f"{layer}{name}.{part}": np.ascontiguousarray(t) for part, t in parts.items()}
    config = {
        "model_type": "llama", "hidden_size": n_embd, "intermediate_size": n_ff, "num_hidden_layers": 1, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "vocab_size": 340, "rope_theta": 1e4,
        "tie_word_embeddings": False, "hidden_act": "silu", **({"quantization_config": said} if said else {}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    byte_bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})
    )
    return values
