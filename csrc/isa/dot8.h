// Products of byte codes with int8 activations, in the instructions at hand: all that kernels outside AVX-512 differ in.
// Codes are from 0 to 127, or signed where `is_signed`; activations are from -127 to 127.
#pragma once
#include "isa/vec.h"

namespace qt::QT_ISA {

// Sums are added in the order they are written in: the compiler's trees of sums need more registers than there are.
template <class T>
QT_INLINE T in_order(T x) {
#if defined(__x86_64__) && defined(__GNUC__)
    asm("" : "+x"(x));
#endif
    return x;
}

// Lanes are tokens: a Quad holds 4 columns of VL tokens, a Weights 4 codes of a row, once for each token.
// Sums adds them up; it holds `span` columns of signed codes, and 32 of codes whose distance from the offset is at most 16
// (16 columns where it is 32). settle() makes it one number a token, times the power of two that `up` stands for.
//
// A row of codes meets a row of x: row_sums() multiplies 4 VL of each, settle_row() is settle() of those.
typedef uint16_t Words __attribute__((vector_size(4 * VL)));  // 4 VL codes
#if defined(__SSE2__) && !defined(__AVX2__)
typedef int16_t Act;  // of a row, as row_sums reads it
#else
typedef int8_t Act;
#endif
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
#define QT_VNNI 1  // unsigned by signed bytes, four to a sum that holds any
typedef __m256i Quad, Weights, Sums;
constexpr int span = 32;

QT_INLINE Weights four_codes(const uint8_t* p) { return _mm256_set1_epi32(get<int32_t>(p)); }
QT_INLINE int32_t up_word(int up) { return up; }
template <bool is_signed>
QT_INLINE Sums step(Sums sums, Weights w, Quad x) {
    static_assert(!is_signed);
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sums, w, x);
#else
    return _mm256_dpbusd_epi32(sums, w, x);
#endif
}
QT_INLINE I settle(Sums sums, I up) { return (I)_mm256_sllv_epi32(sums, (__m256i)up); }
QT_INLINE Sums offset_start(Sums of_ones, int log2) { return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(of_ones, log2)); }
QT_INLINE Sums plus(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
#elif defined(__AVX2__)
typedef __m256i Quad, Weights, Sums;
constexpr int span = 4;

QT_INLINE Weights four_codes(const uint8_t* p) { return _mm256_set1_epi32(get<int32_t>(p)); }
QT_INLINE int32_t up_word(int up) { return 0x10001 << up; }
template <bool is_signed>
QT_INLINE Sums step(Sums sums, Weights w, Quad x) {
    const __m256i pairs = is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x);
    return in_order(_mm256_add_epi16(sums, pairs));
}
QT_INLINE I settle(Sums sums, I up) { return (I)_mm256_madd_epi16(sums, (__m256i)up); }
QT_INLINE Sums offset_start(Sums of_ones, int log2) { return _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_sll_epi16(of_ones, _mm_cvtsi32_si128(log2))); }
QT_INLINE Sums plus(Sums a, Sums b) { return _mm256_add_epi16(a, b); }

typedef __m256i RowSums;
template <bool is_signed>
QT_INLINE RowSums row_sums(Words w, const Act* x) {
    const __m256i codes = (__m256i)w, acts = get<__m256i>(x);
    return is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(acts, codes)) : _mm256_maddubs_epi16(codes, acts);
}
QT_INLINE I settle_row(RowSums sums, const int32_t* up) { return settle(sums, I{} + *up); }
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int8x16_t Quad, Weights;
typedef int32x4_t Sums;
constexpr int span = 32;

QT_INLINE Weights four_codes(const uint8_t* p) { return vreinterpretq_s8_s32(vdupq_n_s32(get<int32_t>(p))); }
QT_INLINE int32_t up_word(int up) { return up; }
template <bool is_signed>
QT_INLINE Sums step(Sums sums, Weights w, Quad x) { return vdotq_s32(sums, w, x); }
QT_INLINE I settle(Sums sums, I up) { return (I)vshlq_s32(sums, (int32x4_t)up); }
QT_INLINE Sums offset_start(Sums of_ones, int log2) { return vnegq_s32(vshlq_s32(of_ones, vdupq_n_s32(log2))); }
QT_INLINE Sums plus(Sums a, Sums b) { return vaddq_s32(a, b); }

