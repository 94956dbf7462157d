"""pull, list and rm as commands, the Hub played on loopback (HF_ENDPOINT)."""

import json
import threading

import pytest

from hub_server import HubServer


@pytest.fixture
def hub(data, tmp_path, command):
    server = HubServer()
    raw = (data / "demo-Q8_0.gguf").read_bytes()
    server.repos["house/m"] = {"m-Q8_0.gguf": raw, "m-Q4_0.gguf": raw[:-1000]}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}

    def run(*words, **more):
        return command(*words, env=env | more)

    run.server = server
    yield run
    server.done.set()
    server.shutdown()
    server.server_close()


def test_from_pull_to_rm(hub, data):
    done = hub("pull", "house/m:Q8_0")
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert path.endswith("m-Q8_0.gguf") and open(path, "rb").read() == (data / "demo-Q8_0.gguf").read_bytes()  # noqa: SIM115
    assert "house/m:Q8_0" in hub("list").stdout
    (row,) = json.loads(hub("list", "--json").stdout)
    assert row["model"] == "house/m:Q8_0" and row["files"] == [path]
    answered = hub("run", "house/m:Q8_0", "What is 7 plus 5?", "--temp", "0", HF_HUB_OFFLINE="1")
    assert answered.stdout == "7 plus 5 is 12.\n", answered.stderr
    refused = hub("rm", "house/m:Q8_0")
    assert refused.returncode == 2 and "Add --yes" in refused.stderr and "3.97 MB of disk" in refused.stderr
    removed = hub("rm", "house/m:Q8_0", "--yes")
    assert removed.returncode == 0 and hub("list").stdout == ""


def test_what_could_not_be_loaded_is_not_fetched(hub):
    done = hub("pull", "house/m:Q4_0")
    assert done.returncode == 4 and "truncated" in done.stderr and done.stdout == ""
    forced = hub("pull", "house/m:Q4_0", "--force")
    assert forced.returncode == 0 and forced.stdout.strip().endswith("m-Q4_0.gguf")


def test_unknown_names(hub):
    none = hub("pull", "house/m:Q5_K_M")
    assert none.returncode == 3 and "It has Q4_0, Q8_0" in none.stderr
    assert hub("pull", "house/absent").returncode == 3
    gone = hub("rm", "house/m", "--yes")
    assert gone.returncode == 3 and "not in the cache" in gone.stderr
    path = hub("rm", "demo")
    assert path.returncode == 2 and "no model of the Hub's cache" in path.stderr


def test_a_plan_by_name(hub):
    done = hub("plan", "house/m:Q8_0", "--ram", "2GiB")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "fits", done.stderr
    assert hub("list").stdout == "", "a plan fetches no model"
