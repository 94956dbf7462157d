"""Models to GGUF: `convert(model)`, or `plan_conversion` and `write` where one wants to look first."""

from __future__ import annotations

from qtransformers.convert.plan import ConversionPlan, Target
from qtransformers.convert.restore import restore
from qtransformers.convert.write import convert, plan_conversion, write

__all__ = ["ConversionPlan", "Target", "convert", "plan_conversion", "restore", "write"]
