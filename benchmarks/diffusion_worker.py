"""A model of diffusion.py in a process of its own: it says how long loading took, then computes steps for each line that it is sent.

usage: diffusion_worker.py JSON, with `kind`, `gguf`, `folder`, `class`, `device`, `text` and `threads`; lines are pixels of a side
"""

import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch

CARD_SECONDS, CARD_STEPS = 0.5, 20  # a turn on a card is as many steps as take so long, at most so many
SHOWN = 4096  # values of a picture that are compared


def main(asked: dict[str, Any]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(asked["threads"])
    if asked["device"] == "cuda" and not torch.cuda.is_available():
        interpreted()
    place = torch.device(asked["device"] if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    model, dtype = load(asked, place)
    print(json.dumps(time.perf_counter() - start), flush=True)
    seen: dict[int, dict[str, float]] = {}
    for line in sys.stdin:
        pixels = int(line)
        given = inputs(model, pixels, asked["text"], dtype, place)
        if pixels not in seen:  # the first one is to warm up
            seen[pixels] = work(model, given) | made_of(model, given, place)
        took, picture = steps(model, given, place)
        shown = picture.float().flatten()[:SHOWN].tolist()
        print(json.dumps({"seconds": took, "peak": peak(place), "shown": shown, **seen[pixels]}), flush=True)


def interpreted() -> None:
    """Without a card: its kernels in Triton's interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    import interpreter  # noqa: F401
    from qtransformers.torch import ops

    ops.HOMES["cpu"] = "on_gpu"


def load(asked: dict[str, Any], place: torch.device) -> tuple[Any, torch.dtype]:
    """The model, and the dtype of its inputs: on a card bfloat16, but where products are those of float32."""
    kind, gguf, folder = asked["kind"], asked["gguf"], asked["folder"]
    made = getattr(diffusers, asked["class"])
    exact = asked["device"] == "cpu" or kind.endswith(("exact", "float32"))
    dtype = torch.float32 if exact and kind != "bfloat16" else torch.bfloat16
    if kind.startswith("ours"):
        from qtransformers.diffusers import load_transformer

        return load_transformer(gguf, folder, device=place, dtype=dtype, accuracy=kind.partition(":")[2]), dtype
    if kind == "theirs":
        quantised = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
        return made.from_single_file(
            gguf, quantization_config=quantised, config=folder, torch_dtype=dtype
        ).to(place).eval(), dtype  # fmt: skip
    return made.from_pretrained(folder, dtype=dtype).to(place).eval(), dtype


def inputs(model: Any, pixels: int, text: int, dtype: torch.dtype, place: torch.device) -> dict[str, torch.Tensor]:
    """What a pipeline gives the transformer; latents have 1/8 of the pixels of a side, patches half of those."""
    config = model.config

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(place, dtype)

    given = {
        "encoder_hidden_states": noise(1, text, config.joint_attention_dim),
        "timestep": torch.tensor([0.5], dtype=dtype, device=place),
    }
    if "pooled_projection_dim" not in config:
        return given | {"hidden_states": noise(1, config.in_channels, pixels // 8, pixels // 8)}
    n = (pixels // 16) ** 2
    return given | {
        "hidden_states": noise(1, n, config.in_channels),
        "pooled_projections": noise(1, config.pooled_projection_dim),
        "guidance": torch.tensor([3.5], dtype=dtype, device=place),
        "img_ids": torch.zeros(n, 3, device=place),
        "txt_ids": torch.zeros(text, 3, device=place),
    }


def steps(model: Any, given: dict[str, torch.Tensor], place: torch.device) -> tuple[float, torch.Tensor]:
    """Seconds of a step, on a card of several launched one behind the other; and the picture."""
    start, n = time.perf_counter(), 0
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    while True:
        picture, n = step(model, given), n + 1
        if place.type != "cuda" or n == CARD_STEPS or time.perf_counter() - start > CARD_SECONDS:
            break
    if place.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / n, picture


def step(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """One step."""
    with torch.inference_mode():
        picture: torch.Tensor = model(**given, return_dict=False)[0]
    return picture


def peak(place: torch.device) -> float:
    """MiB: of the card's memory that tensors took at most in the last steps, or of main memory until now."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(model: Any, given: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of a first step with blocks: operations of products that many tokens share, and bytes read and written to decode for them."""
    from qtransformers.kernels.staging import TILE_TOKENS
    from qtransformers.torch import QuantWeight

    found = {"operations": 0.0, "decoded": 0.0}

    def note(weight: QuantWeight, args: tuple[torch.Tensor, ...]) -> None:
        rows = args[0].numel() // args[0].shape[-1]
        if rows > TILE_TOKENS["fast"]:
            found["operations"] += 2 * rows * weight.shape.numel()
            found["decoded"] += weight.blocks.nbytes + 2 * weight.shape.numel()

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, QuantWeight)]
    step(model, given)
    for hook in hooks:
        hook.remove()
    return found


def made_of(model: Any, given: dict[str, torch.Tensor], place: torch.device) -> dict[str, float]:
    """Seconds that kernels of a step run on a card, and those of them that decode."""
    found = {"kernels": 0.0, "decoding": 0.0}
    if place.type != "cuda":
        return found
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step(model, given)
        torch.cuda.synchronize()
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found["kernels"] += event.device_time / 1e6
            found["decoding"] += event.device_time / 1e6 * ("dequantise" in event.name)
    return found


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
