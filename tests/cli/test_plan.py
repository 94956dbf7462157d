import json
import shutil

import pytest

import deepseek
from qtransformers import machine
from qtransformers.cli import main
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.gguf.metadata import edit_metadata

GIB = 1 << 30


def planned(capsys, *words, code=0):
    assert main(["plan", *map(str, words)]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_a_good_model(data, capsys):
    out = planned(capsys, data / "demo-Q8_0.gguf", "--ram", "2GiB")
    assert "llama, 3.67 million parameters, 8.51 bits a weight" in out
    assert "1,024 tokens in f16, 2 KiB a token" in out and "there are 2 GiB" in out
    assert out.splitlines()[-1] == "fits"


def test_json_adds_up(data, capsys):
    found = json.loads(planned(capsys, data / "demo-Q8_0.gguf", "--json", "--context", 512, "--ram", "1GiB"))
    (host,) = found["devices"]
    assert found["verdict"] == host["verdict"] == "fits" and found["problems"] == [] and found["runnable"]
    assert found["context_length"] == 512 and found["keys_and_values"] == 512 * 2048
    assert host["weights"] == found["weights"] and host["have"] == GIB
    assert host["needed"] == sum(host[k] for k in ("weights", "cache", "activations", "program", "system"))


def test_a_draft_counts_beside_the_model(data, capsys):
    words = data / "demo-Q8_0.gguf", "--json", "--context", 512
    draft = json.loads(planned(capsys, data / "demo-draft-Q8_0.gguf", *words[1:], "--ram", "1GiB"))["devices"][0]
    alone = json.loads(planned(capsys, *words, "--ram", "1GiB"))["devices"][0]
    words += "--draft", data / "demo-draft-Q8_0.gguf", "--ram"
    both = json.loads(planned(capsys, *words, "1GiB"))["devices"][0]
    assert (
        both["beside"] == sum(draft[k] for k in ("weights", "cache", "activations")) > 1 << 20 and not alone["beside"]
    )
    assert both["needed"] == alone["needed"] + both["beside"]
    least = both["needed"] - both["system"]
    assert json.loads(planned(capsys, *words, least))["verdict"] == "tight"
    assert json.loads(planned(capsys, *words, least - 1, code=5))["verdict"] == "does not fit"


def test_a_draft_is_counted_where_loading_would_put_it(data, capsys):
    words = data / "demo-Q8_0.gguf", "--json", "--context", 512, "--ram", "1GiB", "--vram"
    _, card = json.loads(planned(capsys, *words, "2GiB"))["devices"]
    words = *words[:-1], "--draft", data / "demo-draft-Q8_0.gguf", "--vram"
    host, both = json.loads(planned(capsys, *words, "2GiB"))["devices"]
    with GGUFFile(data / "demo-draft-Q8_0.gguf") as file:
        weights = sum(t.nbytes for t in file.tensors.values())
    assert host["weights"] == host["cache"] == 0 and both["weights"] == card["weights"]
    assert both["needed"] == card["needed"] + both["beside"] and both["beside"] > weights
    host, both = json.loads(planned(capsys, *words, card["needed"]))["devices"]  # the model alone fills it
    assert both["beside"] == 0 and host["beside"] > weights


def test_a_draft_of_another_vocabulary_is_refused(data, tmp_path, capsys):
    other = shutil.copy(data / "demo-draft-Q8_0.gguf", tmp_path / "other.gguf")
    with GGUFFile(other) as file:
        tokens = [*file.metadata["tokenizer.ggml.tokens"][:-1], "elsewhere"]
    edit_metadata(other, set={"tokenizer.ggml.tokens": tokens})
    assert main(["plan", str(data / "demo-Q8_0.gguf"), "--draft", str(other)]) == 2
    assert "token 2047 is 'elsewhere' in" in capsys.readouterr().err


def test_errors_of_a_draft_name_its_flag(data, tmp_path, capsys):
    assert main(["plan", "demo", "--draft", str(data / "demo_model")]) == 3
    assert "gguf_path is --draft)" in capsys.readouterr().err
    matrix = tmp_path / "m.gguf"
    with GGUFWriter(matrix, {"general.type": "imatrix"}, []):
        pass
    assert main(["plan", "demo", "--draft", str(matrix)]) == 4
    assert "gguf_path is --draft)" in capsys.readouterr().err
    assert main(["plan", str(data / "demo_model")]) == 3
    assert "gguf_path is MODEL)" in capsys.readouterr().err


def test_one_that_is_too_big(tmp_path, capsys):
    giant = deepseek.sparse(tmp_path / "giant-Q5_K_M.gguf")
    out = planned(capsys, giant, "--context", 32768, "--ram", "256GiB", code=5)
    assert "443 GiB  mapped: one copy" in out and "4.05 GiB  32,768 tokens in f16, 130 KiB a token" in out
    assert "does not fit. It would run with 57% of the weights in memory" in out
    assert "IQ3_XXS (3.06 bits) or smaller" in out and "a machine with 457 GiB of memory" in out
    assert planned(capsys, giant, "--context", 32768, "--ram", "512GiB").splitlines()[-1] == "fits"


def test_remedies_are_flags(data, capsys):
    out = planned(capsys, data / "demo-Q8_0.gguf", "--context", 1_000_000, "--ram", "1GiB", code=5)
    line = next(line for line in out.splitlines() if "--ctx-size" in line)
    flags = line.partition(": --")[2]
    again = planned(capsys, data / "demo-Q8_0.gguf", "--context", 1_000_000, *f"--{flags}".split(), "--ram", "1GiB")
    assert again.splitlines()[-1] == "fits"


def test_a_broken_model(data, tmp_path, capsys):
    path = tmp_path / "broken.gguf"
    with GGUFFile(data / "demo-Q8_0.gguf") as file:
        kept = {n: t for n, t in file.tensors.items() if n not in ("blk.1.attn_k.weight", "output_norm.weight")}
        specs = [(n, t.shape, t.type) for n, t in kept.items()]
        with GGUFWriter(path, {k: file.metadata.typed(k) for k in file.metadata if file.metadata.info(k).length is None}, specs) as out:  # fmt: skip
            for n, t in kept.items():
                out.write(n, t)
    out = planned(capsys, path, "--ram", "1GiB", code=4)
    assert "cannot be loaded, 2 problems:" in out and "blk.1.attn_k.weight is missing" in out
    assert "weights as stored" in out


@pytest.mark.parametrize("words", [("--ram", "-1"), ("--ram", "12XB"), ("--vram", "NaN"), ("--vram", "24GiB,"), ("--ram", "0"), ("-c", "0"), ("--cache", "q5")])  # fmt: skip
def test_hostile_flags(words, capsys):
    assert main(["plan", "demo", *words]) == 2
    err = capsys.readouterr().err
    assert words[1].strip("24GiB,") in err and "expected" in err and "Traceback" not in err


def test_no_such_model(capsys):
    assert main(["plan", "no-such-model"]) == 3
    assert "Expected a path, `demo`, or a Hub repository" in capsys.readouterr().err


def test_placement_is_printed_saved_and_loaded(data, tmp_path, capsys):
    demo, saved = data / "demo-Q8_0.gguf", tmp_path / "p.json"
    words = [demo, "--ram", "2GiB", "--vram", "1GiB"]
    first = planned(capsys, *words, "--placement", "auto,dense_ffn=cpu", "--save", saved)
    assert "placement: " in first and "attn=cuda:0" in first and "dense_ffn=cpu" in first and "kv=cuda:0" in first
    assert "copied through 128 MiB of pinned main memory" in first
    assert planned(capsys, *words, "--placement", saved) == first
    found = json.loads(planned(capsys, *words, "--placement", saved, "--json"))
    assert found["devices"][1]["weights"] > 0 and "dense_ffn=cpu" in found["placement"]


def test_a_placement_that_cannot_be(capsys):
    assert main(["plan", "demo", "--placement", "attn=cuda:0"]) == 2
    assert "there is no cuda:0, only cpu: --vram SIZE plans for" in capsys.readouterr().err


def test_what_is_in_memory_already(data, capsys):
    path = data / "demo-Q8_0.gguf"
    with GGUFFile(path) as file:
        if machine.in_cache(file.views()[0]) is None:
            pytest.skip("this system does not say")
    path.read_bytes()
    out = planned(capsys, path, "--ram", "2GiB", "-v")
    assert out.splitlines()[-1] == "3.79 MiB of 3.79 MiB are in memory already"
