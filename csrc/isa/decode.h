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

// 16 packed nibbles, as above, through a table of 16 values.
static inline void nibble_values(const int8_t* table, const uint8_t* packed, int8_t* q) {
#ifdef __AVX2__
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table)), low = _mm_set1_epi8(15);
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm_shuffle_epi8(values, _mm_and_si128(x, low)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm_shuffle_epi8(values, _mm_and_si128(_mm_srli_epi16(x, 4), low)));
#else
    alignas(16) int8_t index[32];
    nibbles(packed, (uint8_t*)index);
    for (int half = 0; half < 32; half += 16) {
        typedef int8_t Bytes __attribute__((vector_size(16)));
        Bytes i, values;
        __builtin_memcpy(&i, index + half, 16);
#if defined(__aarch64__)
        values = (Bytes)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)i);
#else  // without a look-up of bytes: the first value, and each step from one to the next that the index has passed
        values = Bytes{} + table[0];
#pragma GCC unroll 16
        for (int k = 0; k < 15; k++) values += (Bytes)(i > int8_t(k)) & int8_t(table[k + 1] - table[k]);
#endif
        __builtin_memcpy(q + half, &values, 16);
    }
#endif
}

// 32 bits to 32 bytes: 255 where the bit is set, else 0.
static inline void spread(uint32_t from, uint8_t* to) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_movm_epi8(from));
#elif defined(__AVX2__)
    const __m256i which = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int(from)), which);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit));
#else
    for (int i = 0; i < 4; i++) {
        uint64_t one = uint64_t(from >> 8 * i & 255) * 0x0101010101010101 & 0x8040201008040201;
        one = (one + 0x7f7f7f7f7f7f7f7f) >> 7 & 0x0101010101010101;  // 1 in each byte that is not 0: no sum exceeds 255
        one *= 255;
        __builtin_memcpy(to + 8 * i, &one, 8);
    }
#endif
}
}  // namespace qt::QT_ISA
