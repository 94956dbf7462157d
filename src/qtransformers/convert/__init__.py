"""Hugging Face checkpoints to GGUF: `convert(folder)`, or `plan_conversion` and `write` where one wants to look first."""

from __future__ import annotations

from qtransformers.convert.plan import ConversionPlan, Target, plan_conversion
from qtransformers.convert.write import convert, write

__all__ = ["ConversionPlan", "Target", "convert", "plan_conversion", "write"]
