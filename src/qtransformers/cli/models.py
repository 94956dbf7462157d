"""Models that verbs are given: found on this disk, or planned and then fetched from the Hub with a bar."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtransformers.cli.terminal import note, progress

if TYPE_CHECKING:
    from qtransformers.gguf.headers import HeaderFile


def fetched(model: str, color: str = "auto", judged: bool = True) -> Path:
    """The path of MODEL; one that must be downloaded is planned before, and refused where it could not be loaded.

    Without `judged` it is fetched all the same.
    """
    from qtransformers.load.hub import resolve_model

    with progress("fetching", color) as update:
        return resolve_model(model, check=partial(judge, color=color) if judged else None, progress=update)


def judge(header: HeaderFile, color: str = "auto") -> None:
    """The errors of a model by its header; a line on stderr when it will not fit."""
    from qtransformers.load.survey import judge as judged

    warning = judged(header)
    if warning:
        note(warning, "yellow", color)
