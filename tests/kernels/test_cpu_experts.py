"""Routing and mixtures of experts, against the twins."""

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers import nn
from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu, reference
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

NAN, INF = float("nan"), float("inf")

# The gatings of models, as settings.
GATINGS = {
    "Mixtral": {"normalize": True},
    "Qwen2MoE": {},
    "DeepSeek-V2": {"n_groups": 4, "n_groups_used": 2, "scale": 16.0},
    "DeepSeek-V3": {"gate": "sigmoid", "bias": True, "n_groups": 4, "n_groups_used": 2, "group_top": 2, "normalize": True, "scale": 2.5},
    "sigmoid": {"gate": "sigmoid"},
}  # fmt: skip


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def settings(name, n_experts):
    given = dict(GATINGS[name])
    if "bias" in given:
        given["bias"] = 0.3 * floats(n_experts, seed=1)
    return given


@pytest.mark.parametrize("name", GATINGS)
@pytest.mark.parametrize("n_experts, n_used", [(8, 2), (16, 4), (60, 4), (128, 8), (256, 8)])
def test_routing_is_its_twin(name, n_experts, n_used):
    logits, given = 2 * floats(33, n_experts), settings(name, n_experts)
    ids, weights = nn.route(logits, n_used, **given)
    expected, theirs = reference.route(logits, n_used, **given)
    assert ids.dtype == np.int32 and weights.dtype == np.float32
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(weights, theirs, rtol=1e-6)


def test_routing_by_hand():
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], np.float32))
    ids, weights = nn.route(logits, 2)
    assert ids.tolist() == [[1, 3]]
    np.testing.assert_allclose(weights, [[0.4, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(nn.route(logits, 2, normalize=True)[1], [[4 / 7, 3 / 7]], rtol=1e-6)
    np.testing.assert_allclose(nn.route(logits, 2, scale=3.0)[1], [[1.2, 0.9]], rtol=1e-6)
    ids, weights = nn.route(logits, 2, bias=np.array([9, 0, 0, 0], np.float32))
    assert ids.tolist() == [[0, 1]]
    np.testing.assert_allclose(weights, [[0.1, 0.4]], rtol=1e-6)  # the bias chooses, it does not weigh
    assert nn.route(logits, 2, n_groups=2)[0].tolist() == [[1, 0]]  # 0.4 is the best of all: its group
    assert nn.route(logits, 2, n_groups=2, bias=np.array([0, 0, 0, 0.15], np.float32))[0].tolist() == [[3, 2]]
    logits = np.log(np.array([[0.05, 0.4, 0.25, 0.3]], np.float32))
    assert nn.route(logits, 2, n_groups=2, group_top=2)[0].tolist() == [[3, 2]]  # 0.55 of 0.45


def test_ties_go_to_the_smaller_id():
    assert nn.route(np.zeros((2, 64), np.float32), 5)[0].tolist() == [[0, 1, 2, 3, 4]] * 2


def test_logits_that_are_no_numbers_choose_valid_experts():
    for bad in (NAN, INF, -INF):
        for gate in ("softmax", "sigmoid"):
            logits = floats(3, 8)
            logits[1, 5] = bad
            ids, weights = nn.route(logits, 3, gate=gate)
            assert all(len(set(row)) == 3 and min(row) >= 0 and max(row) < 8 for row in ids.tolist())
            assert np.isfinite(weights[[0, 2]]).all()
            np.testing.assert_array_equal(ids[[0, 2]], nn.route(logits[[0, 2]], 3, gate=gate)[0])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"n_used": 0}, "n_used is 0"), ({"n_used": 9}, "n_used is 9"), ({"n_used": 2, "gate": "relu"}, "gate='relu'"),
        ({"n_used": 2, "n_groups": -1}, "route expects"), ({"n_used": 2.5}, "route expects"), ({"n_used": 2, "n_groups": 3}, "groups"), ({"n_used": 2, "n_groups": 0}, "groups"),
        ({"n_used": 2, "n_groups": 2, "n_groups_used": 3}, "groups"), ({"n_used": 5, "n_groups": 2}, "n_used is 5"),
        ({"n_used": 2, "n_groups": 2, "group_top": 0}, "groups"),
        ({"n_used": 2, "bias": np.zeros(7, np.float32)}, "bias is"),
    ],
)  # fmt: skip
def test_what_cannot_be_routed(given, message):
    with pytest.raises(ConfigError, match=message):
        nn.route(np.zeros((1, 8), np.float32), **given)


