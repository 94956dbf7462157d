"""Shards: made, found, checked, merged back bit for bit."""

import shutil

import numpy as np
import pytest

from gguf_files import ARCH, entry, file, info
from qtransformers.errors import ConfigError, GGUFError, LoadError, ShardError
from qtransformers.gguf import GGUFFile, GGUFWriter, merge, split

METADATA = {
    "general.architecture": "llama",
    "general.name": "m",
    "tokenizer.ggml.tokens": ["a", "b\udcff"],
    "a.float": 0.5,
}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.gguf"
    write(path)
    return path


def write(path, name="m", n=7, **options):
    with GGUFWriter(
        path, METADATA | {"general.name": name}, [(f"t.{i}", (i + 1, 32), "Q8_0") for i in range(n)], **options
    ) as w:
        for i in range(n):
            w.write(f"t.{i}", np.full(34 * (i + 1), i, np.uint8))
    return w


@pytest.mark.parametrize(
    "options",
    [
        {"max_tensors": 1},
        {"max_tensors": 3},
        {"max_tensors": 100},
        {"max_bytes": 600},
        {"max_bytes": 600, "max_tensors": 2},
    ],
)
@pytest.mark.parametrize("big_endian, alignment", [(False, None), (True, 64)])
def test_there_and_back(tmp_path, options, big_endian, alignment):
    path = tmp_path / "m.gguf"
    write(path, big_endian=big_endian, alignment=alignment)
    shards = split(path, tmp_path / "s", **options)
    n = len(shards)
    assert [p.name for p in shards] == [f"s-{i + 1:05d}-of-{n:05d}.gguf" for i in range(n)]
    sizes = [len(GGUFFile(shards[0]).tensors)] if n == 1 else []
    with GGUFFile(path) as one, GGUFFile(shards[0]) as many:
        assert list(one.tensors) == list(many.tensors) and many.paths == shards
        assert many.nbytes == sum(p.stat().st_size for p in shards)
        for name in one.tensors:
            assert (one.tensors[name].data == many.tensors[name].data).all()
        assert {k: one.metadata[k] for k in METADATA} == {k: many.metadata[k] for k in METADATA}
    assert not sizes or sizes == [7]
    for shard in shards:
        if "max_bytes" in options:
            assert shard.stat().st_size <= options["max_bytes"]
    assert merge(shards[0], tmp_path / "back.gguf") == tmp_path / "back.gguf"
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()


