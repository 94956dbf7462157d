"""What tools/goldens_convert.py has converted for llama.cpp to read, and tests/convert/test_peer.py converts again."""

import numpy as np

from convert import layouts
from qtransformers.convert import convert

PROMPT = "<|user|>\nTell me a story about a brave fox.<|end|>\n<|assistant|>\n"
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")  # fmt: skip
WEIGHTED = ("IQ3_M", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0")  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "group_size": 128}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
QUANTISED = {
    "awq": (layouts.awq_gemm, AWQ, {"group": 128}),
    "gptq": (layouts.gptq, GPTQ, {"group": 128, "symmetric": True}),
}
NAMES = (*TYPES, *WEIGHTED, *QUANTISED, "from-gguf")


def importance():
    """A made-up importance matrix, the same for all layers."""
    rng = np.random.default_rng(0)
    narrow, wide = (rng.uniform(0.2, 2, n).astype(np.float32) for n in (256, 768))
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return {f"blk.{i}.{k}.weight": wide if k == "ffn_down" else narrow for i in range(4) for k in kinds}


def made(name, model, folder):
    """The GGUF file of that name, of the demo model in the folder `model`."""
    out = folder / f"{name}.gguf"
    if name in QUANTISED:
        layout, said, how = QUANTISED[name]
        return convert(layouts.quantised_copy(model, folder / name, layout, said, **how), out, "Q6_K")
    if name == "from-gguf":
        return convert(convert(model, folder / "source.gguf", "F16"), out, "Q4_K_M", importance=importance())
    return convert(model, out, name, importance=importance() if name in WEIGHTED else None)
