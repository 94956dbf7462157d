"""Whether a quantised model is still the model: its divergence from the original, and which weights are to blame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtransformers.quantize.budget import divergence_with
from qtransformers.quantize.evaluate import Divergence, divergence
from qtransformers.quantize.folds import Folded
from qtransformers.quantize.observe import as_weight, sites
from qtransformers.quantize.passes import CHUNK, Ints, calibration_text, text_chunks

if TYPE_CHECKING:
    from qtransformers.load import Loaded

# Mean divergence in nats a token. Of Llama-3-8B, Q4_K_M has .028, Q3_K_M .084, Q2_K .33 (github.com/ggml-org/llama.cpp, tools/quantize)
GOOD, RUINED = 0.05, 0.5
BLAMED = 5  # weights that are named
TEXTS = 2  # on which they are tried
RAISED = {"Q2_K": "Q4_K", "Q3_K": "Q5_K", "Q4_K": "Q6_K", "Q5_K": "Q8_0", "Q6_K": "Q8_0", "Q8_0": "F16"}


@dataclass(frozen=True)
class Suspect:
    """A weight, and how far it alone moves the original's predictions, in nats a token."""

    name: str
    type: str
    loss: float

    @property
    def remedy(self) -> str:
        """How to raise it."""
        return f"--tensor-type {self.name.removesuffix('.weight')}={RAISED.get(self.type, 'Q8_0')}"


@dataclass(frozen=True)
class Verdict:
    """What the gate says."""

    found: Divergence
    suspects: tuple[Suspect, ...]  # the worst first; none where all is good
    unseen: bool = True  # whether it was found on other text than was learned from

    @property
    def grade(self) -> str:
        """`good`, `worse` or `ruined`."""
        mean = self.found.mean
        return "good" if mean <= GOOD else "worse" if mean <= RUINED else "ruined"

    def lines(self) -> list[str]:
        """For people."""
        f = self.found
        said = [
            f"{self.grade}: KL divergence {f.mean:.4f} +/- {f.error:.4f} nats a token, same favourite {f.same_top:.1%}, on "
            + ("text it did not learn from" if self.unseen else "the text it learned from")
        ]
        said += [f"{s.name} ({s.type}) alone costs {s.loss:.4f}: {s.remedy}" for s in self.suspects]
        return said


def judge(
    original: Loaded, made: Loaded, text: str | None = None, folded: Folded | None = None, *, encode_special: bool = False, n_chunks: int = 16
) -> Verdict:  # fmt: skip
    """Compare a model with the one it was made of, on `text` (None: the package's); where it is not good, name the weights to blame.

    `folded` are the factors its weights have that the original's lack.
    """
    text = calibration_text() if text is None else text
    chunk = min(CHUNK, original.plan.context_length, made.plan.context_length)
    found = divergence(made, original, text, chunk=chunk, encode_special=encode_special, n_chunks=n_chunks)
    if found.mean <= GOOD:
        return Verdict(found, ())
    rows = text_chunks(original.tokenizer, text, chunk, encode_special)[:TEXTS]
    return Verdict(found, tuple(suspects(original, made, rows, folded or Folded())[:BLAMED]))


def suspects(original: Loaded, made: Loaded, rows: Ints, folded: Folded) -> list[Suspect]:
    """Every weight of `made` that is quantised, put into the original alone, the worst first."""
    theirs = {site.place: site for site in sites(made)}
    found = []
    for site in sites(original):
        other = theirs[site.place].tensor
        if other.type.is_quantized and other.type is not site.tensor.type:
            values = folded.of(site.layer, site.attr).undo(other.dequantize())
            found.append(
                Suspect(site.name, other.type.name, divergence_with(original, site, as_weight(values, site.name), rows))
            )
    return sorted(found, key=lambda s: -s.loss)
