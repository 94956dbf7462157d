import json

from qtransformers.cli import main


def test_says_what_to_take_and_how(data, capsys):
    folder = str(data / "demo_model")
    assert main(["advise", folder, "--ram", "8GiB"]) == 0
    out = capsys.readouterr().out
    assert "Take Q8_0: " in out and f"qtransformers convert {folder} -t Q8_0" in out
    assert main(["advise", folder, "--ram", "8GiB", "--vram", "6GiB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"]["file_type"] == "F16" and len(found["options"]) == 9


def test_ends_with_5_where_nothing_fits(data, capsys):
    assert main(["advise", str(data / "demo_model"), "--ram", "1MB"]) == 5
    assert "smaller model" in capsys.readouterr().out
