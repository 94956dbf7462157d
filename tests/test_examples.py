"""Every example runs, offline, on the demo model."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
USES = {  # example: arguments, a line of its output
    "inspect_file.py": (["{gguf}"], "llama, 38 tensors, 3,970,080 bytes"),
    "chat.py": (["demo", "What is 7 plus 5?"], "7 plus 5 is 12."),
    "two_paths.py": (["{gguf}", "{folder}"], "7 plus 5 is 12."),
    "many_prompts.py": ([], "tokens were in the cache"),
    "side_by_side.py": ([], "Usage(running=0, waiting=0"),
    "saved_session.py": (["{tmp}/s.gguf"], "tokens were there already"),
    "lora.py": ([], "scale 0.0: 'Once upon a time there was a "),
    "look_inside.py": ([], "likeliest: "),
    "structured.py": ([], "as JSON: {'name'"),
    "in_transformers.py": (["{folder}", "{gguf}"], "7 plus 5 is 12."),
    "pictures.py": (["{aura}", "{pipeline}", "a red fox", "32", "{tmp}/fox.png"], "step 4 of 4"),
    "convert_model.py": (["{folder}", "{tmp}/out.gguf"], "wrote "),
}

WITH_RAY = {"ray_serve.py", "ray_data.py"}  # tests/serve/test_ray.py, by make test-ray


def test_every_example_is_listed():
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(USES) | WITH_RAY


def tiny_pipeline(folder):
    """A pipeline with random weights, and a GGUF file of its transformer."""
    pytest.importorskip("diffusers")
    from tiny_diffusion.files import write
    from tiny_diffusion.pipelines import saved

    pipe, base = saved(folder / "base")
    return {"aura": write(folder / "aura.gguf", "aura", pipe.transformer.state_dict()), "pipeline": base}


@pytest.mark.parametrize("name", USES)
def test_example(name, data, tmp_path):
    words, expected = USES[name]
    places = {"gguf": data / "demo-Q8_0.gguf", "folder": data / "demo_model", "tmp": tmp_path}
    if name == "pictures.py":
        places |= tiny_pipeline(tmp_path)
    line = [sys.executable, str(EXAMPLES / name), *(w.format(**places) for w in words)]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8", check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
