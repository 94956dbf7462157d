"""Finding the files of both paths."""

import shutil

import pytest

from qtransformers.errors import ConfigError, GGUFError, LoadError, ModelNotFoundError, QTransformersError
from qtransformers.gguf import split
from qtransformers.load.hub import Hub
from qtransformers.load.source import Report, resolve

OFFLINE = Hub(offline=True)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064x}\nsize {}\n"


@pytest.fixture
def demo(data):
    return data / "demo-Q8_0.gguf"


def test_gguf_alone(demo):
    sources = resolve(demo)
    assert sources.gguf.metadata["general.architecture"] == "llama"
    assert sources.model_dir is None and not sources.files
    n_values = sum(t.n_values for t in sources.gguf.tensors.values())
    assert sources.report.full == 2 * n_values
    assert sources.report.gguf == demo.stat().st_size
    assert sources.report.memory_saved == 2 * n_values - demo.stat().st_size > 3_000_000
    assert "16 bits a weight" in sources.report.text() and "saves 3." in sources.report.text()


def test_both_paths(demo, data):
    sources = resolve(str(demo), str(data / "demo_model"), hub=OFFLINE)
    assert set(sources.files) == {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    weights = (data / "demo_model/model.safetensors").stat().st_size
    report = sources.report
    assert (report.full, report.on_disk, report.disk_saved) == (weights, weights, 0)
    assert report.memory_saved == weights - demo.stat().st_size
    assert "could be deleted" in report.text()
    with pytest.raises(AttributeError):
        sources.model_dir = None
    with pytest.raises(TypeError):
        sources.files["x"] = demo


def test_model_path_alone(data):
    sources = resolve(model_path=data / "demo_model", hub=OFFLINE)
    assert sources.gguf is None and "tokenizer.json" in sources.files
    assert sources.report.memory_saved == sources.report.disk_saved == 0


def test_neither():
    with pytest.raises(ConfigError, match="neither gguf_path nor model_path"):
        resolve()


def test_weight_pointers_are_normal_and_counted(demo, hf_dir):
    folder = hf_dir()
    for i, size in enumerate((4_976_698_672, 4_999_802_720)):
        (folder / f"model-0000{i + 1}-of-00002.safetensors").write_text(POINTER.format(i, size))
    (folder / "consolidated.pth").write_text(POINTER.format(9, 16_000_000_000))  # the same weights again
    report = resolve(demo, folder, hub=OFFLINE).report
    assert report.full == report.skipped == 4_976_698_672 + 4_999_802_720
    assert report.on_disk == 0
    assert report.disk_saved == report.memory_saved == report.full - demo.stat().st_size
    assert "9.98 GB (2 weight files in model_path, git-LFS pointers)" in report.text()


def test_weights_of_which_some_are_pointers(demo, hf_dir):
    folder = hf_dir()
    (folder / "model-00001-of-00002.safetensors").write_text(POINTER.format(1, 9_000_000))
    (folder / "model-00002-of-00002.safetensors").write_bytes(bytes(5_000_000))
    report = resolve(demo, folder, hub=OFFLINE).report
    assert (report.full, report.on_disk) == (14_000_000, 5_000_000)
    assert report.disk_saved == 9_000_000 - demo.stat().st_size
    assert "2 weight files in model_path, 1 of them git-LFS pointers" in report.text()
    assert "5 MB of unquantised weights" in report.text()


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tekken.json"])
def test_a_pointer_nobody_needs(demo, hf_dir, name):
    """A clone without LFS: tokenizer.json is there, and what only repeats it is a pointer."""
    folder = hf_dir()
    (folder / name).write_text(POINTER.format(1, 500_000))
    assert resolve(demo, folder, hub=OFFLINE).files[name]
    (folder / "tokenizer.json").unlink()
    if name == "tokenizer.model":
        with pytest.raises(ModelNotFoundError, match=r'git lfs pull --include="tokenizer\.model"'):
            resolve(demo, folder, hub=OFFLINE)


@pytest.mark.parametrize("names", [["tokenizer.json"], ["config.json", "tokenizer.json"]])
def test_pointers_in_place_of_needed_files(demo, hf_dir, names):
    folder = hf_dir()
    for name in names:
        (folder / name).write_text(POINTER.format(1, 111_652))
    with pytest.raises(ModelNotFoundError) as e:
        resolve(demo, folder, hub=OFFLINE)
    assert f'git lfs pull --include="{",".join(names)}"' in str(e.value)
    assert str(folder) in str(e.value)


def test_a_pointer_in_place_of_the_gguf(tmp_path):
    (tmp_path / "model.gguf").write_text(POINTER.format(1, 4_000_000_000))
    for path in (tmp_path / "model.gguf", tmp_path):
        with pytest.raises(ModelNotFoundError, match=r"git lfs pull --include.*model\.gguf"):
            resolve(path)


def test_pointers_beside_the_one_model_that_was_fetched(demo, tmp_path):
    for name in ("model-Q2_K.gguf", "model-Q6_K-00001-of-00002.gguf", "model-Q6_K-00002-of-00002.gguf"):
        (tmp_path / name).write_text(POINTER.format(1, 4_000_000_000))
    with pytest.raises(ModelNotFoundError, match=r'git-LFS pointers.*git lfs pull --include="model-Q2_K.gguf"'):
        resolve(tmp_path)
    shutil.copy(demo, tmp_path / "model-Q8_0.gguf")
    assert resolve(tmp_path).gguf.path == tmp_path / "model-Q8_0.gguf"


def test_shards_of_which_one_is_a_pointer(tmp_path, demo):
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    split(demo, tmp_path / "m", max_bytes=3_000_000)
    assert resolve(tmp_path).gguf.path == first
    for shard in (first, second):
        whole = shard.read_bytes()
        shard.write_text(POINTER.format(1, 3_000_000))
        with pytest.raises(QTransformersError, match=rf"{shard.name}[^\n]*git"):
            resolve(tmp_path)
        shard.write_bytes(whole)


def test_the_suggested_model_is_one_that_opens(demo, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF, or so it says")
    for name in ("b.gguf", "c.gguf"):
        shutil.copy(demo, tmp_path / name)
    with pytest.raises(LoadError, match=rf"3 models: a.gguf, b.gguf, c.gguf.*such as {tmp_path}/b.gguf"):
        resolve(tmp_path)


def test_a_folder_with_one_model(demo, tmp_path, make):
    shutil.copy(demo, tmp_path / "model.gguf")
    for name, kind in (("mmproj-model-f16.gguf", "mmproj"), ("a-lora.gguf", "adapter"), ("b.imatrix.gguf", "imatrix")):
        make(tmp_path / name, {"general.type": kind}, [make.tensor("x", [1.0])])
    make(tmp_path / "clip.gguf", {"general.architecture": "clip"}, [make.tensor("x", [1.0])])
    (tmp_path / "README.md").write_text("x")
    assert resolve(tmp_path).gguf.path == tmp_path / "model.gguf"


def test_a_folder_in_a_folder(demo, tmp_path):
    (tmp_path / "Q8_0").mkdir()
    shutil.copy(demo, tmp_path / "Q8_0/model.gguf")
    assert resolve(tmp_path).gguf.path == tmp_path / "Q8_0/model.gguf"


def test_what_a_killed_conversion_left_is_no_model(demo, tmp_path):
    shutil.copy(demo, tmp_path / ".model-Q4_K_M.gguf.floats.gguf")
    shutil.copy(demo, tmp_path / "model.gguf")
    assert resolve(tmp_path).gguf.path == tmp_path / "model.gguf"


def test_two_models_in_one_folder(demo, tmp_path, make):
    shutil.copy(demo, tmp_path / "model-Q8_0.gguf")
    shutil.copy(demo, tmp_path / "model-Q4_K_M.gguf")
    make(tmp_path / "mmproj.gguf", {"general.type": "mmproj"}, [make.tensor("x", [1.0])])
    with pytest.raises(LoadError) as e:
        resolve(tmp_path)
    text = str(e.value)
    assert "2 models: model-Q4_K_M.gguf, model-Q8_0.gguf" in text
    assert f"such as {tmp_path / 'model-Q4_K_M.gguf'}" in text
    assert "mmproj.gguf is the vision or audio part" in text


@pytest.mark.parametrize("kind, what", [("mmproj", "vision"), ("adapter", "LoRA adapter"), ("imatrix", "importance matrix")])  # fmt: skip
def test_files_that_are_no_models(tmp_path, make, kind, what):
    path = make(tmp_path / "model-Q4_K_M.gguf", {"general.type": kind}, [make.tensor("x", [1.0])])
    with pytest.raises(LoadError, match=f"{what}.*not a model"):
        resolve(path)
    with pytest.raises(ModelNotFoundError, match=f"no GGUF model(.|\n)*{what}"):
        resolve(tmp_path)


def test_missing_shards_are_named(tmp_path, make):
    make(tmp_path / "m-00001-of-00003.gguf", {"split.no": 0, "split.count": 3}, [make.tensor("x", [1.0])])
    make(tmp_path / "m-00003-of-00003.gguf", {"split.no": 2, "split.count": 3}, [make.tensor("y", [1.0])])
    for path in (tmp_path / "m-00001-of-00003.gguf", tmp_path):
        with pytest.raises(LoadError, match=r"m-00002-of-00003\.gguf"):
            resolve(path)
    with pytest.raises(LoadError, match=r"m-00001-of-00003\.gguf"):
        resolve(tmp_path / "m-00003-of-00003.gguf")


def test_all_shards(tmp_path, make):
    for i in range(2):
        make(
            tmp_path / f"m-0000{i + 1}-of-00002.gguf", {"split.no": i, "split.count": 2}, [make.tensor(f"x{i}", [1.0])]
        )
    for path in (tmp_path, tmp_path / "m-00001-of-00002.gguf"):
        assert list(resolve(path).gguf.tensors) == ["x0", "x1"]


def test_an_original_model_as_gguf_path(hf_dir):
    folder = hf_dir()
    with pytest.raises(ModelNotFoundError, match="pass it as model_path"):
        resolve(folder)
    with pytest.raises(GGUFError, match="JSON"):
        resolve(folder / "config.json")


def test_a_file_as_model_path(demo):
    with pytest.raises(ModelNotFoundError, match="gguf_path="):
        resolve(model_path=demo)
    with pytest.raises(ModelNotFoundError, match="expected a directory"):
        resolve(model_path=demo.parent / "demo_model/config.json")


def test_a_directory_without_anything(demo, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json, tokenizer\.json.*notes\.txt"):
        resolve(demo, tmp_path)


@pytest.mark.parametrize("path", ["./x", "/no/such/dir", "..//x", "../x", "~/no-such-directory", "a/b/c", "x", "x\\y", "models/x.gguf", "a/..", "user/repo:Q4_K_M", "C:\\models\\x"])  # fmt: skip
def test_paths_never_go_to_the_hub(path, demo):
    hub = Hub(endpoint="http://127.0.0.1:1", timeout=1)  # nothing listens: asking it would be a NetworkError
    with pytest.raises(ModelNotFoundError, match="no such directory, and not a Hub id"):
        resolve(demo, path, hub=hub)


@pytest.mark.parametrize("name", ["gguf_path", "model_path"])
def test_what_the_system_cannot_look_up(demo, name):
    with pytest.raises(ConfigError, match=f"{name} is empty"):
        resolve(**{"gguf_path": demo, name: ""}, hub=OFFLINE)
    with pytest.raises(ModelNotFoundError, match=rf"{name} 'aaa.*too long") as e:
        resolve(**{"gguf_path": demo, name: "a" * 5000}, hub=OFFLINE)
    assert len(str(e.value)) < 200


@pytest.mark.parametrize("path", ["./x.gguf", "no/such.gguf", "user/repo:Q4_K_M"])
def test_a_gguf_path_that_is_not_there(path):
    with pytest.raises(ModelNotFoundError, match="no such file or folder") as e:
        resolve(path)
    assert ("from_pretrained" in str(e.value)) == (path == "user/repo:Q4_K_M")


def test_report_adds_up():
    report = Report(fetched=9_100_000, skipped=16_060_000_000, full=16_060_000_000, full_is="4 files on the Hub", gguf=4_920_000_000, hub=True)  # fmt: skip
    assert report.disk_saved == report.memory_saved == 11_140_000_000
    assert report.text().splitlines() == [
        "model_path: 9.10 MB fetched from the Hub, 16.06 GB of weights skipped",
        "weights: 4.92 GB in the GGUF instead of 16.1 GB (4 files on the Hub): saves 11.1 GB of disk and 11.1 GB of memory",
    ]
    assert Report(full=10, gguf=20, full_is="x").text() == ""
