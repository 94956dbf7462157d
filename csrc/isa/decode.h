// What the decoders share. A decoder unpacks a block to small integers in cache, then scales them to floats:
// two loops that vectorise well on every machine, and one rounding per operation, so that all machines give the same bits.
// The second loop reads no more at a time than the first wrote at once: wider reads wait for the stores to retire.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "blocks.h"
#include "isa.h"

namespace qt::QT_ISA {

#define QT_DECLARE(number, name) void decode_##name(const uint8_t* blocks, float* out, size_t n_blocks);
QT_TYPES(QT_DECLARE)
#undef QT_DECLARE

// A decoder is one function from block to floats; this makes the loop over blocks.
#define QT_DECODER(name)                                                         \
    void decode_##name(const uint8_t* blocks, float* out, size_t n_blocks) {     \
        auto* b = reinterpret_cast<const block::name*>(blocks);                  \
        for (size_t i = 0; i < n_blocks; i++) decode(b[i], out + i * b->size);   \
    }

template <class To, class From>
static inline To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    __builtin_memcpy(&y, &x, sizeof y);
    return y;
}

template <class T>
static inline T load(const void* p) {
    T x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

// Half to float: the exponent is rebased by a product, which also normalises subnormals; infinities and NaN are put back.
static inline float widen(f16 h) {
#ifdef __F16C__
    return _cvtsh_ss(h);
#else
    uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
    uint32_t x = bits<uint32_t>(bits<float>(magnitude) * 0x1p112f);
    x |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    return bits<float>(x | uint32_t(h & 0x8000) << 16);
#endif
}

// y = d q
template <int n, class Q>
static inline void scale(const Q* q, float d, float* y) {
#pragma GCC unroll 1
    for (int i = 0; i < n; i++) y[i] = d * float(q[i]);
}

// y = d q - m
template <int n>
static inline void scale_min(const uint8_t* q, float d, float m, float* y) {
    for (int i = 0; i < n; i++) y[i] = d * float(q[i]) - m;
}

// Low nibbles of 16 bytes, then the high ones: how nearly all 4-bit formats lay out 32 values.
template <int n = 16>
static inline void nibbles(const uint8_t* packed, uint8_t* q) {
    for (int i = 0; i < n; i++) q[i] = packed[i] & 15;
    for (int i = 0; i < n; i++) q[i + n] = packed[i] >> 4;
}

// Two-bit fields: of every 32 bytes the lowest pairs of bits come first, then the next.
static inline void two_bits(const uint8_t* qs, uint8_t* q) {
    for (int half = 0; half < 2; half++)
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 32; i++) q[128 * half + 32 * j + i] = qs[32 * half + i] >> 2 * j & 3;
}

// A table of 16 values; where no instruction looks bytes up, the two of every packed byte.
struct NibbleTable {
    alignas(16) int8_t of[16];
#if !defined(__AVX2__) && !defined(__aarch64__)
    uint16_t pairs[256] = {};
#endif
};
static consteval NibbleTable nibble_table(const int8_t* values, int offset = 0) {
    NibbleTable t{};
    for (int i = 0; i < 16; i++) t.of[i] = int8_t(values[i] + offset);
#if !defined(__AVX2__) && !defined(__aarch64__)
    for (int i = 0; i < 256; i++) t.pairs[i] = uint16_t(uint8_t(t.of[i & 15]) | uint8_t(t.of[i >> 4]) << 8);
#endif
    return t;
}

// 16 packed nibbles through a table: the low ones, then the high ones; or each 8 bytes so, if `by_eights`.
template <bool by_eights = false>
static inline void nibble_values(const NibbleTable& table, const uint8_t* packed, int8_t* q) {
    typedef uint64_t Sixteen __attribute__((vector_size(16)));
#if defined(__AVX2__)
    const __m128i values = _mm_load_si128(reinterpret_cast<const __m128i*>(table.of)), nibble = _mm_set1_epi8(15);
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
    const Sixteen low = (Sixteen)_mm_shuffle_epi8(values, _mm_and_si128(x, nibble)), high = (Sixteen)_mm_shuffle_epi8(values, _mm_and_si128(_mm_srli_epi16(x, 4), nibble));
#elif defined(__aarch64__)
    const int8x16_t values = vld1q_s8(table.of);
    const uint8x16_t x = vld1q_u8(packed);
    const Sixteen low = (Sixteen)vqtbl1q_s8(values, vandq_u8(x, vdupq_n_u8(15))), high = (Sixteen)vqtbl1q_s8(values, vshrq_n_u8(x, 4));
#else
    typedef uint16_t Pairs __attribute__((vector_size(16)));
    const uint16_t* const t = table.pairs;
    const uint8_t* const p = packed;
    const Pairs a = {t[p[0]], t[p[1]], t[p[2]], t[p[3]], t[p[4]], t[p[5]], t[p[6]], t[p[7]]};
    const Pairs b = {t[p[8]], t[p[9]], t[p[10]], t[p[11]], t[p[12]], t[p[13]], t[p[14]], t[p[15]]};
#if defined(__SSE2__)
    const Sixteen low = (Sixteen)_mm_packus_epi16((__m128i)(a & 255), (__m128i)(b & 255)), high = (Sixteen)_mm_packus_epi16((__m128i)(a >> 8), (__m128i)(b >> 8));
#else
    Sixteen low{}, high{};
    for (int i = 0; i < 16; i++) low[i / 8] |= uint64_t((i < 8 ? a : b)[i % 8] & 255) << 8 * (i % 8), high[i / 8] |= uint64_t((i < 8 ? a : b)[i % 8] >> 8) << 8 * (i % 8);
#endif
#endif
    const Sixteen first = by_eights ? Sixteen{low[0], high[0]} : low, second = by_eights ? Sixteen{low[1], high[1]} : high;
    __builtin_memcpy(q, &first, 16);
    __builtin_memcpy(q + 16, &second, 16);
}

// A byte for each bit: 255 where it is set, else 0.
#if defined(__AVX2__)
typedef uint8_t Spread __attribute__((vector_size(32)));
static inline Spread spread_bits(uint32_t from) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return (Spread)_mm256_movm_epi8(from);
#else
    const __m256i which = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201)), bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int(from)), which);
    return (Spread)_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
#endif
}
#else
typedef uint8_t Spread __attribute__((vector_size(16)));
static inline Spread spread_bits(uint32_t from) {
    const Spread bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
#if defined(__SSE2__)
    const __m128i x = _mm_cvtsi32_si128(int(from)), twice = _mm_unpacklo_epi8(x, x);
    const Spread bytes = (Spread)_mm_shuffle_epi32(_mm_shufflelo_epi16(twice, 0x50), 0x50);
#else
    const uint64_t ones = 0x0101010101010101, halves[2] = {(from & 255) * ones, (from >> 8 & 255) * ones};
    Spread bytes;
    __builtin_memcpy(&bytes, halves, 16);
#endif
    return (Spread)((bytes & bit) == bit);
}
#endif
// The same for 32 bits, in memory.
static inline void spread(uint32_t from, uint8_t* to) {
    for (size_t i = 0; i < 32; i += sizeof(Spread)) {
        const Spread bytes = spread_bits(from >> i);
        __builtin_memcpy(to + i, &bytes, sizeof bytes);
    }
}
}  // namespace qt::QT_ISA
