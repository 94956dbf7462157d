"""The lists of architectures in the README and docs/diffusion.md, made anew from the registry: `PYTHONPATH=src python tools/readme.py`."""

import re
from functools import partial
from pathlib import Path

from qtransformers.archs import ALL
from qtransformers.archs.diffusion import ALL as DIFFUSION
from qtransformers.archs.diffusion import DiffusionSpec
from qtransformers.archs.diffusion.folds import KINDS as KINDS_OF_FOLDS

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- {}, by tools/readme.py -->", "<!-- end -->"
KINDS = {"language": "Language models", "encoder": "Encoders"}


def architectures() -> str:
    """One line a kind, names as GGUF files have them."""
    names = {title: [spec.id for spec in ALL if spec.kind == kind] for kind, title in KINDS.items()}
    names["Diffusion transformers"] = [spec.id for spec in DIFFUSION]
    return "\n\n".join(
        f"{title}: {', '.join(f'`{n}`' for n in sorted(found))}." for title, found in names.items() if found
    )


def diffusion() -> str:
    """The table of diffusion transformers."""
    lines = [
        "| model | `general.architecture` | class of diffusers | layouts | asked for by name |",
        "|---|---|---|---|---|",
    ]
    lines += (
        f"| [{s.title}]({s.paper}) | {_names(s)} | `{s.class_name}` | {', '.join(s.marks)} | {_asked(s)} |"
        for s in DIFFUSION
    )
    return "\n".join(lines)


def folds() -> str:
    """Where scales move in each diffusion transformer, and why not."""
    titles = {"modulation": "into the modulation", "norm": "into norms", "values": "from attention's output into values", "gated": "through gated layers"}  # fmt: skip
    lines = ["| | " + " | ".join(titles[kind] for kind in KINDS_OF_FOLDS) + " |", "|---|" + "---|" * len(titles)]
    lines += (f"| {s.title} | " + " | ".join(s.unfolded.get(kind, "yes") for kind in KINDS_OF_FOLDS) + " |" for s in DIFFUSION)  # fmt: skip
    return "\n".join(lines)


def _names(spec: DiffusionSpec) -> str:
    others = f"; {', '.join(f'`{n}`' for n in spec.aliases)}" if spec.aliases else ""
    return f"`{spec.id}`{others}" + (f"; of other tools `{spec.family}`" if spec.family else "")


def _asked(spec: DiffusionSpec) -> str:
    """Settings that no tensor shows, and the published models whose sizes tell them all the same."""
    names = [p.name for p in spec.hparams if p.required]
    known = [name for name, variant in spec.variants.items() if all(n in variant for n in names)]
    return ", ".join(f"`{n}`" for n in names) + (f" (known of {', '.join(known)})" if names and known else "")


PAGES = {
    "README.md": {"architectures": architectures},
    "docs/diffusion.md": {"architectures": diffusion, "folds": folds},
}


def _put(text: str, found: re.Match[str]) -> str:
    return text


def renewed(name: str) -> str:
    """A page with its lists as they are today."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for what, made in PAGES[name].items():
        begin = BEGIN.format(what)
        section_text = f"{begin}\n{made()}\n{END}"
        section = re.compile(f"{re.escape(begin)}.*?{re.escape(END)}", re.DOTALL)
        if not section.search(text):
            raise SystemExit(f"{name} has no section between {begin} and {END}.")
        text = section.sub(partial(_put, section_text), text)
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(renewed(page), encoding="utf-8")
