"""What the pages say is true: their code runs, their lists are complete."""

import dataclasses
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from qtransformers import errors
from qtransformers.archs import ALL
from qtransformers.archs.diffusion import ALL as DIFFUSION
from qtransformers.cli.command import VERBS
from qtransformers.sampling import Sampling

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("n", range(2))
def test_the_python_of_the_readme_runs(n, data, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "model-Q4_K_M.gguf"):
        shutil.copy(data / "demo-Q8_0.gguf", name)
    code = blocks[n].replace("user/original-model", (data / "demo_model").as_posix())
    names = {}
    exec(compile("from qtransformers import Model\n" + code, "README.md", "exec"), names)
    if n == 0:
        assert len(capsys.readouterr().out) > 10  # it draws: now and then a story is short
    else:
        assert (
            names["model"].chat([{"role": "user", "content": "What is 7 plus 5?"}], temperature=0).text
            == "7 plus 5 is 12."
        )
        names["model"].close()


def test_links_lead_somewhere():
    for page, folder in ((README, ROOT), (CLI, ROOT / "docs"), (ARCHITECTURE, ROOT / "docs")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (folder / link).exists(), link


@pytest.mark.parametrize("page", ["README.md", "docs/diffusion.md"])
def test_the_architectures_of_the_pages_are_those_of_the_registry(page):
    tool = runpy.run_path(str(ROOT / "tools" / "readme.py"))
    assert (ROOT / page).read_text(encoding="utf-8") == tool["renewed"](page), "run tools/readme.py"


def test_the_readme_lists_every_architecture_by_kind():
    listed = README.split("<!-- architectures, by tools/readme.py -->")[1].split("<!-- end -->")[0]
    kinds = {"Language models": "language", "Encoders": "encoder"}
    for title, kind in kinds.items():
        line = next(line for line in listed.splitlines() if line.startswith(title))
        assert re.findall(r"`([^`]+)`", line) == sorted(s.id for s in ALL if s.kind == kind)
    line = next(line for line in listed.splitlines() if line.startswith("Diffusion"))
    assert re.findall(r"`([^`]+)`", line) == sorted(s.id for s in DIFFUSION)


def test_every_verb_and_exit_code_is_documented():
    assert re.findall(r"^\| `([a-z]+) ?[A-Z\[\] ]*` \|", CLI, re.MULTILINE) == list(VERBS)
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", CLI, re.MULTILINE)}
    raised = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)}
    assert listed == raised | {0, 130}


def test_the_drawing_is_straight():
    drawing = ARCHITECTURE.split("```")[1]
    assert len({len(line) for line in drawing.splitlines() if line.rstrip().endswith("|")}) == 1


def test_every_setting_of_sampling_has_its_stage():
    page = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| .*$", page, re.MULTILINE)
    told = dict(re.findall(r"`([a-z_]+)` (None|-?[\d.]+)?", "\n".join(rows)))
    fields = {f.name: f.default for f in dataclasses.fields(Sampling)}
    assert len(rows) == 12 and set(told) == set(fields)
    assert {name: float(text) for name, text in told.items() if text not in ("", "None")} == {
        name: value for name, value in fields.items() if isinstance(value, (int, float))
    }
    stages = re.findall(r"^\| \d+ \|", sys.modules["qtransformers.sampling"].__doc__, re.MULTILINE)
    assert len(stages) == len(rows)
