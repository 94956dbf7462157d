import pytest

from gguf_files import ARCH, entry, file, info
from qtransformers.errors import GGUFError, ModelNotFoundError, ShardError
from qtransformers.gguf import GGUFFile, split
from qtransformers.gguf.headers import FIRST_BYTES, HeaderFile


class Reader:
    """Parts of bytes, and how many were asked for."""

    def __init__(self, raw):
        self.raw, self.read, self.calls = raw, 0, 0

    def __call__(self, start, stop):
        assert start == self.read, "a part is read twice"
        self.read, self.calls = stop, self.calls + 1
        return self.raw[start:stop]


def opened(raw, name="x.gguf"):
    reader = Reader(raw)
    return HeaderFile([name], [len(raw)], [reader]), reader


def test_it_tells_what_the_whole_file_tells(data):
    path = data / "demo-Q8_0.gguf"
    header, reader = opened(path.read_bytes())
    with GGUFFile(path) as whole:
        assert list(header.metadata) == list(whole.metadata)
        assert header.metadata["tokenizer.ggml.tokens"] == whole.metadata["tokenizer.ggml.tokens"]
        assert list(header.tensors) == list(whole.tensors)
        for name, t in whole.tensors.items():
            mine = header.tensors[name]
            assert (mine.type, mine.shape, mine.nbytes, mine.n_rows) == (t.type, t.shape, t.nbytes, t.n_rows)
        assert header.nbytes == whole.nbytes and header.data_offset == whole.data_offset
    assert reader.read == FIRST_BYTES


def test_its_tensors_have_no_data(data):
    header, _ = opened((data / "demo-Q8_0.gguf").read_bytes())
    with pytest.raises(GGUFError, match=r"only the header is at hand, not the data of output_norm\.weight"):
        header.tensors["output_norm.weight"].dequantize()


def test_a_long_header_is_read_in_parts_once():
    tokens = [f"token {i:020d}" for i in range(300_000)]
    raw = file([ARCH, entry("tokenizer.ggml.tokens", "arr[str]", tokens)], [info("w", (32,))], bytes(128))
    assert 4 * FIRST_BYTES < len(raw) < 8 * FIRST_BYTES
    header, reader = opened(raw + bytes(20 * FIRST_BYTES))
    assert header.metadata["tokenizer.ggml.tokens"][-1] == tokens[-1]
    assert reader.read == 8 * FIRST_BYTES and reader.calls == 4


def test_damage_is_told_before_much_is_read():
    raw = file([ARCH, entry("general.alignment", "u32", 7)], [info("w", (32,))], bytes(60 * FIRST_BYTES))
    reader = Reader(raw)
    with pytest.raises(GGUFError, match=r"general\.alignment is 7"):
        HeaderFile(["x.gguf"], [len(raw)], [reader])
    assert reader.read <= 2 * FIRST_BYTES


def test_a_truncated_file_and_something_else(data):
    raw = (data / "demo-Q8_0.gguf").read_bytes()
    with pytest.raises(GGUFError, match="truncated"):
        opened(raw[:5000])
    with pytest.raises(GGUFError, match="a web page"):
        opened(b"<html>" + bytes(100))
    with pytest.raises(ModelNotFoundError, match="git-LFS pointer"):
        opened(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def test_shards(data, tmp_path):
    paths = split(data / "demo-Q8_0.gguf", tmp_path / "demo", max_tensors=20)
    raws = [p.read_bytes() for p in paths]
    header = HeaderFile([p.name for p in paths], [len(r) for r in raws], [Reader(r) for r in raws])
    with GGUFFile(paths[0]) as whole:
        assert list(header.tensors) == list(whole.tensors) and header.nbytes == whole.nbytes
    with pytest.raises(ShardError):
        HeaderFile([p.name for p in paths], [len(raws[0])] * 2, [Reader(raws[0]), Reader(raws[0])])
