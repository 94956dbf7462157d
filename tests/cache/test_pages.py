import pytest

from qtransformers.cache import PAGE_TOKENS, PagedCache, bytes_per_token
from qtransformers.errors import ConfigError, InsufficientMemoryError, QTransformersError


def small(n_tokens=1000, **given):
    return PagedCache.allocate(n_layers=2, n_kv_heads=3, head_dim_k=8, head_dim_v=4, n_tokens=n_tokens, **given)


def test_sizes():
    cache = small(codec="f32")
    assert PAGE_TOKENS == 256 and cache.n_pages == 4
    assert cache.pages.shape == (2, 4, 3, 256 * (8 + 16) * 4) and cache.codec == "f32"  # values are padded to 16
    assert cache.nbytes == 2 * 4 * 3 * 256 * (8 + 16) * 4
    assert small().nbytes == cache.nbytes // 2
    assert not cache.pages.any() and cache.pages.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    "codec, bits", [("f32", 32), ("f16", 16), ("q8", 8.5), ("q6", 6.5), ("q4", 4.5), ("k8v4", (8.5 + 4.5) / 2)]
)
def test_true_bits(codec, bits):
    """Codes and a half for every 32 of them, not a bit more."""
    assert bytes_per_token(codec, 8, 128, 64) * 8 == pytest.approx(
        8 * (128 + 64) * bits, rel=0 if codec != "k8v4" else 0.2
    )
    assert bytes_per_token(codec, 8, 128, 128) * 8 == 8 * 256 * bits
    cache = PagedCache.allocate(3, 8, 128, 128, 5000, codec)
    assert cache.nbytes == 3 * 5120 * bytes_per_token(codec, 8, 128, 128)


def test_heads_that_codes_cannot_hold():
    with pytest.raises(
        ConfigError, match=r"cache='q8': heads of 12 keys cannot be kept in q8, .* multiple of 8\. Take f16"
    ):
        PagedCache.allocate(1, 1, 12, 16, 256, "q8")
    with pytest.raises(ConfigError, match="heads of 4 values"):
        PagedCache.allocate(1, 1, 16, 4, 256, "k8v4")


def test_pages_are_taken_and_given_back():
    cache = small()
    first = cache.take(3)
    assert len(set(first)) == 3 and len(cache.free) == 1
    with pytest.raises(InsufficientMemoryError, match=r"1 free pages of 256 tokens, 2 are needed\. Raise cache_tokens"):
        cache.take(2)
    assert len(cache.free) == 1  # a refused request takes nothing
    cache.give_back(first)
    assert sorted(cache.take(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("pages", [[0, 0], [99], [-1]])
def test_a_page_nobody_holds_cannot_be_given_back(pages):
    cache = small()
    cache.take(4)
    with pytest.raises(QTransformersError, match="given back"):
        cache.give_back(pages)
    assert cache.free == []


def test_giving_back_twice_is_an_error():
    cache = small()
    pages = cache.take(2)
    cache.give_back(pages)
    with pytest.raises(QTransformersError, match="given back"):
        cache.give_back(pages)


@pytest.mark.parametrize("codec", ["f17", "", None, 16, "F16"])
def test_an_unknown_codec_is_refused(codec):
    with pytest.raises(ConfigError, match=r"^cache=.*expected one of f32, f16, q8, q6, q4, k8v4"):
        small(codec=codec)


@pytest.mark.parametrize("n_tokens", [2**45, 2**62])
def test_a_cache_beyond_memory_is_refused_with_its_size(n_tokens):
    with pytest.raises(InsufficientMemoryError, match=r"take .* GiB.*Lower context_length"):
        small(n_tokens)
