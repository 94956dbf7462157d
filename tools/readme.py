"""The README's list of architectures, made anew from the registry: `PYTHONPATH=src python tools/readme.py`."""

import re
from pathlib import Path

from qtransformers.archs import ALL

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- architectures, by tools/readme.py -->", "<!-- end -->"
KINDS = {"language": "Language models", "encoder": "Encoders", "diffusion": "Diffusion transformers"}


def architectures() -> str:
    """One line a kind, names as GGUF files have them."""
    lines = []
    for kind, title in KINDS.items():
        names = ", ".join(f"`{spec.id}`" for spec in sorted(ALL, key=lambda s: s.id) if spec.kind == kind)
        lines += [f"{title}: {names}."] if names else []
    return "\n\n".join(lines)


def renewed(text: str) -> str:
    """The page with the list as it is today."""
    section = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not section.search(text):
        raise SystemExit(f"README.md has no section between {BEGIN} and {END}.")
    return section.sub(f"{BEGIN}\n{architectures()}\n{END}", text)


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