def test_the_demo_file_there_and_back(tmp_path, data):
    shards = split(data / "demo-Q8_0.gguf", tmp_path / "s", max_tensors=10)
    assert len(shards) == 4
    merge(shards[0], tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == (data / "demo-Q8_0.gguf").read_bytes()


def test_the_writer_makes_shards_itself(tmp_path):
    paths = write(tmp_path / "m.gguf", max_tensors=4).paths
    assert [p.name for p in paths] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    types = {k: GGUFFile(paths[0]).metadata.info(k).type for k in ("split.no", "split.count", "split.tensors.count")}
    assert types == {"split.no": "u16", "split.count": "u16", "split.tensors.count": "i32"}


def test_shards_are_split_again(tmp_path, model):
    first = split(model, tmp_path / "a", max_tensors=2)[0]
    again = split(first, tmp_path / "b", max_tensors=5)
    assert len(again) == 2
    merge(again[0], tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == model.read_bytes()


def test_limits_it_cannot_keep(tmp_path, model):
    for options, message in (
        ({}, "needs a limit"),
        ({"max_tensors": 0}, "positive"),
        ({"max_bytes": 300}, r"t\.1 alone makes a shard of 320 bytes"),
        ({"max_bytes": 100}, "metadata alone takes"),
    ):
        with pytest.raises(ConfigError, match=message):
            split(model, tmp_path / "s", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_first_shard_of_metadata_alone(tmp_path, model):
    write(model, name="n" * 400, overwrite=True)
    shards = split(model, tmp_path / "s", max_bytes=700)
    with GGUFFile(shards[0]) as file:
        assert file.data_offset == shards[0].stat().st_size and len(file.tensors) == 7
    merge(shards[0], tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == model.read_bytes()


def test_nothing_is_overwritten_unasked(tmp_path, model):
    shards = split(model, tmp_path / "s", max_tensors=4)
    for call in (
        lambda **o: split(model, tmp_path / "s", max_tensors=4, **o),
        lambda **o: merge(shards[0], model, **o),
    ):
        with pytest.raises(ConfigError, match="exists"):
            call()
        call(overwrite=True)
    with pytest.raises(ConfigError, match="one of the shards"):
        merge(shards[0], shards[1], overwrite=True)


def test_a_later_shard_names_the_first(tmp_path, model):
    shards = split(model, tmp_path / "s", max_tensors=3)
    with pytest.raises(ShardError, match=r"is shard 2 of 3. Open the first: s-00001-of-00003.gguf"):
        GGUFFile(shards[1])


def test_missing_shards_are_named(tmp_path, model):
    shards = split(model, tmp_path / "s", max_tensors=1)
    for i in (2, 5):
        shards[i].unlink()
    with pytest.raises(
        ShardError, match=r"2 of 7 shards are missing: s-00003-of-00007.gguf, s-00006-of-00007.gguf"
    ) as e:
        GGUFFile(shards[0])
    assert isinstance(e.value, GGUFError) and isinstance(e.value, LoadError)


def test_renamed_shards_say_their_name(tmp_path, model):
    first = split(model, tmp_path / "s", max_tensors=4)[0]
    for name in ("model.gguf", "s-00001-of-00003.gguf", "s-00002-of-00002.gguf"):
        with pytest.raises(ShardError, match=r"<name>-00001-of-00002.gguf"):
            GGUFFile(shutil.copy(first, tmp_path / name))


def swap_in(tmp_path, change, **options):
    """Shards of a model whose second comes from another."""
    write(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf", **options)
    a, b = (split(tmp_path / f"{n}.gguf", tmp_path / n, max_tensors=4) for n in "ab")
    shutil.copy(b[1], a[1])
    if change:
        change(a)
    return a[0]


def test_shards_of_different_models(tmp_path):
    cases = [
        ({"n": 8}, "split.tensors.count: 8 and 7"),
        ({"big_endian": True}, "byte order"),
    ]
    for options, message in cases:
        with pytest.raises(ShardError, match=message):
            GGUFFile(swap_in(tmp_path, None, **options))
        for path in tmp_path.iterdir():
            path.unlink()


def shard(no, count, total, names, architecture="llama"):
    entries = [
        entry("general.architecture", "str", architecture),
        entry("split.no", "u16", no),
        entry("split.count", "u16", count),
    ]
    entries += [entry("split.tensors.count", "i32", total)] if total is not None else []
    infos = [info(name, [8], 0, 32 * i) for i, name in enumerate(names)]
    return file(entries, infos, bytes(32 * len(names)))


BAD_SETS = {
    "another architecture": (
        [shard(0, 2, 2, ["a"]), shard(1, 2, 2, ["b"], "qwen2")],
        "differ in general.architecture: 'qwen2' and 'llama'",
    ),
    "the same tensor": ([shard(0, 2, 2, ["a"]), shard(1, 2, 2, ["a"])], "a is in both"),
    "too few tensors": ([shard(0, 2, 3, ["a"]), shard(1, 2, None, ["b"])], "is 3, but its 2 shards hold 2 tensors"),
    "another number": ([shard(0, 2, 2, ["a"]), shard(0, 2, 2, ["b"])], "split.no is 0; expected 1"),
    "another count": ([shard(0, 2, 2, ["a"]), shard(1, 3, 2, ["b"])], "split.count is 3; expected 2"),
    "no shard at all": (
        [shard(0, 2, 2, ["a"]), file([ARCH], [info("b", [8])], bytes(32))],
        "split.no is None; expected 1",
    ),
    "damaged": ([shard(0, 2, 2, ["a"]), shard(1, 2, 2, ["b"])[:-20]], "m-00002-of-00002.gguf: b needs bytes"),
}


@pytest.mark.parametrize("files, message", BAD_SETS.values(), ids=BAD_SETS)
def test_sets_that_do_not_fit_together(tmp_path, files, message):
    for i, raw in enumerate(files):
        (tmp_path / f"m-{i + 1:05d}-of-{len(files):05d}.gguf").write_bytes(raw)
    with pytest.raises(GGUFError, match=message):
        GGUFFile(tmp_path / f"m-00001-of-{len(files):05d}.gguf")


def test_a_set_as_llama_cpp_makes_it(tmp_path):
    """Later shards with the keys of the split alone; a merged file says it has 0 shards."""
    entries = [entry("split.no", "u16", 1), entry("split.count", "u16", 2), entry("split.tensors.count", "i32", 2)]
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(shard(0, 2, 2, ["a"]))
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(file(entries, [info("b", [8])], bytes(32)))
    assert list(GGUFFile(tmp_path / "m-00001-of-00002.gguf").tensors) == ["a", "b"]
    (tmp_path / "merged.gguf").write_bytes(shard(0, 0, 1, ["a"]))
    assert list(GGUFFile(tmp_path / "merged.gguf").tensors) == ["a"]
