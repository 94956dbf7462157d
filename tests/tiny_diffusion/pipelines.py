"""A whole tiny AuraFlow pipeline in a folder: tokenizer, text encoder, VAE, scheduler, and the transformer's config without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tiny_diffusion.cases import CASES
from tiny_diffusion.files import model_of

AURA = next(case for case in CASES if case.id == "aura")
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "green", "fox", "house", "in", "the", "rain", "brave")


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64)  # fmt: skip


def aura_pipeline() -> Any:
    """All parts with random weights."""
    torch.manual_seed(11)
    encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(vocab_size=len(WORDS), d_model=256, d_kv=32, d_ff=256, num_layers=1, num_heads=4, is_encoder_decoder=False))  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer(), text_encoder=encoder.eval(), vae=vae.eval(), transformer=model_of(AURA),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip


def saved(folder: Path) -> tuple[Any, Path]:
    """The pipeline, and its folder without the transformer's weights."""
    pipe = aura_pipeline()
    pipe.save_pretrained(folder)
    for weights in (folder / "transformer").glob("*.safetensors"):
        weights.unlink()
    return pipe, folder
