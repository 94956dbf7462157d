"""Inputs of diffusion models made of noise: from a noisy picture down the steps of a flow, each with a random prompt of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qtransformers.archs.diffusion import DiffusionSpec
from qtransformers.errors import UnsupportedError

Call = Mapping[str, Any]  # keyword arguments of a forward
Noise = Callable[..., torch.Tensor]  # of a shape
STEPS, WAYS, TOKENS = 4, 2, 64
SIDE, FRAMES = 32, 2  # of the latents of a picture, and of a video


@dataclass(frozen=True)
class Inputs:
    """How a model is called: what it takes beside the time, the time in its own units, and what its output is."""

    make: Callable[[Mapping[str, Any], Noise], dict[str, Any]]
    time: Callable[[float], float] = lambda left: 1000 * left  # of how much noise is left, 1 to 0
    latents: str = "hidden_states"
    when: str = "timestep"
    sign: int = 1  # of the speed of the flow in the output; 0: the output is the noise
    kind: torch.dtype = torch.float32  # of the time


def _prompt(c: Mapping[str, Any], noise: Noise, channels: str, /, **more: Any) -> dict[str, Any]:
    return {"encoder_hidden_states": noise(1, TOKENS, c[channels]), **more}


def _places(axes: int, side: int) -> torch.Tensor:
    """Rows and columns of patches, after other axes `[side * side, axes]`."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    others = [torch.zeros_like(rows)] * (axes - 2)
    found = [*others[:1], rows, columns, *others[1:]]
    return torch.stack(found, -1).reshape(-1, axes).float()