def experts(kind, n, rows, cols, seed=0):
    kind = BY_NAME[kind]
    data = random_blocks(kind, n * rows * cols // kind.block_size, seed)
    return QTensor("blk.0.ffn_up_exps.weight", kind, (n, rows, cols), data, "a.gguf")


def layer(kind, n=6, n_embd=64, n_ff=96, down=None):
    """Three tensors of experts; their weights scaled so that activations stay moderate."""
    return [
        experts(kind, n, n_ff, n_embd, 1),
        experts(kind, n, n_ff, n_embd, 2),
        experts(down or kind, n, n_embd, n_ff, 3),
    ]


def routed(n_tokens, n_experts, k, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(n_experts)[:k] for _ in range(n_tokens)], np.int32).reshape(n_tokens, k)
    return ids, rng.uniform(-0.2, 1, (n_tokens, k)).astype(np.float32)


def assert_near(found, expected, tolerance):
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.linalg.norm(expected) > 0.01 * expected.size**0.5
    assert np.linalg.norm(found.astype(np.float64) - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0", "MXFP4", "Q1_0"])
@pytest.mark.parametrize("n_tokens, n, k", [(1, 6, 2), (1, 1, 1), (3, 6, 3), (7, 4, 4), (40, 6, 2), (150, 5, 3)])
def test_experts_are_their_twin(kind, n_tokens, n, k, isa):
    tensors, x = layer(kind, n, 128, 128), floats(n_tokens, 128)
    ids, weights = routed(n_tokens, n, k)
    with cpu.Pool(2, isa):
        found = nn.moe(x, ids, weights, *map(cpu.bind, tensors))
    assert_near(found, reference.moe(x, ids, weights, *tensors), 1e-5)


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
@pytest.mark.parametrize("n_tokens", [1, 5, 60])
def test_activations_and_biases(act, n_tokens, isa):
    tensors, x = layer("Q8_0"), floats(n_tokens, 64)
    ids, weights = routed(n_tokens, 6, 2)
    biases = [floats(6, 96, seed=4), floats(6, 96, seed=5), floats(6, 64, seed=6)]
    with cpu.Pool(2, isa):
        found = nn.moe(x, ids, weights, *map(cpu.bind, tensors), act, *biases)
    expected = reference.moe(x, ids, weights, *tensors, act, *biases)
    assert_near(found, expected, 1e-5)
    for i in range(3):
        fewer = [None if j == i else b for j, b in enumerate(biases)]
        assert np.abs(expected - reference.moe(x, ids, weights, *tensors, act, *fewer)).max() > 0.01


@pytest.mark.parametrize("accuracy, tolerance", [("high", 1e-3), ("fast", 0.03)])
@pytest.mark.parametrize("kinds", [("Q4_K", "Q6_K"), ("Q4_0", "Q8_0")])
@pytest.mark.parametrize("n_tokens", [1, 4, 6, 100])
def test_integer_products(accuracy, tolerance, kinds, n_tokens, isa):
    tensors, x = layer(kinds[0], 6, 512, 256, kinds[1]), floats(n_tokens, 512)
    ids, weights = routed(n_tokens, 6, 2)
    with cpu.Pool(2, isa):
        found = nn.moe(x, ids, weights, *(cpu.bind(t, accuracy) for t in tensors))
    assert_near(found, reference.moe(x, ids, weights, *tensors), tolerance)


@pytest.mark.parametrize("accuracy", ["exact", "high", "fast"])
@pytest.mark.parametrize("n_tokens", [1, 3, 6, 33, 100])
def test_results_do_not_depend_on_threads(accuracy, n_tokens, isa):
    tensors, x = [cpu.bind(t, accuracy) for t in layer("Q4_K", 8, 512, 256)], floats(n_tokens, 512)
    ids, weights = routed(n_tokens, 8, 2)
    with cpu.Pool(1, isa):
        one = nn.moe(x, ids, weights, *tensors)
    for threads in (2, 5):
        with cpu.Pool(threads, isa):
            np.testing.assert_array_equal(nn.moe(x, ids, weights, *tensors), one)


def test_no_tokens_and_no_experts_used(isa):
    tensors = [cpu.bind(t) for t in layer("Q8_0")]
    with cpu.Pool(2, isa):
        assert nn.moe(floats(0, 64), *routed(0, 6, 2), *tensors).shape == (0, 64)
        assert not nn.moe(floats(3, 64), *routed(3, 6, 0), *tensors).any()


def test_an_expert_may_be_chosen_twice(isa):
    tensors, x = layer("Q8_0"), floats(3, 64)
    ids, weights = np.full((3, 2), 4, np.int32), floats(3, 2)
    with cpu.Pool(2, isa):
        found = nn.moe(x, ids, weights, *map(cpu.bind, tensors))
    assert_near(found, reference.moe(x, ids, weights, *tensors), 1e-5)


def test_a_nan_stays_with_its_token(isa):
    tensors, x = [cpu.bind(t, "fast") for t in layer("Q8_0")], floats(40, 64)
    x[7, 3] = NAN
    with cpu.Pool(2, isa):
        found = nn.moe(x, *routed(40, 6, 2), *tensors)
    assert np.isnan(found[7]).any() and np.isfinite(np.delete(found, 7, 0)).all()


def test_experts_say_what_they_are():
    tensor = experts("Q8_0", 6, 96, 64)
    bound = cpu.bind(tensor, "fast")
    assert isinstance(bound, cpu.Experts) and bound.shape == (6, 96, 64) and bound.tensor is tensor
    assert (bound.name, bound.type) == (tensor.name, tensor.type)
    assert repr(bound) == "Experts(blk.0.ffn_up_exps.weight, Q8_0, [6, 96, 64])"


def test_shapes_that_do_not_fit():
    gate, up, down = (cpu.bind(t) for t in layer("Q8_0"))
    ids, weights = routed(5, 6, 2)
    x = floats(5, 64)
    other = cpu.bind(experts("Q8_0", 6, 96, 32))
    fewer = cpu.bind(experts("Q8_0", 5, 96, 64))
    for case in (
        (floats(5, 65), ids, weights, gate, up, down),
        (floats(4, 64), ids, weights, gate, up, down),
        (x, ids[:, :1], weights, gate, up, down),
        (x, ids + 6, weights, gate, up, down),
        (x, ids - 6, weights, gate, up, down),
        (x, ids, weights, gate, up, up),
        (x, ids, weights, gate, other, down),
        (x, ids, weights, fewer, up, down),
        (x, ids, weights, gate, up, down, "relu"),
        (x, ids, weights, gate, up, down, "silu", floats(6, 95)),
        (x, ids, weights, gate, up, down, "silu", None, None, floats(5, 64)),
        (x, ids, weights, gate, up, cpu.bind(QTensor("w", BY_NAME["F32"], (64, 96), np.zeros(4 * 64 * 96, np.uint8)))),
        (x, ids, weights, gate, up, cpu.bind(experts("Q8_0", 5, 64, 96))),
        (x, ids.astype(np.int64), weights, gate, up, down),
    ):
        with pytest.raises(ConfigError):
            nn.moe(*case)


def test_a_tensor_of_experts_of_whole_numbers_is_refused():
    from qtransformers.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match="whole numbers"):
        cpu.bind(QTensor("blk.0.ffn_up_exps.weight", BY_NAME["I8"], (2, 3, 4), np.zeros(24, np.uint8), "a.gguf"))


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("n_tokens, heads", [(0, 2), (1, 1), (1, 5), (3, 5), (70, 3)])
def test_a_matrix_for_each_head_is_its_twin(kind, n_tokens, heads, isa):
    w, x = experts(kind, heads, 40, 256), floats(n_tokens, heads, 256)
    with cpu.Pool(2, isa):
        found = nn.per_head(x, cpu.bind(w))
    expected = reference.per_head(x, w)
    assert found.shape == expected.shape == (n_tokens, heads, 40)
    if n_tokens:
        assert_near(found, expected, 1e-5)


def test_many_heads_go_in_waves():
    """More activations than a wave holds; a token gets the same by itself."""
    w, x = experts("Q8_0", 64, 512, 128), floats(300, 64, 128)
    bound = cpu.bind(w, "fast")
    with cpu.Pool(2):
        found = nn.per_head(x, bound)
        assert_near(found, reference.per_head(x, w), 0.03)
        assert_near(nn.per_head(x[7:8], bound), found[7:8], 1e-5)


def test_heads_that_do_not_fit():
    w = cpu.bind(experts("Q8_0", 3, 32, 64))
    for x in (floats(2, 3, 32), floats(2, 2, 64), floats(2, 64)):
        with pytest.raises(ConfigError, match=r"x is \[.*expected \[any, 3, 64\]"):
            nn.per_head(x, w)
    with pytest.raises(ConfigError, match="per_head expects"):
        cpu.per_head(floats(2, 3, 64), cpu.bind(QTensor("w", BY_NAME["F32"], (2, 2), np.zeros(16, np.uint8), "a")))
