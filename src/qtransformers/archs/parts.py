"""Rows that the specs of many architectures share, and checks between their hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qtransformers.archs.hparams import BadValue
from qtransformers.archs.rotary import check_rope
from qtransformers.archs.spec import Absent, Bias, HParam, Problem, TensorSpec, When
from qtransformers.checks import shown
from qtransformers.nn import gated, linear

# The sizes of a decoder, as GGUF and config.json name them nearly everywhere.
SIZES = (
    HParam("n_ahead", "nextn_predict_layers", default=0, minimum=0, maximum=511),  # layers that guess further tokens, not run here
    HParam("n_layers", "block_count", required=True, minimum=1, maximum=512, hf=("num_hidden_layers",), without="n_ahead"),
    HParam("context_length", "context_length", required=True, minimum=1, hf=("max_position_embeddings",), agree="free"),
    HParam("n_embd", "embedding_length", required=True, minimum=1, hf=("hidden_size",)),
    HParam("n_ff", "feed_forward_length", required=True, minimum=1, hf=("intermediate_size",)),
    HParam("n_heads", "attention.head_count", required=True, minimum=1, hf=("num_attention_heads",)),
    HParam("n_kv_heads", "attention.head_count_kv", default=lambda h: h["n_heads"], minimum=1, hf=("num_key_value_heads",)),
    HParam("head_dim", "attention.key_length", default=lambda h: h["n_embd"] // h["n_heads"], minimum=1, hf=("head_dim",)),
    HParam("head_dim_v", "attention.value_length", default=lambda h: h["head_dim"], minimum=1),
)  # fmt: skip
# A mixture of experts: how many there are, and how many a token is sent to.
EXPERTS = (
    HParam("n_experts", "expert_count", default=0, minimum=0, maximum=1024, hf=("num_local_experts", "num_experts", "n_routed_experts")),
    HParam("n_experts_used", "expert_used_count", default=0, minimum=0, maximum=1024, hf=("num_experts_per_tok",)),
)  # fmt: skip
VOCAB_SIZE = HParam("vocab_size", "vocab_size", minimum=1, hf=("vocab_size",), agree="at_most", rows_of="token_embd")
RMS_EPS = HParam("rms_eps", "attention.layer_norm_rms_epsilon", float, required=True, minimum=0, hf=("rms_norm_eps",))


WINDOW = HParam(
    "sliding_window", "attention.sliding_window", default=0, minimum=0, hf=("sliding_window",), hf_values={None: 0}
)


def window_period(default: int) -> HParam:
    """Of how many layers the last sees everything, and the others a window."""

    def of_layers(windows: Sequence[Any]) -> int:
        full = [i for i, window in enumerate(windows) if not window]
        period = full[0] + 1 if full else max(default, len(windows) + 1)
        if full != list(range(period - 1, len(windows), period)):
            raise BadValue(f"is {shown(windows)}; expected every n-th layer to have full attention", unsupported=True)
        return period if full else default if default > len(windows) else period

    def layer_types(config: Mapping[str, Any]) -> Any:
        kinds = config.get("layer_types")
        if kinds is None:
            return config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
        return of_layers([kind != "full_attention" for kind in kinds])

    return HParam("swa_period", "attention.sliding_window_pattern", default=default, minimum=1, hf=(layer_types,), of_layers=of_layers)  # fmt: skip


def layer_norm_eps(*hf: str) -> HParam:
    """The epsilon of a layer norm, by its key in config.json."""
    return HParam("norm_eps", "attention.layer_norm_epsilon", float, required=True, minimum=0, hf=hf)


def scale(name: str, key: str, hf: str, default: float = 0.0) -> HParam:
    """A factor on something, positive or 0 for none."""
    return HParam(name, key, float, default=default, minimum=0, hf=(hf,))


def ends(norm_bias: Bias = "never", embd: str = "model.embed_tokens", norm: str = "model.norm", output: str = "lm_head") -> tuple[TensorSpec, ...]:  # fmt: skip
    """Embedding, last norm and output, which is the embedding where it is absent."""
    return (
        TensorSpec("token_embd", "token_embd", ("vocab_size", "n_embd"), "embed", hf=embd),
        TensorSpec("output_norm", "output_norm", ("n_embd",), "norm", norm_bias, hf=norm),
        TensorSpec("output", "output", ("vocab_size", "n_embd"), "output", on_absent="tie:token_embd", hf=output),
    )


def norm(attr: str, hf: str, size: str = "n_embd", bias: Bias = "never", on_absent: Absent = "error", **more: Any) -> TensorSpec:  # fmt: skip
    """A norm of a layer; its GGUF name is its attribute."""
    return TensorSpec(attr, f"blk.{{i}}.{attr}", (size,), "norm", bias, on_absent, f"model.layers.{{i}}.{hf}", **more)


def qkv(bias: Bias = "never", out_bias: Bias = "never", permute: bool = False, hf_bias: str = "attention_bias") -> tuple[TensorSpec, ...]:  # fmt: skip
    """The four projections of grouped-query attention."""
    rows = (
        ("attn_q", ("n_heads*head_dim", "n_embd"), bias, "q_proj", "n_heads"),
        ("attn_k", ("n_kv_heads*head_dim", "n_embd"), bias, "k_proj", "n_kv_heads"),
        ("attn_v", ("n_kv_heads*head_dim_v", "n_embd"), bias, "v_proj", ""),
        ("attn_output", ("n_embd", "n_heads*head_dim_v"), out_bias, "o_proj", ""),
    )
    return tuple(
        TensorSpec(
            attr, f"blk.{{i}}.{attr}", shape, "attn", b,
            hf=f"model.layers.{{i}}.self_attn.{hf}", hf_bias=hf_bias if b == "optional" else "", permute=heads if permute else "",
        )
        for attr, shape, b, hf, heads in rows
    )  # fmt: skip


def has_experts(h: Mapping[str, Any], layer: int) -> bool:
    """Whether the model is a mixture of experts."""
    return h["n_experts"] > 0


def dense(h: Mapping[str, Any], layer: int) -> bool:
    """Whether it is none."""
    return not h["n_experts"]


def gated_ffn(bias: Bias = "never", hf_bias: str = "mlp_bias", when: When | None = None) -> tuple[TensorSpec, ...]:
    """Gate, up and down of a feed-forward layer."""
    shapes = {"gate": ("n_ff", "n_embd"), "up": ("n_ff", "n_embd"), "down": ("n_embd", "n_ff")}
    return tuple(
        TensorSpec(
            f"ffn_{k}", f"blk.{{i}}.ffn_{k}", shape, "dense_ffn", bias,
            hf=f"model.layers.{{i}}.mlp.{k}_proj", hf_bias=hf_bias if bias == "optional" else "", when=when,
        )
        for k, shape in shapes.items()
    )  # fmt: skip


def experts_ffn(
    hf: str = "model.layers.{i}.mlp",
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    n_ff: str = "n_ff",
    when: When = has_experts,
) -> tuple[TensorSpec, ...]:
    """Router, and gate, up and down of all experts; `hf` holds `gate` and `experts.{e}.<projection>` in a checkpoint."""
    shapes = {
        "gate": ("n_experts", n_ff, "n_embd"),
        "up": ("n_experts", n_ff, "n_embd"),
        "down": ("n_experts", "n_embd", n_ff),
    }
    return (
        TensorSpec("ffn_gate_inp", "blk.{i}.ffn_gate_inp", ("n_experts", "n_embd"), "router", hf=f"{hf}.gate", when=when),
        *(
            TensorSpec(f"ffn_{k}_exps", f"blk.{{i}}.ffn_{k}_exps", shape, "experts", hf=f"{hf}.experts.{{e}}.{name}", when=when)
            for (k, shape), name in zip(shapes.items(), projections, strict=True)
        ),
    )  # fmt: skip


def shared_expert_rows(hf: str, n_ff: str, when: When | None = None) -> tuple[TensorSpec, ...]:
    """Gate, up and down of the expert that every token goes to."""
    shapes = {"gate": (n_ff, "n_embd"), "up": (n_ff, "n_embd"), "down": ("n_embd", n_ff)}
    return tuple(
        TensorSpec(
            f"ffn_{k}_shexp", f"blk.{{i}}.ffn_{k}_shexp", shape, "shared_experts", hf=f"{hf}.{k}_proj", when=when
        )
        for k, shape in shapes.items()
    )


def shared_expert(x: Any, w: Any) -> Any:
    """SwiGLU through the expert that every token goes to."""
    return linear(gated(x, w.ffn_gate_shexp, w.ffn_up_shexp), w.ffn_down_shexp)


def check_heads(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between numbers of heads."""
    if h["n_heads"] % h["n_kv_heads"]:
        yield Problem(
            f"attention.head_count is {h['n_heads']}, no multiple of attention.head_count_kv, {h['n_kv_heads']}"
        )


def check_experts(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between numbers of experts."""
    if h["n_experts"] and not 1 <= h["n_experts_used"] <= h["n_experts"]:
        yield Problem(f"expert_used_count is {h['n_experts_used']}; expected 1 to expert_count, {h['n_experts']}")


def check(h: Mapping[str, Any]) -> Iterator[Problem]:
    """The checks of a decoder with rope."""
    yield from check_heads(h)
    yield from check_rope(h)


def check_mixture(h: Mapping[str, Any]) -> Iterator[Problem]:
    """The checks of a decoder with rope and experts everywhere."""
    yield from check(h)
    yield from check_experts(h)
    if not h["n_experts"]:
        yield Problem("expert_count is 0; expected at least 1")
