// One row of activations as two int8 planes, for products with one token. Plane 1 is the rounding error of plane 0, rounded
// again: a product costs twice the dots, which hide behind the memory, and is exact to about 3e-5.
#pragma once
#include "simd512.h"

namespace qt::QT_ISA {

// The order in which a type's codes come out of their bytes; x is packed in the same, so that unpacking is a mask and a shift.
// Each keeps runs of 16 values together.
enum Order {
    natural,  // 0..255: Q6_K
    pair,     // groups of 32: (0 2) (1 3) (4 6) (5 7): Q4_K, Q5_K
    half,     // groups of 32: (0 4) (1 5) (2 6) (3 7): Q2_K, Q3_K
    split16   // 16-byte halves of 4 groups of 32, first halves then second halves: IQ4_XS and the 32-value types
};

// Where value i of 256 lies.
constexpr int place(Order o, int i) {
    int g = i / 32, l = i % 32;
    switch (o) {
        case pair: return 128 * (g / 4) + 64 * (g % 2) + 32 * (g / 2 % 2) + l;
        case half: return 64 * (g % 4) + 32 * (g / 4) + l;
        case split16: return 128 * (g / 4) + 64 * (l / 16) + 16 * (g % 4) + l % 16;
        default: return i;
    }
}

// 1024 values with one scale per 256 values and plane, for the types with 256 values a block.
struct alignas(64) Packed1024 {
    int8_t q[1024];
    int16_t sum32[32];     // sums of q over 32 values
    int16_t sum16[4][32];  // -16 * sums over 16 values, twice: one vpmaddwd with [scales | scales] gives -32 * sum(scale * sum)
    float d[16];           // scale of block k in lanes 4k .. 4k + 3
};
// 128 values with one scale per 32, split16, for the types with 32 values a block.
struct alignas(64) Packed128 {
    int8_t q[128];
    int32_t init[16];  // -offset * sum of the 8 values each dot lane sees: the accumulator starts here
    float d[16];       // scale of group k in lanes 4k .. 4k + 3
};
constexpr int planes = 2;

// Rounds 16 n values to int8 with one scale, which is returned, and leaves the rounding errors in x.
template <int n>
INLINE float round_plane(V (&x)[n], __m128i (&q)[n]) {
    V top = _mm512_abs_ps(x[0]);
    UNROLL for (int i = 1; i < n; i++) top = _mm512_max_ps(top, _mm512_abs_ps(x[i]));
    float m = _mm512_reduce_max_ps(top), d = m / 127, id = m > 0 ? 127 / m : 0;
    UNROLL for (int i = 0; i < n; i++) {
        Z r = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], _mm512_set1_ps(id)));
        x[i] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(r), _mm512_set1_ps(d), x[i]);
        q[i] = _mm512_cvtepi32_epi8(r);
    }
    return d;
}

// [record][plane]; `in` is a multiple of 256. Values past the end are zero.
template <Order order>
static void pack_1024(const float* x, int in, Packed1024* a) {
    const int blocks = in / 256;
    for (int b = 0; b < (blocks + 3) / 4 * 4; b++) {
        V v[16];
        UNROLL for (int i = 0; i < 16; i++) v[i] = b < blocks ? _mm512_loadu_ps(x + 256 * b + 16 * i) : _mm512_setzero_ps();
        for (int p = 0; p < planes; p++) {
            Packed1024& o = a[b / 4 * planes + p];
            __m128i q[16];
            const float d = round_plane(v, q);
            int8_t* to = o.q + 256 * (b % 4);
            UNROLL for (int i = 0; i < 16; i++) _mm_store_si128((__m128i*)(to + place(order, 16 * i)), q[i]);
            for (int j = 0; j < 16; j++) {
                const __m128i s = _mm_sad_epu8(_mm_xor_si128(q[j], _mm_set1_epi8((char)0x80)), _mm_setzero_si128());
                const int sum = _mm_cvtsi128_si32(s) + _mm_extract_epi16(s, 4) - 16 * 128;
                o.sum16[b % 4][j] = o.sum16[b % 4][16 + j] = (int16_t)(-16 * sum);
                int16_t& pair_sum = o.sum32[8 * (b % 4) + j / 2];
                pair_sum = (int16_t)(j % 2 ? pair_sum + sum : sum);
            }
            for (int l = 0; l < 4; l++) o.d[4 * (b % 4) + l] = d;
        }
    }
}

// [record][plane]; `in` is a multiple of 32. Values past the end are zero.
template <int offset>
static void pack_128(const float* x, int in, Packed128* a) {
    const int groups = in / 32;
    for (int g = 0; g < (groups + 3) / 4 * 4; g++) {
        V v[2];
        UNROLL for (int i = 0; i < 2; i++) v[i] = g < groups ? _mm512_loadu_ps(x + 32 * g + 16 * i) : _mm512_setzero_ps();
        for (int p = 0; p < planes; p++) {
            Packed128& o = a[g / 4 * planes + p];
            __m128i q[2];
            const float d = round_plane(v, q);
            UNROLL for (int i = 0; i < 2; i++) _mm_store_si128((__m128i*)(o.q + 64 * i + 16 * (g % 4)), q[i]);
            for (int l = 0; l < 4; l++) o.d[4 * (g % 4) + l] = d;
        }
    }
    const Z one = b8(1);
    for (int r = 0; r < (groups + 3) / 4 * planes; r++) {
        // Sums of signed bytes: ones are vpdpbusd's unsigned side.
        Z sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), one, load512(a[r].q)), one, load512(a[r].q + 64));
        _mm512_store_si512(a[r].init, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_mullo_epi32(sum, _mm512_set1_epi32(offset))));
    }
}

// Whether int8 planes can hold x: no infinities or NaN, and no values so small that the inverse of a scale overflows.
static inline bool packable(const float* x, int in) {
    V top = _mm512_setzero_ps(), bad = top;
    for (int i = 0; i < in; i += 16) {
        const V v = _mm512_loadu_ps(x + i);
        top = _mm512_max_ps(top, _mm512_abs_ps(v));
        bad = _mm512_add_ps(bad, _mm512_sub_ps(v, v));  // NaN for infinities and NaN, else 0
    }
    if (_mm512_cmp_ps_mask(bad, bad, _CMP_UNORD_Q)) return false;
    const float most = _mm512_reduce_max_ps(top);
    return most == 0 || (most > 1e-20f && most < 1e20f);
}
}  // namespace qt::QT_ISA
