import importlib
import threading

import numpy as np
import pytest

from hub_server import HubServer
from qtransformers.cli import main
from qtransformers.gguf import GGUFFile
from qtransformers.quants import quantize
from qtransformers.types import BY_NAME


@pytest.fixture
def demo(data):
    return str(data / "demo_model")


def test_converts(demo, data, tmp_path, capsys):
    out = tmp_path / "x.gguf"
    assert main(["convert", demo, "--type", "q8_0", "--name", "qtransformers demo", "-o", str(out)]) == 0
    assert out.read_bytes() == (data / "demo-Q8_0.gguf").read_bytes()
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and "38 tensors, 3.97 MB" in stderr


def test_refuses_to_overwrite_unless_told(demo, tmp_path, capsys):
    out = tmp_path / "x.gguf"
    out.write_bytes(b"precious")
    assert main(["convert", demo, "-o", str(out)]) == 2
    assert out.read_bytes() == b"precious" and "x.gguf" in capsys.readouterr().err
    assert main(["convert", demo, "-o", str(out), "--overwrite"]) == 0
    assert out.stat().st_size > 3_000_000


def test_dry_run_writes_nothing(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", demo, "-t", "F16", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "blk.3.ffn_down.weight     F16   256 x 768   393 kB" in out
    assert "would write demo_model-F16.gguf, 38 tensors" in err
    assert list(tmp_path.iterdir()) == []


def test_how_long_learning_takes_is_not_said_of_a_dry_run(demo, capsys):
    assert main(["convert", demo, "-t", "Q4_K", "--awq", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert "after learning" in err and "on this machine" not in err


@pytest.mark.parametrize(
    "words, code",
    [
        (["nowhere"], 3),
        (["{demo}", "--type", "Q9"], 2),
        (["{demo}", "--tensor-type", "attn_v"], 2),
        (["{demo}", "--keep", "nothing"], 2),
        (["{demo}", "--pre", "qwen2"], 0),
    ],
)
def test_exit_codes(words, code, demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *(w.format(demo=demo) for w in words)]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_model_of_the_hub(data, tmp_path, command):
    server = HubServer()
    server.repos["house/demo"] = {p.name: p.read_bytes() for p in (data / "demo_model").iterdir()}
    server.repos["house/broken"] = server.repos["house/demo"] | {"config.json": b"{"}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    out = tmp_path / "x.gguf"
    before = command("convert", "house/demo", "-t", "Q4_K", "--dry-run", env=env)
    assert before.returncode == 0, before.stderr
    assert "would write demo-Q4_K_M.gguf" in before.stderr and "blk.3.ffn_down.weight" in before.stdout
    assert not list((tmp_path / "hf").rglob("*.safetensors"))  # of weights the header was read
    broken = command("convert", "house/broken", "--dry-run", env=env)
    assert broken.returncode and "qtransformers: house/broken/config.json" in broken.stderr
    done = command("convert", "house/demo", "--name", "qtransformers demo", "-o", out, env=env)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == (data / "demo-Q8_0.gguf").read_bytes()
    after = command("convert", "house/demo", "-t", "Q4_K", "--dry-run", env={**env, "HF_HUB_OFFLINE": "1"})
    assert after.stdout == before.stdout and "would write demo-Q4_K_M.gguf" in after.stderr
    server.done.set()
    server.shutdown()
    server.server_close()
    assert command("convert", "house/absent", env={**env, "HF_HUB_OFFLINE": "1"}).returncode != 0


def test_shards_types_and_what_is_kept(demo, tmp_path, capsys):
    words = ["--shard-size", "1MB", "--tensor-type", "ffn_up=F16", "--keep", "attn_v", "-t", "q4_0"]
    assert main(["convert", demo, "-o", str(tmp_path / "x.gguf"), *words]) == 0
    files = sorted(p.name for p in tmp_path.iterdir())
    assert len(files) > 2 and files[0] == f"x-00001-of-{len(files):05}.gguf"
    with GGUFFile(tmp_path / files[0]) as file:
        types = {name: str(t.type) for name, t in file.tensors.items()}
    assert types["blk.0.ffn_up.weight"] == "F16" and types["blk.2.attn_v.weight"] == "BF16"
    assert (
        types["blk.0.ffn_down.weight"] == "Q4_0" and f"x-00001-of-{len(files):05}.gguf and" in capsys.readouterr().err
    )


def test_a_gguf_file_again(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(data / "demo-Q8_0.gguf"), "-t", "Q4_K"]) == 0
    err = capsys.readouterr().err
    assert "quantised already" in err and "demo-Q8_0-Q4_K_M.gguf: 38 tensors, 2.39 MB, 5.07 bits per weight" in err


def test_back_to_safetensors(data, demo, tmp_path, capsys):
    out = tmp_path / "model.safetensors"
    assert main(["convert", str(data / "demo-Q8_0.gguf"), "-o", str(out), "--config", demo]) == 0
    assert "model.safetensors: 7.35 MB" in capsys.readouterr().err and (tmp_path / "config.json").exists()
    assert main(["convert", str(tmp_path), "-t", "Q8_0", "-o", str(tmp_path / "x.gguf")]) == 0
    assert main(["convert", demo, "-o", str(tmp_path / "y.gguf"), "--config", demo]) == 2
    assert main(["convert", str(data / "demo-Q8_0.gguf"), "-o", str(tmp_path / "y.safetensors"), "--dry-run"]) == 2
    assert "--dry-run is not for .safetensors" in capsys.readouterr().err


def test_an_importance_matrix(data, tmp_path):
    from qtransformers.quantize.imatrix import Imatrix, Sums, read, write

    name, rng = "blk.0.ffn_up.weight", np.random.default_rng(0)
    squares = rng.uniform(0.001, 1, (1, 256)) ** 4
    write(Imatrix({name: Sums(squares * 10, np.array([10]))}), tmp_path / "i.gguf")
    demo = str(data / "demo-Q8_0.gguf")
    assert (
        main(["convert", demo, "-t", "Q4_0", "--imatrix", str(tmp_path / "i.gguf"), "-o", str(tmp_path / "x.gguf")])
        == 0
    )
    with GGUFFile(tmp_path / "x.gguf") as ours, GGUFFile(demo) as before:
        x = before.tensors[name].dequantize()
        weights = read(tmp_path / "i.gguf").sums[name].mean()[0]
        np.testing.assert_allclose(weights, squares[0], rtol=1e-6)
        found = ours.tensors[name].data
        np.testing.assert_array_equal(found, quantize(x, BY_NAME["Q4_0"], importance=weights))
        assert (found != quantize(x, BY_NAME["Q4_0"])).mean() > 0.1
    assert main(["convert", demo, "--imatrix", demo, "-o", str(tmp_path / "y.gguf")]) == 4


def test_interrupted_it_says_how_to_go_on(demo, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("qtransformers.convert.write")
    encoded = module.encoded
    out, count = tmp_path / "x.gguf", 0

    def interrupted(*given):
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        return encoded(*given)

    with monkeypatch.context() as patch:
        patch.setattr(module, "encoded", interrupted)
        assert main(["convert", demo, "-o", str(out)]) == 130
    assert "x.gguf: interrupted; the same command goes on where it was" in capsys.readouterr().err and not out.exists()
    assert main(["convert", demo, "-o", str(out)]) == 0 and list(tmp_path.iterdir()) == [out]
