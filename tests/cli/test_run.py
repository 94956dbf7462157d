import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from qtransformers import Tokenizer
from qtransformers.cli import main
from qtransformers.cli.answers import utf8
from qtransformers.cli.run import the_prompt
from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFWriter

ASK, ANSWER = "What is 7 plus 5?", "7 plus 5 is 12.\n"


@pytest.fixture(autouse=True)
def no_input(monkeypatch):
    """Somebody sits at the keyboard, so nothing is piped."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)


def test_one_answer_on_stdout_and_nothing_else_anywhere(command):
    done = command("run", "demo", ASK, "--temp", "0")
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER, "")


def test_the_flags_of_text_reach_the_request(capsys):
    def said(*words):
        assert main(["run", "demo", *words, "--temp", "0"]) == 0
        return capsys.readouterr()

    assert said(ASK, "--stop", " is", "--stop", "never").out == "7 plus 5\n"
    assert " is" not in said(ASK, "--ban", " is", "--ban", "never", "-n", "20").out
    assert said(ASK, "--ban", " ", "--ban", "7", "--min-tokens", "3", "-n", "5").out
    assert len(said(ASK, "--min-tokens", "30", "-n", "30").out) > len(ANSWER) + 20
    assert said("Once upon a ti", "--raw", "--heal", "-n", "8").out.startswith("me")
    assert said(ASK, "--ban", "<|end|>", "--ban", "<|endoftext|>", "-n", "20", "--special").out.startswith(
        "7 plus 5 is 12."
    )
    ended = said(ASK, *(word for c in "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,!?-:" for word in ("--ban", c)), "--min-tokens", "5", "-n", "9")  # fmt: skip
    assert "every way on leads to a text of --ban" in ended.err or ended.out.strip()


def test_a_flag_of_text_that_cannot_be_honoured(capsys):
    assert main(["run", "demo", ASK, "--min-tokens", "9", "-n", "5"]) == 2
    assert "min_tokens=9, but the answer may have 5 tokens" in capsys.readouterr().err
    assert main(["run", "demo", ASK, "--stop", ""]) == 2
    assert "stop[0] has 0 characters" in capsys.readouterr().err


def test_stdin_is_the_prompt(command):
    done = command("run", "demo", "--temp", "0", stdin=ASK + "\n")
    assert (done.returncode, done.stdout) == (0, ANSWER)


def test_stdin_is_appended_to_the_prompt(command, data):
    done = command("run", "demo", "What is 7", "--raw", "--temp", "0", "-v", stdin="plus 5?")
    assert done.returncode == 0
    expected = len(Tokenizer.from_gguf(data / "demo-Q8_0.gguf").encode("What is 7\n\nplus 5?"))
    assert f"({expected} tokens of prompt" in done.stderr


@pytest.mark.parametrize(
    "given, piped, expected",
    [
        (None, None, None),
        ("a", None, "a"),
        (None, "b\n", "b"),
        ("a", "b\n", "a\n\nb"),
        ("a", "\n", "a"),
        (None, "  x\n", "  x"),
    ],
)
def test_prompt_and_piped_text(given, piped, expected):
    assert the_prompt(given, piped) == expected


@pytest.mark.parametrize("name", ["PROMPT", "--system"])
def test_arguments_that_are_no_utf8_are_refused(name, capsys):
    words = ["run", "demo", "a\udcff"] if name == "PROMPT" else ["run", "demo", "a", "--system", "a\udcff"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and "is no UTF-8" in err


def test_a_prompt_is_read_whatever_the_locale_says():
    assert utf8("the prompt", "né".encode().decode("ascii", "surrogateescape")) == utf8("the prompt", "né") == "né"


@pytest.mark.parametrize("given, piped", [("", None), (None, " \n"), ("", "")])
def test_an_empty_prompt_is_refused(given, piped):
    with pytest.raises(ConfigError, match="the prompt is empty"):
        the_prompt(given, piped)


def test_verbose_tells_memory_and_speed_on_stderr(capsys):
    assert main(["run", "demo", ASK, "--temp", "0", "-v"]) == 0
    out, err = capsys.readouterr()
    assert out == ANSWER
    assert "weights 2.22 MiB (mapped, not copied)" in err and "temperature=0.0" in err
    assert "12 tokens of prompt at " in err and "B/s of weights)" in err


def test_two_paths_tell_what_they_save(data, capsys):
    words = ["run", str(data / "demo-Q8_0.gguf"), ASK, "--model-path", str(data / "demo_model"), "--temp", "0"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == ANSWER
    assert "saves 3.38 MB of memory" in err


def test_stories260k(shared, capsys):
    """A real model without a chat template continues the text."""
    assert (
        main(["run", str(shared / "models" / "stories260K-f32.gguf"), "Once upon a time", "--temp", "0", "-n", "25"])
        == 0
    )
    out, err = capsys.readouterr()
    assert out.startswith(", there was a little girl named Lily.")
    assert "no chat template" in err


def test_flags_reach_the_model(capsys):
    assert main(["run", "demo", "Tell me a story.", "--temp", "0", "-n", "5"]) == 0
    assert capsys.readouterr().out == "Once upon a time there\n"
    found = set()
    for _ in range(2):
        assert main(["run", "demo", "Tell me a story.", "--seed", "3", "-n", "12", "-t", "1"]) == 0
        found.add(capsys.readouterr().out)
    assert len(found) == 1
    assert main(["run", "demo", "Tell me a story.", "--seed", "4", "-n", "12", "--top-k", "50"]) == 0
    assert capsys.readouterr().out not in found


def test_the_environment_stands_in_for_flags(monkeypatch, capsys):
    monkeypatch.setenv("QTRANSFORMERS_TEMP", "0")
    monkeypatch.setenv("QTRANSFORMERS_MAX_TOKENS", "5")
    assert main(["run", "demo", "Tell me a story."]) == 0
    assert capsys.readouterr().out == "Once upon a time there\n"
    assert main(["run", "demo", "Tell me a story.", "-n", "3"]) == 0
    assert capsys.readouterr().out == "Once upon a\n"


def test_system_message_and_prompt_format(capsys):
    assert main(["run", "demo", ASK, "--temp", "0", "--system", "Be brief.", "-v"]) == 0
    assert "(22 tokens of prompt" in capsys.readouterr().err  # 12 without the system message
    assert main(["run", "demo", ASK, "--temp", "0", "--prompt-format", "alpaca", "-n", "1", "-v"]) == 0
    assert "(12 tokens of prompt" not in capsys.readouterr().err


def test_a_full_context_is_never_silent(capsys):
    assert main(["run", "demo", "Tell me a story.", "--temp", "0", "-c", "30"]) == 0
    assert "(cut off: the context of 30 tokens is full; --ctx-size sets it)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["demo", ASK, "--temp", "x"], 2, "--temp"),
        (["demo", ASK, "--cache", "q99"], 2, "cache='q99'"),
        (["demo", ASK, "--prompt-format", "nope"], 2, "prompt_format is --prompt-format"),
        (["demo", "word " * 2000], 2, "context_length is --ctx-size"),
        (["demo", ASK, "--raw", "--system", "x"], 2, "--raw leaves the chat template out"),
        (["demo", "--raw"], 2, "--raw continues a text"),
        (["demo", ASK, "--pre", "nope"], 4, "'nope'"),
        (["no/such/file.gguf", ASK], 3, "no/such/file.gguf"),
        (["{data}/demo_model", ASK], 3, "holds no GGUF model"),
        (["{data}/demo_model", ASK], 3, "(model_path is --model-path, gguf_path is MODEL)"),
        (["{data}/demo_model/config.json", ASK], 4, "config.json"),
        (["demo", ASK, "--model-path", "{data}/nowhere"], 3, "nowhere"),
        (["demo", ASK, "-c", "2000000000"], 5, "2,000,000,000 tokens take"),
    ],
)
def test_exit_codes(words, code, message, data, capsys):
    assert main(["run", *(w.format(data=data) for w in words)]) == code
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_no_network_ends_with_6(command):
    done = command("run", "user/repo:Q4_0", ASK)
    assert done.returncode == 6 and done.stdout == "" and "HF_HUB_OFFLINE" in done.stderr


def test_ctrl_c_ends_one_answer_with_130(interrupting, capsys):
    out = interrupting(8)
    assert main(["run", "demo", "Tell me a story.", "--temp", "0"]) == 130
    assert out.getvalue().startswith("Once upon") and len(out.getvalue()) < 100
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_while_the_prompt_is_awaited(monkeypatch, capsys):
    class Waiting(io.RawIOBase):
        def isatty(self):
            return False

        def readable(self):
            return True

        def readinto(self, buffer):
            signal.raise_signal(signal.SIGINT)
            return 0

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Waiting())))
    assert main(["run", "demo"]) == 130
    assert capsys.readouterr() == ("", "\n")


def test_text_that_is_no_utf8(data):
    done = subprocess.run(
        [sys.executable, "-m", "qtransformers", "run", "demo"],
        input=b"caf\xe9",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2 and b"no UTF-8" in done.stderr


def test_a_reader_that_leaves_early_is_no_error():
    line = f"{sys.executable} -m qtransformers run demo 'Tell me a story.' --temp 0 </dev/null | head -c 5"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("Once ", "", 0)


def test_the_answer_cannot_steer_the_terminal(monkeypatch, capsys):
    """What a model says is as little to be trusted on a terminal as what a file says; in a pipe it is left alone."""
    from qtransformers.generate import Chunk, Stream

    def hostile(self):
        chunk = following(self)
        return Chunk("\x1b[2J" + chunk.text, chunk.tokens, chunk.finish_reason)

    following = Stream.__next__
    monkeypatch.setattr(Stream, "__next__", hostile)
    assert main(["run", "demo", ASK, "-n", "2"]) == 0
    assert "\x1b[2J" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["run", "demo", ASK, "-n", "2"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "What is 7 plus 5? 7 plus 5 is 12." in out and "instruction set" in out


def test_doctor_json(capsys):
    assert main(["doctor", "--json", "-t", "1"]) == 0
    found = {f["what"]: f for f in json.loads(capsys.readouterr().out)}
    assert {"version", "processor", "cores", "memory", "huge pages", "extension", "hub cache", "demo model"} <= set(
        found
    )
    assert "1 threads" in found["cores"]["found"]
    assert all(f["state"] in ("ok", "warning") for f in found.values())


def test_doctor_finds_a_broken_installation(monkeypatch, capsys):
    from qtransformers.cli import doctor

    monkeypatch.setattr(doctor, "ANSWER", "7 plus 5 is 13.")
    assert main(["doctor"]) == 1
    out, _ = capsys.readouterr()
    assert "failed  demo model" in out and "QTRANSFORMERS_ISA=generic" in out


def test_doctor_goes_on_after_a_check_that_breaks(monkeypatch, capsys):
    monkeypatch.setenv("QTRANSFORMERS_ISA", "sse9")
    assert main(["doctor"]) == 1
    out, _ = capsys.readouterr()
    assert "failed  extension" in out and "ok      hub cache" in out
    assert "QTRANSFORMERS_ISA: instruction set 'sse9' is not available here; expected one of " in out


def test_a_placement_on_a_device_that_is_not_here(capsys):
    assert main(["run", "demo", ASK, "--placement", "auto,attn=cuda:63"]) == 2
    assert "there is no cuda:63" in capsys.readouterr().err


def test_preloaded_and_locked_it_answers_the_same(capsys):
    assert main(["run", "demo", ASK, "--temp", "0", "--preload", "--mlock", "--placement", "cpu"]) == 0
    assert capsys.readouterr().out == ANSWER


def test_an_answer_that_follows_a_schema(command, tmp_path):
    schema = (
        '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false}'
    )
    done = command("run", "demo", ASK, "--temp", "0", "--json-schema", schema)
    assert (done.returncode, done.stderr) == (0, "") and list(json.loads(done.stdout)) == ["a"]
    (tmp_path / "schema.json").write_text(schema)
    again = command("run", "demo", ASK, "--temp", "0", "--json-schema", tmp_path / "schema.json")
    assert again.stdout == done.stdout


def test_an_answer_that_follows_a_grammar(command, tmp_path):
    (tmp_path / "g.gbnf").write_text('root ::= "yes" | "no"\n')
    done = command("run", "demo", ASK, "--temp", "0", "--grammar", tmp_path / "g.gbnf")
    assert done.stdout in ("yes\n", "no\n")
    assert command("run", "demo", ASK, "--grammar", 'start: "yes"').stdout == "yes\n"


@pytest.mark.parametrize(
    "words, message",
    [
        (("--json-schema", "no-such.json"), "no-such.json: cannot be read as a file"),
        (("--json-schema", '{"type": "foo"}'), "Invalid type: foo"),
        (("--json-schema", "{"), "no JSON"),
        (("--grammar", "no-such.gbnf"), "no-such.gbnf: cannot be read"),
        (("--grammar", "root ::= foo"), "'foo' is not defined"),
        (("--grammar", 'root ::= "a"', "--json-schema", "{}"), "can follow one of them"),
    ],
)
def test_bad_grammars_are_errors_of_usage(command, words, message):
    done = command("run", "demo", ASK, *words)
    assert done.returncode == 2 and message in done.stderr and not done.stdout


def test_lora_adapters(command, tmp_path):
    factors = {"lora_a": np.full((2, 256), 0.1, np.float32), "lora_b": np.full((256, 2), 0.3, np.float32)}
    facts = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama", "adapter.lora.alpha": np.float32(2)}  # fmt: skip
    with GGUFWriter(tmp_path / "a.gguf", facts, [(f"blk.0.attn_output.weight.{k}", v.shape, "F32") for k, v in factors.items()]) as file:  # fmt: skip
        for name, values in factors.items():
            file.write(f"blk.0.attn_output.weight.{name}", values)
    plain = command("run", "demo", ASK, "--temp", "0", "-n", "20")
    off = command("run", "demo", ASK, "--temp", "0", "-n", "20", "--lora", f"{tmp_path / 'a.gguf'}=0")
    on = command("run", "demo", ASK, "--temp", "0", "-n", "20", "--lora", f"{tmp_path / 'a.gguf'}=50")
    assert plain.stdout == off.stdout != on.stdout
    for wrong, code in ((f"{tmp_path / 'a.gguf'}=x", 2), (str(tmp_path / "missing"), 3)):
        assert command("run", "demo", ASK, "--lora", wrong).returncode == code


def test_nothing_is_preloaded_of_what_cannot_run(monkeypatch, tmp_path, capsys):
    read = []
    monkeypatch.setattr("qtransformers.cli.answers.preload", lambda *given: read.append(given))
    with GGUFWriter(tmp_path / "odd.gguf", {"general.architecture": "odd"}, [("x", (2, 2), "F32")]) as file:
        file.write("x", np.zeros((2, 2), np.float32))
    assert main(["run", str(tmp_path / "odd.gguf"), ASK, "--preload"]) == 4 and not read
    assert main(["run", "demo", ASK, "--preload", "--temp", "0"]) == 0 and len(read) == 1