typedef int32x4_t RowSums;
template <bool is_signed>
QT_INLINE RowSums row_sums(Words w, const Act* x) { return vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_u16((uint16x8_t)w), vld1q_s8(x)); }
QT_INLINE I settle_row(RowSums sums, const int32_t* up) { return (I)vshlq_s32(sums, vdupq_n_s32(*up)); }
#elif defined(__aarch64__)
typedef int8x16_t Quad;
typedef int8x8_t Weights;
struct Sums { int16x8_t a, b; };  // tokens 0 and 1, 2 and 3: one lane a column
constexpr int span = 8;

QT_INLINE Weights four_codes(const uint8_t* p) { return vreinterpret_s8_s32(vdup_n_s32(get<int32_t>(p))); }
QT_INLINE int32_t up_word(int up) { return up; }
template <bool is_signed>
QT_INLINE Sums step(Sums sums, Weights w, Quad x) { return {vmlal_s8(sums.a, w, vget_low_s8(x)), vmlal_s8(sums.b, w, vget_high_s8(x))}; }
QT_INLINE I settle(Sums sums, I up) { return (I)vshlq_s32(vpaddq_s32(vpaddlq_s16(sums.a), vpaddlq_s16(sums.b)), (int32x4_t)up); }
QT_INLINE Sums offset_start(Sums of_ones, int log2) {
    const int16x8_t by = vdupq_n_s16(int16_t(log2));
    return {vnegq_s16(vshlq_s16(of_ones.a, by)), vnegq_s16(vshlq_s16(of_ones.b, by))};
}
QT_INLINE Sums plus(Sums a, Sums b) { return {vaddq_s16(a.a, b.a), vaddq_s16(a.b, b.b)}; }

typedef int32x4_t RowSums;
template <bool is_signed>
QT_INLINE RowSums row_sums(Words w, const Act* x) {
    const int8x16_t codes = vreinterpretq_s8_u16((uint16x8_t)w), acts = vld1q_s8(x);
    return vpaddlq_s16(vmlal_s8(vmull_s8(vget_low_s8(codes), vget_low_s8(acts)), vget_high_s8(codes), vget_high_s8(acts)));
}
QT_INLINE I settle_row(RowSums sums, const int32_t* up) { return (I)vshlq_s32(sums, vdupq_n_s32(*up)); }
#elif defined(__SSE2__)
typedef I RowSums;
QT_INLINE int32_t up_word(int up) { return up; }
template <bool is_signed>
QT_INLINE RowSums row_sums(Words w, const Act* x) {
    const __m128i codes = (__m128i)w, zero = _mm_setzero_si128();
    const __m128i low = is_signed ? _mm_srai_epi16(_mm_unpacklo_epi8(codes, codes), 8) : _mm_unpacklo_epi8(codes, zero);
    const __m128i high = is_signed ? _mm_srai_epi16(_mm_unpackhi_epi8(codes, codes), 8) : _mm_unpackhi_epi8(codes, zero);
    return (I)_mm_madd_epi16(low, get<__m128i>(x)) + (I)_mm_madd_epi16(high, get<__m128i>(x + 8));
}
QT_INLINE I settle_row(RowSums sums, const int32_t*) { return sums; }  // the activations are 16 bits, times their power of two
#else
typedef I RowSums;
QT_INLINE int32_t up_word(int up) { return up; }
template <bool is_signed>
QT_INLINE RowSums row_sums(Words w, const Act* x) {
    int8_t codes[16];
    int32_t sums[4] = {};
    put(codes, w);
    for (int i = 0; i < 16; i++) sums[i % 4] += codes[i] * x[i];
    return get<I>(sums);
}
QT_INLINE I settle_row(RowSums sums, const int32_t* up) { return sums << *up; }
#endif

}  // namespace qt::QT_ISA
