"""The lists of architectures in the README and docs/diffusion.md, made anew from the registry: `PYTHONPATH=src python tools/readme.py`."""

import re
from pathlib import Path

from qtransformers.archs import ALL
from qtransformers.archs.diffusion import ALL as DIFFUSION
from qtransformers.archs.diffusion import DiffusionSpec

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- architectures, by tools/readme.py -->", "<!-- end -->"
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


def _names(spec: DiffusionSpec) -> str:
    others = f"; {', '.join(f'`{n}`' for n in spec.aliases)}" if spec.aliases else ""
    return f"`{spec.id}`{others}" + (f"; of other tools `{spec.family}`" if spec.family else "")


def _asked(spec: DiffusionSpec) -> str:
    """Settings that no tensor shows, and the published models whose sizes tell them all the same."""
    names = [p.name for p in spec.hparams if p.required]
    known = [name for name, variant in spec.variants.items() if all(n in variant for n in names)]
    return ", ".join(f"`{n}`" for n in names) + (f" (known of {', '.join(known)})" if names and known else "")


PAGES = {"README.md": architectures, "docs/diffusion.md": diffusion}


def renewed(name: str) -> str:
    """A page with its list as it is today."""
    text = (ROOT / name).read_text(encoding="utf-8")
    section = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not section.search(text):
        raise SystemExit(f"{name} has no section between {BEGIN} and {END}.")
    return section.sub(lambda _: f"{BEGIN}\n{PAGES[name]()}\n{END}", text)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(renewed(page), encoding="utf-8")