def _auraflow(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    side = min(SIDE, c["sample_size"])
    return _prompt(c, noise, "joint_attention_dim", hidden_states=noise(1, c["in_channels"], side, side))


def _patches(c: Mapping[str, Any], noise: Noise, axes: int = 3, **more: Any) -> dict[str, Any]:
    """Flux and its kin: patches in a row, and where each is."""
    side = SIDE // 2
    text = torch.zeros(TOKENS, axes)
    return _prompt(
        c, noise, "joint_attention_dim", hidden_states=noise(1, side * side, c["in_channels"]), img_ids=_places(axes, side), txt_ids=text, **more
    )  # fmt: skip


def _guided(c: Mapping[str, Any], scale: float) -> dict[str, Any]:
    return {"guidance": torch.tensor([scale]) if c["guidance_embeds"] else None}


def _flux(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    return _patches(c, noise, pooled_projections=noise(1, c["pooled_projection_dim"]), **_guided(c, 3.5))


def _sd3(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    side = min(SIDE, c["pos_embed_max_size"] * c["patch_size"])
    return _prompt(
        c, noise, "joint_attention_dim", hidden_states=noise(1, c["in_channels"], side, side),
        pooled_projections=noise(1, c["pooled_projection_dim"]),
    )  # fmt: skip


def _hidream(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    last, first = c["caption_channels"]
    return {
        "hidden_states": noise(1, c["in_channels"], SIDE, SIDE), "pooled_embeds": noise(1, c["text_emb_dim"]),
        "encoder_hidden_states_t5": noise(1, TOKENS, last),
        "encoder_hidden_states_llama3": noise(max(c["llama_layers"]) + 1, 1, TOKENS, first),
    }  # fmt: skip


def _qwen_image(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    """With layers there is one picture more, of all of them."""
    side, layered = SIDE // 2, bool(c["use_additional_t_cond"])
    n = 1 + layered
    more = {"additional_t_cond": torch.tensor([0])} if layered else {}
    return _prompt(
        c, noise, "joint_attention_dim", hidden_states=noise(1, n * side * side, c["in_channels"]), img_shapes=[[(1, side, side)] * n],
        encoder_hidden_states_mask=torch.ones(1, TOKENS, dtype=torch.bool), **more,
    )  # fmt: skip


def _z_image(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    return {"x": [noise(c["in_channels"], 1, SIDE, SIDE)], "cap_feats": [noise(TOKENS, c["cap_feat_dim"])]}


def _lumina2(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    return _prompt(c, noise, "cap_feat_dim", hidden_states=noise(1, c["in_channels"], SIDE, SIDE), encoder_attention_mask=mask)  # fmt: skip


def _video(c: Mapping[str, Any], noise: Noise, side: int = SIDE) -> torch.Tensor:
    return noise(1, c["in_channels"], FRAMES, side, side)


def _wan(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    """With positions of image tokens there are two images, the first frame and the last."""
    images = 2 if c.get("pos_embed_seq_len") else 1
    more = {"encoder_hidden_states_image": noise(images, 257, c["image_dim"])} if c.get("image_dim") else {}
    return _prompt(c, noise, "text_dim", hidden_states=_video(c, noise, SIDE // 2), **more)


def _ltx(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    side = SIDE // 2
    return _prompt(
        c, noise, "caption_channels", hidden_states=noise(1, FRAMES * side * side, c["in_channels"]), num_frames=FRAMES, height=side,
        width=side, encoder_attention_mask=torch.ones(1, TOKENS),
    )  # fmt: skip


def _hunyuan(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    return _prompt(
        c, noise, "text_embed_dim", hidden_states=_video(c, noise, SIDE // 2), encoder_attention_mask=torch.ones(1, TOKENS),
        pooled_projections=noise(1, c["pooled_projection_dim"]), **_guided(c, 6000.0),
    )  # fmt: skip


def _cosmos(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    side = min(SIDE, *c["max_size"][1:])
    return _prompt(c, noise, "text_embed_dim", hidden_states=_video(c, noise, side), fps=30, padding_mask=torch.zeros(1, 1, side, side))  # fmt: skip


def _sana(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    side = min(SIDE, c["sample_size"])
    more = _guided(c, 0.45) if c.get("guidance_embeds") else {}
    return _prompt(c, noise, "caption_channels", hidden_states=noise(1, c["in_channels"], side, side), **more)


def _dit(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    side = c["sample_size"]
    label = torch.randint(c["num_embeds_ada_norm"], (1,), generator=torch.Generator().manual_seed(1))
    return {"hidden_states": noise(1, c["in_channels"], side, side), "class_labels": label}


def _unet(c: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    side = min(SIDE, c["sample_size"])
    found = _prompt(c, noise, "cross_attention_dim", sample=noise(1, c["in_channels"], side, side))
    if c["addition_embed_type"] is not None:
        times = 6 if c["projection_class_embeddings_input_dim"] > 6 * c["addition_time_embed_dim"] else 0
        pooled = c["projection_class_embeddings_input_dim"] - times * c["addition_time_embed_dim"]
        sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])
        found["added_cond_kwargs"] = {"text_embeds": noise(1, pooled), "time_ids": sizes}
    return found


def _share(left: float) -> float:
    return left


UNET = Inputs(_unet, latents="sample", sign=0, kind=torch.int64)
INPUTS: Mapping[str, Inputs] = {
    "aura": Inputs(_auraflow, _share),
    "flux": Inputs(_flux, _share),
    "chroma": Inputs(_patches, _share),
    "flux2": Inputs(lambda c, noise: _patches(c, noise, 4, **_guided(c, 4.0)), _share),
    "sd3": Inputs(_sd3),
    "hidream": Inputs(_hidream, when="timesteps", sign=-1),
    "qwen_image": Inputs(_qwen_image, _share),
    "z_image": Inputs(_z_image, lambda left: 1 - left, "x", "t", -1),
    "lumina2": Inputs(_lumina2, lambda left: 1 - left, sign=-1),
    "wan": Inputs(_wan, kind=torch.int64),
    "ltxv": Inputs(_ltx, kind=torch.int64),
    "hyvid": Inputs(_hunyuan, kind=torch.int64),
    "cosmos": Inputs(_cosmos, _share),
    "sana": Inputs(_sana),
    "dit": Inputs(_dit, sign=0, kind=torch.int64),
    "sd1": UNET,
    "sdxl": UNET,
}


def noise_calls(model: Any, spec: DiffusionSpec, progress: Callable[[int, int], None]) -> list[Call]:
    """Call a model at the steps of a flow from noise (Euler), always the same; what it was called with.

    Each step has another prompt: layers that see it alone, as modulation does, learn from few rows as it is.


    UnsupportedError for an architecture whose inputs are not known here.
    """
    how = INPUTS.get(spec.id)
    if how is None:
        raise UnsupportedError(f"{spec.title}: no inputs are known here to learn from ({', '.join(INPUTS)} have some). Give what the model is called with (-f), keyword arguments of {spec.class_name}.forward in .safetensors.")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    calls: list[Call] = []
    for way in range(WAYS):
        latents: Any = None
        for step in range(STEPS):
            left, then = 1 - step / STEPS, 1 - (step + 1) / STEPS
            inputs = how.make(model.config, lambda *shape: torch.randn(*shape, generator=generator))
            x = inputs[how.latents] = inputs[how.latents] if latents is None else latents
            calls.append({**inputs, how.when: torch.tensor([min(999.0, how.time(left))]).to(how.kind)})
            out = model(**calls[-1], return_dict=False)[0]
            moved = _moved(x[0] if isinstance(x, list) else x, out[0] if isinstance(out, list) else out, left, then, how.sign)  # fmt: skip
            latents = [moved] if isinstance(x, list) else moved
            progress(way * STEPS + step + 1, WAYS * STEPS)
    return calls


def _moved(x: torch.Tensor, out: torch.Tensor, left: float, then: float, sign: int) -> torch.Tensor:
    """Latents a step further on; channels that only come in, as of a picture to go on from, stay, and those that only go out are left."""
    axis = next((i for i, (a, b) in enumerate(zip(x.shape, out.shape, strict=True)) if a != b), 1)
    n = min(x.shape[axis], out.shape[axis])
    mine, told = x.narrow(axis, 0, n), out.narrow(axis, 0, n)
    if sign:
        made = mine + (then - left) * sign * told
    else:  # the noise of a model that keeps variance: what is left of a picture is mixed with less of it
        now, later = (max(1e-2, 1 - s) for s in (left, then))  # shares of the picture in the variance
        picture = (mine - (1 - now) ** 0.5 * told) / now**0.5
        made = later**0.5 * picture + (1 - later) ** 0.5 * told
    return torch.cat([made, x.narrow(axis, n, x.shape[axis] - n)], axis)
