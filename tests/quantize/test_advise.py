"""Advice follows the memory there is: floats on a large GPU, 4 bits on the CPU, nothing where nothing fits."""

import pytest

from qtransformers.convert import convert
from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFFile
from qtransformers.load.fit import Budget
from qtransformers.quantize import advise as a
from qtransformers.quantize.advise import LOSS, Option, advise

GIB = 1 << 30


def options(fits, on_gpu=0.0, gib=16):
    sizes = {
        t: int(gib * GIB * f) for t, f in zip(LOSS, (1, 0.53, 0.41, 0.35, 0.3, 0.28, 0.27, 0.24, 0.2), strict=True)
    }
    return tuple(
        Option(t, n, n, LOSS[t], "fits" if t in fits else "does not fit", on_gpu, a._method(t))
        for t, n in sizes.items()
    )


def test_the_choice():
    every = tuple(LOSS)
    assert a._choose(options(every, on_gpu=1.0), True)[0].file_type == "F16"
    assert a._choose(options(every[1:], on_gpu=1.0), True)[0].file_type == "Q8_0"
    on_cpu, why = a._choose(options(every), False)
    assert (on_cpu.file_type, on_cpu.method) == ("Q4_K_M", "--awq --refine") and "mapped" in why
    assert a._choose(options(every, gib=1), False)[0].file_type == "Q8_0"
    worst, why = a._choose(options(every[-2:]), False)
    assert worst.file_type == "Q3_K_M" and "smaller model" in why
    assert a._choose(options(()), False)[0] is None


def test_bytes_are_those_that_convert_writes(data, tmp_path):
    found = advise(str(data / "demo_model"), Budget(8 * GIB, 8 * GIB, said=True))
    assert {o.file_type for o in found.options} == set(LOSS)
    for name in ("Q4_K_M", "Q2_K", "F16"):
        with GGUFFile(convert(data / "demo_model", tmp_path / f"{name}.gguf", name)) as file:
            nbytes = sum(t.nbytes for t in file.tensors.values())
        assert next(o.nbytes for o in found.options if o.file_type == name) == nbytes
    assert found.best.file_type == "Q8_0" and found.command.endswith("demo_model -t Q8_0")


def test_a_file_and_a_checkpoint_are_advised_alike(data):
    a_file, a_folder = (
        advise(str(data / n), Budget(8 * GIB, 8 * GIB, said=True)) for n in ("demo-Q8_0.gguf", "demo_model")
    )
    assert a_file.command.startswith("qtransformers convert ORIGINAL -t ") and "quantised already" in a_file.why
    assert [(o.file_type, o.nbytes, o.verdict) for o in a_file.options] == [
        (o.file_type, o.nbytes, o.verdict) for o in a_folder.options
    ]


def test_experts_that_a_token_does_not_visit_are_not_read():
    from types import SimpleNamespace as S

    tensors = [S(nbytes=n, role=r) for n, r in ((100, "embed"), (800, "experts"), (50, "attn"))]
    metadata = {"general.architecture": "m", "m.expert_count": 8, "m.expert_used_count": 2}
    assert a._per_token(S(tensors=tensors, ties={}), metadata) == 250
    assert a._per_token(S(tensors=tensors, ties={"output": "token_embd"}), metadata) == 350


def test_nothing_fits_and_nothing_is_known(data):
    tiny = advise(str(data / "demo_model"), Budget(1 << 20, 1 << 20, said=True))
    assert tiny.best is None and "smaller model" in tiny.why and tiny.command == ""
    with pytest.raises(ConfigError, match="how much memory"):
        advise(str(data / "demo_model"), Budget(None))


def test_a_gpu_takes_all_of_a_small_model(data):
    found = advise(str(data / "demo_model"), Budget(8 * GIB, 8 * GIB, {"cuda:0": 6 * GIB}, said=True))
    assert found.best.file_type == "F16" and found.best.on_gpu == 1
