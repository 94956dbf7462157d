"""Models of real sizes by their headers: what files of them would be; and one that is larger than the memory it may take."""

import math
import subprocess
import sys

import pytest

from qtransformers.convert import plan_conversion
from qtransformers.convert.estimate import seconds, time_text
from tiny_diffusion.published import PUBLISHED
from tiny_diffusion.sparse import shapes_of, write_sparse

REAL = {p.id: p for p in reversed(PUBLISHED) if p.id in ("aura", "flux", "sd3")}


@pytest.mark.parametrize("id", REAL)
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_plans_of_real_models(id, layout, tmp_path):
    real = REAL[id]
    shapes = shapes_of(id, real.config, layout)
    path = write_sparse(tmp_path / "m.safetensors", shapes)
    for type, (least, most) in {"Q4_K_M": (4.6, 5.4), "Q8_0": (8.5, 8.8)}.items():
        plan = plan_conversion(path, type, config=real.config)
        assert (
            plan.n_parameters == sum(map(math.prod, shapes.values())) == pytest.approx(real.billions * 1e9, rel=0.04)
        )  # and buffers
        assert least < plan.bits_per_weight < most
        assert plan.metadata["general.architecture"] == id
    assert seconds(plan) > 1


def test_time_for_people():
    assert [time_text(t) for t in (0.1, 40, 240, 7200)] == ["1 s", "40 s", "4 min", "2.0 h"]


CONVERT = """
import resource, sys
from qtransformers.convert import convert
config = dict(num_mmdit_layers=1, num_single_dit_layers=4, num_attention_heads=12, attention_head_dim=256)
convert(sys.argv[1], sys.argv[2], "Q4_0", config=config)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    config = {**REAL["aura"].config, "num_mmdit_layers": 1, "num_single_dit_layers": 4}
    path = write_sparse(tmp_path / "m.safetensors", shapes_of("aura", config, "diffusers"))
    done = subprocess.run([sys.executable, "-c", CONVERT, str(path), str(tmp_path / "m.gguf")], capture_output=True, text=True, check=True)  # fmt: skip
    assert path.stat().st_size > 2e9 and (tmp_path / "m.gguf").stat().st_size > 5e8
    assert int(done.stdout) < 1000  # MB
