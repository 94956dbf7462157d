"""What is said of a model from its header: of good ones, broken ones, unknown ones, and one of 443 GiB."""

import threading

import pytest

import deepseek
from hub_server import Beginning, HubServer
from qtransformers.errors import GGUFError, ModelNotFoundError
from qtransformers.gguf.headers import FIRST_BYTES
from qtransformers.load.fit import Budget, fit
from qtransformers.load.hub import Hub
from qtransformers.load.outline import role_of
from qtransformers.load.survey import find_sources, survey

GIB = 1 << 30


@pytest.fixture(scope="module")
def giant(tmp_path_factory):
    return deepseek.sparse(tmp_path_factory.mktemp("giant") / "DeepSeek-V3-Q5_K_M.gguf")


@pytest.fixture
def server():
    hub = HubServer()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    yield hub
    hub.done.set()
    hub.shutdown()
    hub.server_close()


def surveyed(model, hub=None, **options):
    return survey(*find_sources(str(model), hub=hub), **options)


def test_does_a_443_gb_model_run_in_512_gb(giant):
    assert giant.stat().st_blocks * 512 < 1 << 20, "the file system wrote it out"
    found = surveyed(giant, context_length=32768)
    plan = found.plan
    assert plan.weights_bytes / GIB == pytest.approx(443, abs=1.5)
    assert plan.parameters / 1e9 == pytest.approx(671, abs=0.1)  # as its authors state
    result = fit(plan, Budget.of(None, "512GiB"))
    assert result.verdict == "fits"
    (host,) = result.needs
    assert host.weights == plan.weights_bytes, "a single copy"
    assert plan.runnable and not found.problems
    assert plan.cache_bytes == 32768 * 61 * (576 + 512) * 2  # latent attention: 133 kB a token
    assert host.model + host.system < 470 * GIB
    assert host.system > plan.weights_bytes // 512, "page tables count"
    assert fit(plan, Budget.of(None, "448GiB")).verdict != "fits"


def test_its_whole_context_in_512_gb(giant):
    plan = surveyed(giant).plan
    assert plan.context_length == 163840 and plan.cache_bytes > 20 * GIB
    assert fit(plan, Budget.of(None, "512GiB")).verdict == "fits"


def test_two_copies_would_not_fit(giant):
    """What a copy a NUMA node would take: the verdict is by bytes, not by hope."""
    plan = surveyed(giant).plan
    assert 2 * plan.weights_bytes > 512 * GIB


def test_roles_by_name(giant):
    roles = {t.slot.name.split(".")[-2]: t.role for t in surveyed(giant).plan.tensors}
    assert roles["ffn_down_exps"] == "experts" and roles["ffn_up_shexp"] == "shared_experts"
    assert roles["ffn_gate_inp"] == "router" and roles["attn_kv_a_mqa"] == "attn" and roles["ffn_gate"] == "dense_ffn"
    assert roles["output"] == "output" and roles["output_norm"] == "norm" and roles["token_embd"] == "embed"
    assert role_of("something.else") == "other"


def test_an_architecture_nobody_knows(remake):
    found = surveyed(remake(metadata={"general.architecture": "hyena", "hyena.block_count": 4, "hyena.context_length": 512}))  # fmt: skip
    assert not found.plan.runnable and found.plan.context_length == 512
    (problem,) = found.problems
    assert "'hyena'" in problem.text and "Its weights are counted; it cannot be run yet" in problem.text
    assert found.plan.weights_bytes == sum(t.nbytes for t in found.plan.tensors) > 3_000_000


def test_the_outline_agrees_with_the_plan(data, remake):
    """What is reckoned without a spec is what is reckoned with one."""
    good = surveyed(data / "demo-Q8_0.gguf").plan
    rough = surveyed(remake(drop=("output_norm.weight",))).plan
    assert good.runnable and not rough.runnable
    for field in ("cache_bytes", "activations_bytes", "program_bytes", "context_length"):
        assert getattr(rough, field) == getattr(good, field), field
    assert rough.weights_bytes == good.weights_bytes - 1024


def test_a_broken_model_is_counted_and_every_problem_told(remake):
    found = surveyed(remake(drop=("blk.0.attn_q.weight", "output_norm.weight"), metadata={"llama.feed_forward_length": 1024}))  # fmt: skip
    texts = "\n".join(p.text for p in found.problems)
    assert len(found.problems) == 5 and "blk.0.attn_q.weight is missing" in texts
    assert "output_norm.weight is missing" in texts and "expected [256, 1024]" in texts


def test_hostile_sizes_do_not_stop_the_count(remake):
    for key in ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length", "context_length"):
        for value in (0, 5, -1, 2**31 - 1, 2**40, float("nan"), "x", [], True):
            if key == "block_count" and (type(value) is not int or not 0 <= value <= 512):
                continue  # the reader refuses these
            found = surveyed(remake(metadata={f"llama.{key}": value, "general.architecture": "llama"}))
            assert found.plan.weights_bytes > 3_000_000


def test_a_model_on_the_hub_costs_its_header(server, tmp_path):
    raw, size = deepseek.header()
    n = size // 3
    server.repos["house/giant-GGUF"] = {
        "giant-Q5_K_M.gguf": Beginning(raw + bytes(max(0, FIRST_BYTES - len(raw))), size), "giant-Q2_K.gguf": n, "giant-Q8_0.gguf": 2 * size,
    }  # fmt: skip
    found = surveyed("house/giant-GGUF:Q5_K_M", Hub(server.url, tmp_path))
    assert found.plan.weights_bytes / GIB == pytest.approx(443, abs=1.5)
    assert server.sent == FIRST_BYTES, "bytes of 475 GB"
    remedy = fit(found.plan, Budget.of(None, "256GiB"), found.others).remedies[0]
    assert remedy.text.startswith("another quantisation, house/giant-GGUF:Q2_K, of")
    assert not list(tmp_path.rglob("*.gguf"))


def test_without_range_requests_it_still_costs_its_header(server, tmp_path, data):
    raw = (data / "demo-Q8_0.gguf").read_bytes()
    server.ranges = False
    server.repos["house/d"] = {"d.gguf": raw + bytes(40 * FIRST_BYTES)}
    assert surveyed("house/d", Hub(server.url, tmp_path)).plan.runnable


def test_what_is_not_there(server, tmp_path):
    server.repos["house/broken"] = {"x.gguf": b"<html>" + bytes(3000)}
    with pytest.raises(GGUFError, match="a web page"):
        surveyed("house/broken", Hub(server.url, tmp_path))
    with pytest.raises(ModelNotFoundError, match="It has"):
        server.repos["house/two"] = {"x-Q8_0.gguf": b"x", "x-Q4_0.gguf": b"x"}
        surveyed("house/two:Q2_K", Hub(server.url, tmp_path))
