"""Placement on paper devices: what wins, what is refused, and that automatic placement never exceeds a device."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepseek
from qtransformers.errors import ConfigError
from qtransformers.load.fit import CONTEXT_BYTES, Budget, fit
from qtransformers.load.placement import entries, load_saved, parse, parts_of, placed, resolve, save
from qtransformers.load.survey import find_sources, survey
from qtransformers.model import Model

GIB = 1 << 30
TWO = Budget(64 * GIB, 64 * GIB, {"cuda:0": 24 * GIB, "cuda:1": 24 * GIB})


@pytest.fixture(scope="module")
def demo(data):
    return survey(*find_sources(str(data / "demo-Q8_0.gguf"))).plan


@pytest.fixture(scope="module")
def giant(tmp_path_factory):
    path = deepseek.sparse(tmp_path_factory.mktemp("giant") / "giant.gguf")
    return survey(*find_sources(str(path)), context_length=32768).plan


def refused(plan, wanted, *texts, budget=TWO):
    with pytest.raises(ConfigError) as e:
        resolve(plan, wanted, budget)
    for text in texts:
        assert text in str(e.value)


def test_the_most_specific_wins(giant):
    table = resolve(giant, "cpu, layers=cuda:1, layers[0-9]=cuda:0, experts=cpu; experts[3-5,8]=cuda:1", TWO)
    assert table["embed", None] == "cpu" and table["output", None] == "cpu"  # the rest
    assert table["attn", 30] == "cuda:1" and table["attn", 9] == "cuda:0"  # some layers before all
    assert table["experts", 30] == table["experts", 9] == "cpu"  # a role before layers
    assert [i for i in range(61) if table.get(("experts", i)) == "cuda:1"] == [3, 4, 5, 8]
    assert table["kv", 9] == "cuda:0" and table["shared_experts", 9] == "cuda:0"
    assert set(table) == set(parts_of(giant))


def test_order_does_not_matter(giant):
    words = ["layers[0-9]=cuda:0", "experts=cpu", "experts[3]=cuda:1", "cpu"]
    assert resolve(giant, ",".join(words), TWO) == resolve(giant, " ".join(reversed(words)), TWO)


def test_the_cache_goes_with_its_attention(demo):
    table = resolve(demo, "cpu,attn[1-2]=cuda:0", TWO)
    assert [table["kv", i] for i in range(4)] == ["cpu", "cuda:0", "cuda:0", "cpu"]
    assert resolve(demo, "cpu,attn=cuda:0,kv=cpu", TWO)["kv", 1] == "cpu"
    plan = placed(demo, table)
    assert plan.cache_on("cuda:0") == plan.cache_on("cpu") == demo.cache_bytes // 2
    assert plan.weights_on("cpu") + plan.weights_on("cuda:0") == demo.weights_bytes


def test_overlaps_gaps_and_strangers(demo, giant):
    refused(demo, "cpu,layers[0-1]=cuda:0,layers[1-2]=cuda:1", "layers[0-1]=cuda:0 and layers[1-2]=cuda:1 both speak of", "attn[1]")  # fmt: skip
    refused(demo, "cpu,attn=cuda:0,attn=cpu", "attn=cuda:0 and attn=cpu both speak of attn[0-3]")
    refused(giant, "auto,experts[3-12]=cuda:0,experts[10-20]=cpu", "both speak of experts[10-12]")
    refused(demo, "layers[0-2]=cuda:0", "says nothing of embed", "attn[3]", "auto,layers[0-2]=cuda:0")
    refused(demo, "auto,experts=cpu", "this model has no experts", "embed, norm, attn, dense_ffn")
    refused(giant, "auto,expert=cpu", "no expert, perhaps experts")
    refused(demo, "auto,layers[2-9]=cpu", "not in layers 4-9 (the model has layers 0-3)")
    refused(giant, "auto,experts[0-5]=cpu", "experts is not in layers 0-2")
    refused(demo, "auto,embed[0]=cpu", "embed is not in layers 0")
    refused(demo, "auto,attn=cuda:2", "there is no cuda:2, only cpu, cuda:0, cuda:1")
    refused(demo, "cuda:0", "there is no cuda:0, only cpu", budget=Budget(GIB))


def test_everything_wrong_is_told_at_once(demo):
    refused(demo, "auto,expert=cpu,attn=cuda:7,norm=cpu,norm=cuda:0", "no expert", "no cuda:7", "norm=cpu and norm=cuda:0")  # fmt: skip


@pytest.mark.parametrize("text", ["", " , ", "gpu", "attn=", "=cpu", "attn=gpu", "attn[=cpu", "attn[]=cpu", "attn[3-1]=cpu", "attn[a]=cpu", "attn[-1]=cpu", "auto,cpu", "attn==cpu", "attn[0-99999]=cpu", "attn=cuda:-1", "\x1b[31m=cpu"])  # fmt: skip
def test_what_is_no_placement(text):
    with pytest.raises(ConfigError, match="placement"):
        parse(text)


def test_auto_gives_a_gpu_what_is_read_most(giant):
    """25 GiB for a model of 443: all attention with its cache, dense and shared parts, then experts as far as they go."""
    budget = Budget(512 * GIB, 512 * GIB, {"cuda:0": 25 * GIB})
    table = resolve(giant, "auto", budget)
    for (role, layer), device in table.items():
        if role not in ("experts", "embed"):
            assert device == "cuda:0", (role, layer)
    on_gpu = [layer for (role, layer), device in table.items() if role == "experts" and device == "cuda:0"]
    assert on_gpu and table["embed", None] == "cpu"
    plan = placed(giant, table)
    result = fit(plan, budget)
    assert result.verdict == "fits"
    gpu = result.needs[1]
    one = next(sum(t.nbytes for t in giant.tensors if t.role == "experts" and t.slot.layer == i) for i in (10,))
    assert gpu.have - one < gpu.model + gpu.system <= gpu.have, "another layer's experts had no room"


def test_without_room_for_all_attention_layers_stay_whole(giant):
    table = resolve(giant, "auto", Budget(512 * GIB, 512 * GIB, {"cuda:0": 6 * GIB}))
    for i in range(61):
        homes = {
            device for (role, layer), device in table.items() if layer == i and role not in ("experts", "dense_ffn")
        }
        assert len(homes) == 1, i
    assert table["attn", 0] == "cuda:0" and table["attn", 60] == "cpu"


def test_a_dense_model_keeps_feed_forward_layers_in_main_memory_first(demo):
    """What is not enough for all: attention and the output come before them, embeddings go where all else is."""
    roles = {
        role: sum(t.nbytes for t in demo.tensors if t.role == role) for role in ("attn", "norm", "embed", "dense_ffn")
    }
    small = roles["attn"] + roles["norm"] + demo.cache_bytes + demo.device_bytes + CONTEXT_BYTES
    room = small + roles["embed"] + roles["dense_ffn"] // 2  # the output is the embedding
    table = resolve(demo, "auto", Budget(GIB, GIB, {"cuda:0": room}))
    assert {d for (role, _), d in table.items() if role in ("attn", "kv")} == {"cuda:0"}
    assert {d for (role, _), d in table.items() if role == "dense_ffn"} == {"cuda:0", "cpu"}
    assert set(resolve(demo, "auto", Budget(GIB, GIB, {"cuda:0": GIB})).values()) == {"cuda:0"}


def test_what_is_said_is_kept_and_auto_fills_the_rest(giant):
    budget = Budget(512 * GIB, 512 * GIB, {"cuda:0": 24 * GIB, "cuda:1": 24 * GIB})
    table = resolve(giant, "auto,experts=cpu,attn[5]=cuda:1", budget)
    assert {device for (role, _), device in table.items() if role == "experts"} == {"cpu"}
    assert table["attn", 5] == "cuda:1" and table["kv", 5] == "cuda:1" and table["attn", 4] == "cuda:0"


@settings(deadline=None, max_examples=60)
@given(gpus=st.lists(st.integers(1, 60 * GIB), max_size=3))
def test_nothing_exceeds(giant, gpus):
    budget = Budget(512 * GIB, 512 * GIB, {f"cuda:{i}": n for i, n in enumerate(gpus)})
    plan = placed(giant, resolve(giant, "auto", budget))
    result = fit(plan, budget)
    for need in result.needs[1:]:
        assert need.model + need.system <= need.have, need
    devices = ("cpu", *budget.devices)
    assert sum(plan.weights_on(d) for d in devices) == giant.weights_bytes
    assert sum(plan.cache_on(d) for d in devices) == giant.cache_bytes


def test_what_one_asks_for_may_exceed_and_is_told(giant):
    budget = Budget(512 * GIB, 512 * GIB, {"cuda:0": 24 * GIB})
    result = fit(placed(giant, resolve(giant, "cpu,experts=cuda:0", budget)), budget)
    assert result.verdict == "does not fit"
    assert result.needs[1].weights > 400 * GIB and result.needs[0].weights < 20 * GIB
    assert result.remedies[0].flags == "--placement auto"


def test_a_table_is_spelled_briefly_and_means_the_same(giant):
    budget = Budget(512 * GIB, 512 * GIB, {"cuda:0": 24 * GIB})
    table = resolve(giant, "auto", budget)
    said = entries(table)
    assert len(said) < 12 and "attn=cuda:0" in said and "embed=cpu" in said
    assert resolve(giant, ",".join(said), budget) == table


def test_saved_and_loaded(giant, demo, tmp_path):
    budget = Budget(512 * GIB, 512 * GIB, {"cuda:0": 24 * GIB})
    table = resolve(giant, "auto,experts[3-4]=cuda:0", budget)
    path = tmp_path / "p.json"
    save(path, giant, table)
    assert json.loads(path.read_text())["architecture"] == "deepseek2"
    assert resolve(giant, str(path), budget) == resolve(giant, load_saved(path, giant), budget) == table
    with pytest.raises(ConfigError, match=r"is for deepseek2 with 61 layers; the model is llama with 4"):
        load_saved(path, demo)
    for bad in (
        "",
        "[]",
        "{}",
        '{"architecture": 1, "layers": 4, "placement": 3}',
        '{"architecture": "llama", "layers": 4, "placement": "cpu"}',
    ):
        path.write_text(bad)
        with pytest.raises(ConfigError, match="cannot be read"):
            load_saved(path, demo)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_saved(tmp_path / "none.json", demo)


def test_saving_where_there_is_no_folder(demo, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be saved in .* Name a file in a folder that exists"):
        save(tmp_path / "none" / "p.json", demo, resolve(demo, "cpu", Budget(GIB)))


def test_a_model_is_loaded_with_a_saved_placement(demo, data, tmp_path):
    path = tmp_path / "p.json"
    save(path, demo, resolve(demo, "cpu", Budget(GIB)))
    with Model.load(data / "demo-Q8_0.gguf", placement=str(path), context_length=256) as model:
        assert model.generate("Once", max_tokens=1).tokens
    save(path, demo, resolve(demo, "cpu,attn=cuda:0", TWO))
    with pytest.raises(ConfigError, match="there is no cuda:0, only cpu"):
        Model.load(data / "demo-Q8_0.gguf", placement=str(path))
    with pytest.raises(ConfigError, match=r"gone\.json cannot be read"):
        Model.load(data / "demo-Q8_0.gguf", placement="gone.json")


def test_the_context_of_the_driver_counts(demo):
    tight = Budget(GIB, GIB, {"cuda:0": CONTEXT_BYTES + 1})
    assert set(resolve(demo, "auto", tight).values()) == {"cpu"}
