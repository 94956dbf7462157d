// Vectors of the instruction set at hand. Only what needs an instruction of its own has a branch here.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "compiler.h"

namespace qt::QT_ISA {
#if defined(QT_512)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif
typedef float V __attribute__((vector_size(4 * VL)));
typedef int32_t I __attribute__((vector_size(4 * VL)));
typedef float Half __attribute__((vector_size(2 * VL)));
typedef uint16_t W __attribute__((vector_size(2 * VL)));
typedef uint8_t B __attribute__((vector_size(VL)));
typedef double D __attribute__((vector_size(4 * VL)));
typedef float F4 __attribute__((vector_size(16)));

template <class T>
QT_INLINE T get(const void* p) {
    T v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
template <class T>
QT_INLINE void put(void* p, T v) {
    __builtin_memcpy(p, &v, sizeof v);
}
QT_INLINE V load(const float* p) { return get<V>(p); }
// Halves to floats.
QT_INLINE V load_halves(const void* p) {
#if defined(QT_512)
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__aarch64__)
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p)));
#else
    const I x = __builtin_convertvector(get<W>(p), I), magnitude = (x & 0x7fff) << 13;
    const I y = (I)((V)magnitude * 0x1p112f) | ((magnitude >= 0x0f800000) & 0x7f800000);  // see widen() in decode.h
    return (V)(y | (x & 0x8000) << 16);
#endif
}
QT_INLINE void store(float* p, V v) { put(p, v); }
QT_INLINE V all(float x) { return x - V{}; }

// The first n of a vector; the rest is zero.
QT_INLINE V load_part(const float* p, size_t n) {
    V v{};
    __builtin_memcpy(&v, p, 4 * n);
    return v;
}
QT_INLINE void store_part(float* p, V v, size_t n) { __builtin_memcpy(p, &v, 4 * n); }

// a b + c in one rounding where the machine has it. Never left to the compiler: the same sum must be the same everywhere.
QT_INLINE V fma(V a, V b, V c) {
#if defined(QT_512)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}
// The larger; b where either is NaN.
QT_INLINE V larger(V a, V b) {
#if defined(QT_512)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}
// The smaller; b where either is NaN.
QT_INLINE V smaller(V a, V b) {
#if defined(QT_512)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}
// Swap the two of each pair.
QT_INLINE V swap_pairs(V x) {
#if defined(QT_512)
    return _mm512_permute_ps(x, 0xb1);
#elif defined(__AVX2__)
    return _mm256_permute_ps(x, 0xb1);
#elif defined(__x86_64__)
    return _mm_shuffle_ps(x, x, 0xb1);
#else
    return V{x[1], x[0], x[3], x[2]};
#endif
}
// Lane i gets lane i ^ h.
template <int h>
QT_INLINE V swap_lanes(V x) {
    static_assert(h == 1 || h == 2 || h == 4 || h == 8);
    if constexpr (h == 1) return swap_pairs(x);
#if defined(QT_512)
    else if constexpr (h == 2) return _mm512_permute_ps(x, 0x4e);
    else if constexpr (h == 4) return _mm512_shuffle_f32x4(x, x, 0xb1);
    else return _mm512_shuffle_f32x4(x, x, 0x4e);
#elif defined(__AVX2__)
    else if constexpr (h == 2) return _mm256_permute_ps(x, 0x4e);
    else return _mm256_permute2f128_ps(x, x, 1);
#else
    else return V{x[2], x[3], x[0], x[1]};
#endif
}

QT_INLINE F4 quarter(V v) {
#if defined(QT_512)
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif defined(__AVX2__)
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#else
    return v;
#endif
}
// The sums of four vectors, each over the same tree of lanes.
QT_INLINE F4 sums(V a, V b, V c, V d) {
    F4 p = quarter(a), q = quarter(b), r = quarter(c), s = quarter(d);
#if defined(__x86_64__)
    F4 x = _mm_unpacklo_ps(p, q) + _mm_unpackhi_ps(p, q), y = _mm_unpacklo_ps(r, s) + _mm_unpackhi_ps(r, s);
    return F4(_mm_movelh_ps(x, y)) + F4(_mm_movehl_ps(y, x));
#else
    return F4{(p[0] + p[2]) + (p[1] + p[3]), (q[0] + q[2]) + (q[1] + q[3]), (r[0] + r[2]) + (r[1] + r[3]), (s[0] + s[2]) + (s[1] + s[3])};
#endif
}
QT_INLINE float sum(V a) { return sums(a, V{}, V{}, V{})[0]; }
QT_INLINE float largest(V a) {
#if defined(QT_512)
    return _mm512_reduce_max_ps(a);
#endif
    float x[VL], m;
    store(x, a);
    m = x[0];
    for (int i = 1; i < VL; i++) m = x[i] > m ? x[i] : m;
    return m;
}

QT_INLINE V magnitude(V x) { return (V)((I)x & 0x7fffffff); }
QT_INLINE V with_sign(V x, V of) { return (V)((I)x | ((I)of & int32_t(0x80000000))); }
QT_INLINE V choose(I mask, V yes, V no) { return (V)((mask & (I)yes) | (~mask & (I)no)); }

// e^x for x <= 0: 2^n times a polynomial, within 2 units of the last place, gradual underflow included; NaN stays NaN.
QT_INLINE V exp_negative(V x) {
    const V magic = all(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    x = larger(all(-110.f), x);
    V t = fma(x, all(1.44269504f), magic), whole = t - magic;
    V r = fma(whole, all(-0.693359375f), x);
    r = fma(whole, all(2.12194440e-4f), r);
    V p = all(1.f / 5040);
    p = fma(p, r, all(1.f / 720));
    p = fma(p, r, all(1.f / 120));
    p = fma(p, r, all(1.f / 24));
    p = fma(p, r, all(1.f / 6));
    p = fma(p, r, all(.5f));
    p = fma(p, r, all(1.f));
    p = fma(p, r, all(1.f));
#if defined(QT_512)
    return _mm512_scalef_ps(p, whole);  // the same bits, one rounding at most
#endif
    I n = (I)t - (I)magic, first = n >> 1, second = n - first;  // two steps, as 2^n may be no normal number
    return p * (V)((first + 127) << 23) * (V)((second + 127) << 23);
}
// Within 3 units of the last place: an odd polynomial near 0, (1 - e^-2x) / (1 + e^-2x) elsewhere. NaN stays NaN.
QT_INLINE V tanh(V x) {
    const V a = magnitude(x), s = x * x, e = exp_negative(a * all(-2.f));
    V p = all(-1382.f / 155925);
    p = fma(p, s, all(62.f / 2835));
    p = fma(p, s, all(-17.f / 315));
    p = fma(p, s, all(2.f / 15));
    p = fma(p, s, all(-1.f / 3));
    const V small = fma(a * s, p, a), wide = (all(1.f) - e) / (all(1.f) + e);
    return with_sign(choose(a < all(.3f), small, wide), x);
}
}  // namespace qt::QT_ISA
