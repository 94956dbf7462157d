"""Files made from a checkpoint and from a GGUF file: types as planned or by budget, nothing left behind; the gate that judges them."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qtransformers.convert import convert, plan_conversion
from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.gguf import GGUFFile
from qtransformers.load import load
from qtransformers.quantize import improve as improve_module
from qtransformers.quantize import make as make_module
from qtransformers.quantize.gate import judge
from qtransformers.quantize.improve import encoded
from qtransformers.quantize.make import How, make
from qtransformers.types import BY_NAME

FEW = {"chunk": 64, "n_chunks": 2, "text": "A fox and a bear went to the river and met an owl. " * 40}


@pytest.fixture(scope="module")
def original(data, tmp_path_factory):
    return convert(data / "demo_model", tmp_path_factory.mktemp("o") / "f.gguf", "BF16")


def test_from_a_checkpoint_as_from_a_file(data, original, tmp_path):
    how = How(fold=True, **FEW)
    for source, name in ((data / "demo_model", "a"), (original, "b")):
        plan = plan_conversion(source, "Q4_K_M", name="demo")
        made = make(plan, tmp_path / f"{name}.gguf", how)
        assert made.types == {t.name: t.type for t in plan.tensors} and len(made.worst) == 29
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]
    a, b = (GGUFFile(tmp_path / f"{name}.gguf") for name in "ab")
    assert all(np.array_equal(a.tensors[n].data, b.tensors[n].data) for n in a.tensors)
    assert a.metadata["general.file_type"] == 15
    plain = GGUFFile(convert(original, tmp_path / "c.gguf", "Q4_K_M"))
    norms = [name for name in a.tensors if name.endswith("_norm.weight")]
    assert not all(np.array_equal(a.tensors[name].data, plain.tensors[name].data) for name in norms)
    with pytest.raises(ConfigError, match="exists"):
        make(plan, tmp_path / "a.gguf", how)


def test_types_by_budget_keep_within_it(original, tmp_path):
    plan = plan_conversion(original, "Q4_K_M")
    make(plan, tmp_path / "a.gguf", How(bits_per_weight=4.0, **FEW))
    with GGUFFile(tmp_path / "a.gguf") as file:
        nbytes = sum(t.nbytes for t in file.tensors.values())
        assert 3.8 < 8 * nbytes / plan.n_parameters <= 4.0
        assert len({t.type.name for t in file.tensors.values()}) > 3
    with pytest.raises(ConfigError, match="smallest types"):
        make(plan, tmp_path / "b.gguf", How(nbytes=100_000, **FEW))
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_types_that_were_stated_stand_in_a_budget(original, tmp_path):
    plan = plan_conversion(original, "Q8_0", overrides=[("attn_v", "Q5_1")], keep=["blk.0.attn_k"])
    made = make(plan, tmp_path / "a.gguf", How(bits_per_weight=4.6, judged=False, **FEW))
    assert {made.types[f"blk.{i}.attn_v.weight"].name for i in range(4)} == {"Q5_1"}
    assert made.types["blk.0.attn_k.weight"].name == "BF16"
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert file.metadata["general.file_type"] != 7  # most bytes are of no 8 bits
        assert 8 * sum(t.nbytes for t in file.tensors.values()) / plan.n_parameters <= 4.6


def test_a_checkpoint_that_is_quantised_keeps_its_integers(data, tmp_path):
    plan = plan_conversion(data / "demo_model", "Q4_K_M")
    codes = SimpleNamespace(type=BY_NAME["Q4_K"])
    quantised = replace(
        plan, tensors=tuple(replace(t, source=(codes,)) if "ffn_up" in t.name else t for t in plan.tensors)
    )
    with pytest.raises(ConfigError, match=r"4 weights \(blk\.0\.ffn_up\.weight, \.\.\.\) are quantised already"):
        make(quantised, tmp_path / "a.gguf", How(fold=True, **FEW))
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_short(data, tmp_path):
    with pytest.raises(ConfigError, match="tokens"):
        make(plan_conversion(data / "demo_model", "Q4_K_M"), tmp_path / "a.gguf", How(text="short"))
    assert list(tmp_path.iterdir()) == []


def test_room_on_the_disk_is_looked_for_before_anything_is_learned(data, original, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(make_module, "load", None)  # which is not reached
    folder, file = (plan_conversion(source, "Q4_K_M") for source in (data / "demo_model", original))
    with GGUFFile(original) as whole:
        floats = sum(t.nbytes for t in whole.tensors.values())
    largest = plan_conversion(original, "Q8_0").nbytes  # however much a budget allows
    wanted = [
        (folder, How(fold=True), floats + 2 * folder.nbytes),  # the original, what was found out, the file
        (file, How(fold=True), 2 * file.nbytes),
        (file, How(nbytes=1_500_000), 3_000_000),
        (file, How(bits_per_weight=4.0), 2 * (file.n_parameters // 2)),
        (file, How(nbytes=1 << 40), 2 * largest),
        (file, How(bits_per_weight=32.0), 2 * largest),
    ]
    for plan, how, needed in wanted:
        with pytest.raises(QTransformersError, match=f"has 1000 bytes free; {needed} are needed"):
            make(plan, tmp_path / "a.gguf", how)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".a.gguf.0123456789ab.part").write_bytes(bytes(5000))  # of an earlier run
    (tmp_path / "..a.gguf.0123456789ab.floats.gguf.0123456789ab.part").write_bytes(bytes(700))
    (tmp_path / ".a.gguf.gone").symlink_to("nowhere")
    with pytest.raises(QTransformersError, match=f"{2 * file.nbytes - 5700} are needed"):
        make(file, tmp_path / "a.gguf", How(fold=True))


def test_no_more_room_is_taken_than_was_looked_for(data, original, tmp_path):
    plan, most = plan_conversion(data / "demo_model", "Q4_K_M"), 0

    def look(what, done, total):
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))

    make(plan, tmp_path / "a.gguf", How(fold=True, judged=False, **FEW), progress=look)
    with GGUFFile(original) as whole:
        needed = sum(t.nbytes for t in whole.tensors.values()) + 2 * plan.nbytes
    headers = 3 << 17  # of three files, the vocabulary in two of them
    assert 0.9 * needed < most < needed + headers


def test_a_full_disk_leaves_nothing_of_the_original_in_floats(data, tmp_path, monkeypatch):
    """It is soon written again, and who goes on without learning would never come back to it."""
    write = make_module.write

    def filled(plan, output, *, progress):
        def stop(done, total):
            if done > total // 2:
                raise OSError(errno.ENOSPC, "No space left on device")

        return write(plan, output, progress=stop)

    monkeypatch.setattr(make_module, "write", filled)
    with pytest.raises((QTransformersError, OSError), match="No space left"):
        make(plan_conversion(data / "demo_model", "Q4_K_M"), tmp_path / "a.gguf", How(fold=True, judged=False, **FEW))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file_to_write(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_module, "load", None)
    plan = plan_conversion(original, "Q4_K_M")
    for output, more in ((tmp_path, {}), (Path("."), {}), (Path("."), {"max_bytes": 1_000_000})):
        with pytest.raises(ConfigError, match="is a folder; expected the name of a file"):
            make(plan, output, How(fold=True, **FEW), overwrite=True, **more)
    assert not list(tmp_path.iterdir())


def test_the_gate_names_what_hurts(original, tmp_path):
    text = FEW["text"]
    base = load(original, context_length=64, logits_rows=64)
    good = load(convert(original, tmp_path / "g.gguf", "Q8_0"), context_length=64)
    assert judge(base, good, text).grade == "good" and not judge(base, good, text).suspects
    bad = convert(
        original, tmp_path / "b.gguf", "Q8_0", overrides=[("blk.1.ffn_gate|blk.2.attn_v", "Q1_0")], force=True
    )
    verdict = judge(base, load(bad, context_length=64), text, n_chunks=4)
    assert verdict.grade != "good" and verdict.found.mean > 0.05
    assert {s.name for s in verdict.suspects[:2]} == {"blk.1.ffn_gate.weight", "blk.2.attn_v.weight"}
    assert verdict.suspects[0].remedy.startswith("--tensor-type blk.")
    assert len(verdict.lines()) == 1 + len(verdict.suspects)


def test_floats_have_nothing_to_learn(original, tmp_path):
    with pytest.raises(ConfigError, match="F16 rounds nothing"):
        make(plan_conversion(original, "F16"), tmp_path / "a.gguf", How(fold=True, **FEW))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "how", [How(fold=True, judged=False, **FEW), How(fold=True, bits_per_weight=4.5, judged=False, **FEW)]
)
def test_an_interrupted_run_goes_on_where_it_was(how, original, tmp_path, monkeypatch):
    plan = plan_conversion(original, "Q4_K_M")
    whole = make(plan, tmp_path / "whole.gguf", how)

    def stop(what, done, total):
        if what == "quantising" and done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(plan, tmp_path / "a.gguf", how, progress=stop)
    assert len(list(tmp_path.glob(".a.gguf.*.part"))) == 1 and not (tmp_path / "a.gguf").exists()
    encodings = []
    monkeypatch.setattr(improve_module, "encoded", lambda *given: encodings.append(1) or encoded(*given))
    monkeypatch.setattr(make_module, "survey", None)  # which is not asked again
    made = make(plan, tmp_path / "a.gguf", how)
    assert len(encodings) == 29 - 12 and made.errors == whole.errors
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "whole.gguf"]


def test_several_files(original, tmp_path):
    plan = plan_conversion(original, "Q4_K_M")
    how = How(compensate=False, fold=True, judged=False, **FEW)
    one = make(plan, tmp_path / "one.gguf", how)
    made = make(plan, tmp_path / "a.gguf", how, max_bytes=1_000_000)
    assert len(made.paths) > 2 and all(path.stat().st_size <= 1_000_000 for path in made.paths)
    with GGUFFile(one.paths[0]) as whole, GGUFFile(made.paths[0]) as split:
        assert all(np.array_equal(t.data, split.tensors[name].data) for name, t in whole.tensors.items())
    with pytest.raises(ConfigError, match=r"a-00001-of-\d+\.gguf exists"):
        make(plan, tmp_path / "a.gguf", how, max_bytes=1_000_000)


def test_types_stated_anew_are_not_those_of_the_run_before(original, tmp_path):
    how = How(bits_per_weight=4.6, judged=False, **FEW)

    def stop(what, done, total):
        if what == "quantising":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(plan_conversion(original, "Q8_0"), tmp_path / "a.gguf", how, progress=stop)
    assert len(list(tmp_path.iterdir())) == 1
    made = make(plan_conversion(original, "Q8_0", overrides=[("attn_v", "Q8_0")]), tmp_path / "a.gguf", how)
    assert {made.types[f"blk.{i}.attn_v.weight"].name for i in range(4)} == {"Q8_0"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_killed_while_it_judges_a_run_leaves_only_its_file(data, tmp_path, monkeypatch):
    there = []
    told = make_module._verdict
    monkeypatch.setattr(
        make_module, "_verdict", lambda *given: there.extend(p.name for p in tmp_path.iterdir()) or told(*given)
    )
    made = make(plan_conversion(data / "demo_model", "Q4_K_M"), tmp_path / "a.gguf", How(fold=True, **FEW))
    assert there == ["a.gguf"] and made.verdict is not None


def test_what_a_run_left_that_was_killed_at_its_end(data, tmp_path):
    plan, out = plan_conversion(data / "demo_model", "Q4_K_M"), tmp_path / "a.gguf"
    floats, done, other = make_module._floats(out), tmp_path / ".a.gguf.0123456789ab.part", tmp_path / ".a.gguf.ab0123456789.part"  # fmt: skip
    for path in (floats, done, out, other):
        path.write_bytes(b"x")
    for path, seconds in ((done, 1), (out, 2), (other, 3)):  # the other was found out since, by a run that overwrites
        os.utime(path, (seconds, seconds))
    with pytest.raises(ConfigError, match="exists"):
        make(plan, out, How(fold=True, **FEW))
    assert sorted(tmp_path.iterdir()) == sorted((out, other))
