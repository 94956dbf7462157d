"""Models that come when they are asked for and go when they are not, under their names, with their adapters."""

import shutil
import time

import httpx2 as httpx
import pytest

from load.test_adapters import Made
from qtransformers.errors import ConfigError
from qtransformers.machine import Memory
from qtransformers.serve import models
from qtransformers.serve.models import Models, ModelSpec, with_threads
from servers import running

OPTIONS = {"threads": 1}
ASK = {"prompt": "The fox", "max_tokens": 8, "temperature": 0}


def spec(path, *names, **more):
    return ModelSpec(str(path), names, {**OPTIONS, **more.pop("options", {})}, **more)


def until(true):
    for _ in range(500):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError(true)


def test_names():
    assert ModelSpec("a/b.gguf").names == ("b",)
    assert ModelSpec("user/repo:Q4_K_M").names == ("user/repo:Q4_K_M",)
    with pytest.raises(ConfigError, match="names two models"):
        Models([ModelSpec("a.gguf", ("x",)), ModelSpec("b.gguf", ("x",))])
    with pytest.raises(ConfigError, match="no model"):
        Models([])
    with pytest.raises(ConfigError, match="alias"):
        ModelSpec("a.gguf", ("a\nb",))


def test_the_second_comes_when_it_is_asked_for_and_both_go_in_time(data):
    path = data / "demo-Q8_0.gguf"
    with (
        running([spec(path, "one", "uno"), spec(path, "two")], keep_alive=0.6) as (url, server),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        one, two = server.models.entries
        assert (one.state, two.state) == ("ready", "unloaded")
        listed = {m["id"]: m["state"] for m in http.get("/v1/models").json()["data"]}
        assert listed == {"one": "ready", "uno": "ready", "two": "unloaded"}
        texts = {
            name: http.post("/v1/completions", json=ASK | {"model": name}).json() for name in ("one", "uno", "two")
        }
        assert len({found["choices"][0]["text"] for found in texts.values()}) == 1
        assert [found["model"] for found in texts.values()] == ["one", "uno", "two"]
        until(lambda: one.state == two.state == "unloaded")
        assert http.get("/health").status_code == 200, "whoever asks gets an answer, later"
        assert http.post("/v1/completions", json=ASK).json()["choices"] == texts["one"]["choices"]
        assert "qtransformers:model_loaded" in http.get("/metrics").text


def test_room_is_made_by_unloading_what_is_idle(data, monkeypatch):
    path = data / "demo-Q8_0.gguf"
    with (
        running([spec(path, "one"), spec(path, "two")]) as (url, server),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        one, two = server.models.entries
        monkeypatch.setattr(models, "memory", lambda: Memory(2**30, 1000, None))  # nothing fits beside another
        with http.stream(
            "POST", "/v1/completions", json=ASK | {"max_tokens": 900, "min_tokens": 900, "stream": True}
        ) as busy:
            with one.loaded._engine._exclusive():
                found = http.post("/v1/completions", json=ASK | {"model": "two"})
            assert found.status_code == 503
            assert found.json()["error"]["code"] == "out_of_memory"
            assert all(word in found.json()["error"]["message"] for word in ("demo-Q8_0.gguf", "beside one"))
            assert busy.status_code == 200
        until(lambda: not one.users)
        assert http.post("/v1/completions", json=ASK | {"model": "two"}).status_code == 200
        assert (one.state, two.state) == ("unloaded", "ready")
        assert http.post("/v1/completions", json=ASK | {"model": "one"}).status_code == 200
        assert (one.state, two.state) == ("ready", "unloaded")


def test_a_model_that_is_not_there(data, tmp_path, caplog):
    with (
        running([spec(tmp_path / "none.gguf", "none"), spec(data / "demo-Q8_0.gguf", "demo")]) as (url, _),
        httpx.Client(base_url=url) as http,
    ):
        assert (http.get("/health").status_code, http.get("/health").json()["status"]) == (200, "ready"), (
            "the other answers"
        )
        with caplog.at_level("ERROR", "qtransformers.serve"):
            found = http.post("/v1/completions", json=ASK)
        assert (found.status_code, found.json()["error"]["code"]) == (503, "model_unavailable")
        assert "none cannot be loaded" in found.json()["error"]["message"] and "retry-after" in found.headers
        assert str(tmp_path) not in found.text and str(tmp_path / "none.gguf") in caplog.text
        assert http.post("/v1/completions", json=ASK | {"model": "demo"}).status_code == 200


def test_a_model_that_goes_while_it_is_not_loaded(data, tmp_path):
    path = tmp_path / "there.gguf"
    shutil.copy(data / "demo-Q8_0.gguf", path)
    with running([spec(path, "there")], keep_alive=0.1) as (url, server), httpx.Client(base_url=url) as http:
        until(lambda: server.models.entries[0].state == "unloaded")
        path.rename(tmp_path / "elsewhere.gguf")
        found = http.post("/v1/completions", json=ASK)
        assert (found.status_code, found.json()["error"]["code"]) == (503, "model_unavailable")
        assert str(tmp_path) not in found.text
        assert http.get("/health").json() == {"status": "broken"}
        (tmp_path / "elsewhere.gguf").rename(path)
        assert http.post("/v1/completions", json=ASK).status_code == 200


def test_no_folder_of_the_server_is_told(http, served, data):
    found = http.post("/v1/embeddings", json={"input": "a"})
    assert found.status_code == 400
    assert found.json()["error"]["message"].startswith("demo-Q8_0.gguf is a language model")
    assert str(data) not in found.text


def test_whoever_leaves_while_it_loads_leaves_nothing_behind(data):
    path = data / "demo-Q8_0.gguf"
    with running([spec(path, "one"), spec(path, "two")]) as (url, server):
        two = server.models.entries[1]
        with httpx.Client(base_url=url, timeout=0.01) as http, pytest.raises(httpx.TimeoutException):
            http.post("/v1/completions", json=ASK | {"model": "two"})
        until(lambda: two.state in ("unloaded", "ready") and not two.users)
        with httpx.Client(base_url=url, timeout=60) as http:
            assert http.post("/v1/completions", json=ASK | {"model": "two"}).status_code == 200


def test_adapters_by_name_and_by_field(data, tmp_path):
    made = Made(data, tmp_path, 1)
    served = spec(
        made.base, "base", loras={"tuned": str(made.peft), "tuned-gguf": str(made.gguf)}, options={"accuracy": "exact"}
    )
    with running([served]) as (url, server), httpx.Client(base_url=url, timeout=60) as http:

        def text(**more):
            found = http.post("/v1/completions", json=ASK | {"max_tokens": 24} | more)
            assert found.status_code == 200, found.text
            return found.json()["choices"][0]["text"]

        model, adapters = server.models.entries[0].loaded, server.models.entries[0].adapters
        tuned = model.generate("The fox", max_tokens=24, temperature=0, lora=adapters["tuned"]).text
        assert text() != tuned
        assert text(model="tuned") == text(model="tuned-gguf") == text(lora=[{"name": "tuned"}]) == tuned
        assert text(lora=[{"name": "tuned", "scale": 0.0}]) == text(model="base") == text(model="tuned", lora=[])
        assert {m["id"] for m in http.get("/v1/models").json()["data"]} == {"base", "tuned", "tuned-gguf"}


def test_a_draft_model_is_counted(data):
    path = str(data / "demo-Q8_0.gguf")
    with (
        running([spec(path, "demo", options={"draft": path})]) as (url, _),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        found = http.post("/v1/completions", json=ASK | {"max_tokens": 60, "min_tokens": 60}).json()
        details = found["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] > 0  # it stops where guesses do not pay
        text = http.get("/metrics").text
        assert 'vllm:spec_decode_num_accepted_tokens_total{model_name="demo"}' in text


def test_metrics_count_what_was_answered(demo):
    with running([demo]) as (url, _), httpx.Client(base_url=url, timeout=60) as http:
        ask = {"prompt": "One fox and one duck went to the windmill, and the windmill was far away. " * 3, "max_tokens": 7, "temperature": 0}  # fmt: skip
        counts = [http.post("/v1/completions", json=ask).json()["usage"] for _ in range(2)]
        http.post("/v1/completions", json={"nope": 1})
        found = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if not line.startswith("#"))

        def value(name, more=""):
            return float(found[f'vllm:{name}{{{more}model_name="demo"}}'])

        assert value("prompt_tokens_total") == sum(c["prompt_tokens"] for c in counts)
        assert value("generation_tokens_total") == sum(c["completion_tokens"] for c in counts)
        assert value("prefix_cache_hits_total") == counts[1]["prompt_tokens_details"]["cached_tokens"] > 16
        assert value("num_requests_running") == value("num_requests_waiting") == value("kv_cache_usage_perc") == 0
        assert value("time_to_first_token_seconds_count") == value("e2e_request_latency_seconds_count") == 2
        assert value("inter_token_latency_seconds_count") >= 8
        assert value("request_success_total", 'finished_reason="length",') == 2
        assert float(found['qtransformers:requests_refused_total{code="unknown_field",status="400"}']) == 1


def test_a_small_model_takes_few_threads(monkeypatch):
    monkeypatch.delenv("QTRANSFORMERS_THREADS", raising=False)
    monkeypatch.setattr(models, "usable_cores", lambda: 16)
    spec = ModelSpec("demo", options={"parallel": 2})
    assert [with_threads(spec, n << 20).options for n in (0, 3, 9, 999)] == [
        {"parallel": 2, "threads": n} for n in (1, 1, 2, 16)
    ]
    said = ModelSpec("demo", options={"threads": 5})
    assert with_threads(said, 1) is said
    monkeypatch.setenv("QTRANSFORMERS_THREADS", "7")
    assert with_threads(spec, 1) is spec
