"""From a GGUF file of a diffusion transformer to a plan: which architecture, which settings, which tensor goes where; by headers alone."""

from qtransformers.load.diffusion.annotations import (
    BIASES_KEY,
    CONFIG_KEY,
    LAYOUT_KEY,
    SCHEMA,
    SCHEMA_KEY,
    annotated,
    biases,
)
from qtransformers.load.diffusion.detection import ORIG_SHAPE, Detected, detect, detected, is_diffusion, tensors_of
from qtransformers.load.diffusion.given import read_config
from qtransformers.load.diffusion.matching import Part, match, matches, source_name, whole_shape
from qtransformers.load.diffusion.plan import DiffusionPlan, plan_diffusion, plan_of
from qtransformers.load.diffusion.settings import read_settings

__all__ = [
    "BIASES_KEY",
    "CONFIG_KEY",
    "LAYOUT_KEY",
    "ORIG_SHAPE",
    "SCHEMA",
    "SCHEMA_KEY",
    "Detected",
    "DiffusionPlan",
    "Part",
    "annotated",
    "biases",
    "detect",
    "detected",
    "is_diffusion",
    "match",
    "matches",
    "plan_diffusion",
    "plan_of",
    "read_config",
    "read_settings",
    "source_name",
    "tensors_of",
    "whole_shape",
]
