// Blocks of the common types to rows of a panel, 256 columns at a time: in registers, 12 to 27 cycles each.
#pragma once
#include "codebooks.h"
#include "gemm_tile.h"
#include "isa/decode_iq.h"
#include "isa/decode_k.h"
#include "isa/decode_legacy.h"
#include "isa/decode_microscaling.h"
#include "isa/decode_ternary.h"

namespace qt::QT_ISA {

constexpr Form plain16{16}, plain32{32}, plain256{256}, minima16{16, floats, 0}, minima32{32, floats, 0};
constexpr Form wild32{32, none, 128, true};  // MXFP4
constexpr Form with_words{32, words32, 0};                                     // Q4_K, Q5_K
constexpr Form folded{256, none, 127}, folded_with_words{256, words16, 0};  // Q3_K, Q2_K: scale * code fits a byte

// Any type, through its decoder.
template <Form f, class Block>
static void unpack(const Block* b, int blocks, Panel<f>& p, int row) {
    const PanelAt<f.sub> to{p.q[row], p.s[row], p.m[row]};
    for (int k = 0; k < blocks; k++) decode(b[k], to + k * Block::size);
    if (f.minima == floats)
        for (int k = 0; k < blocks * Block::size / f.sub; k++) to.m[k] *= 0x1p-7f;
}

// 64-bit lanes of two halves: the low one shifted right by `low`, the high one by `high`.
QT_INLINE Z halves_right(Z x, int low, int high) { return _mm512_srlv_epi64(x, _mm512_setr_epi64(low, low, low, low, high, high, high, high)); }

// 32 bytes: their low nibbles, then the high ones.
QT_INLINE Z nibbles64(const uint8_t* p) { return _mm512_and_si512(halves_right(twice(p), 0, 4), b8(15)); }

// Eight scales and eight minima of 6 bits, see decode_k.h.
QT_INLINE void scales_and_words(const uint8_t* from, f16 d, f16 dmin, Panel<with_words>& p, int row) {
    const uint32_t a = load<uint32_t>(from), b = load<uint32_t>(from + 4), c = load<uint32_t>(from + 8);
    const uint32_t low = 0x3f3f3f3f, nibble = 0x0f0f0f0f, pair = 0x30303030;
    const __m128i s = _mm_set_epi64x(0, int64_t((a & low) | uint64_t((c & nibble) | (a >> 2 & pair)) << 32));
    const __m128i m = _mm_set_epi64x(0, int64_t((b & low) | uint64_t((c >> 4 & nibble) | (b >> 2 & pair)) << 32));
    _mm256_storeu_ps(p.s[row], _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(s)), _mm256_set1_ps(widen(d))));
    _mm_storeu_si128((__m128i*)p.words[row], _mm_cvtepu8_epi16(m));
    p.m[row][0] = widen(dmin) * -16;
}

static void unpack(const block::Q4_K* b, int, Panel<with_words>& p, int row) {
    QT_UNROLL for (int i = 0; i < 4; i++) _mm512_store_si512(p.q[row] + 64 * i, nibbles64(b->qs + 32 * i));
    scales_and_words(b->scales, b->d, b->dmin, p, row);
}

static void unpack(const block::Q5_K* b, int, Panel<with_words>& p, int row) {
    const Z high = twice(b->qh);
    QT_UNROLL for (int i = 0; i < 4; i++) {
        const Z bit = _mm512_inserti64x4(b8(1 << 2 * i), _mm256_set1_epi8(char(2 << 2 * i)), 1);
        _mm512_store_si512(p.q[row] + 64 * i, _mm512_or_si512(nibbles64(b->qs + 32 * i), _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(high, bit), b8(16))));
    }
    scales_and_words(b->scales, b->d, b->dmin, p, row);
}

static void unpack(const block::Q6_K* b, int, Panel<plain16>& p, int row) {
    QT_UNROLL for (int h = 0; h < 2; h++) {
        const Z low = once(b->ql + 64 * h), high = twice(b->qh + 32 * h);
        const Z left = _mm512_sllv_epi64(high, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2)), right = halves_right(high, 0, 2);
        const Z first = mask_or(left, b8(0x30), _mm512_and_si512(low, b8(15)));
        const Z second = mask_or(right, b8(0x30), _mm512_and_si512(_mm512_srli_epi64(low, 4), b8(15)));
        _mm512_store_si512(p.q[row] + 128 * h, _mm512_add_epi8(first, b8(128 - 32)));
        _mm512_store_si512(p.q[row] + 128 * h + 64, _mm512_add_epi8(second, b8(128 - 32)));
    }
    const Z s = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)b->scales));
    _mm512_store_ps(p.s[row], _mm512_mul_ps(_mm512_cvtepi32_ps(s), _mm512_set1_ps(widen(b->d))));
}

// Scale times code for each code of 2 bits, a byte each, plus `base`: one multiplication makes the four, which cannot carry.
QT_INLINE Z products(Z scales, uint32_t codes, uint32_t base) {
    return _mm512_add_epi32(_mm512_mullo_epi32(scales, _mm512_set1_epi32(int(codes))), _mm512_set1_epi32(int(base)));
}

// Pairs of bits 2 i and 2 i + 1 of 32 bytes, i = 0 or 2; above them is what does not matter.
QT_INLINE Z pairs64(const uint8_t* p, int i) { return halves_right(twice(p), 2 * i, 2 * i + 2); }

static void unpack(const block::Q3_K* b, int, Panel<folded>& p, int row) {
    const __m128i low = _mm_and_si128(_mm_set_epi64x(load<int64_t>(b->scales) >> 4, load<int64_t>(b->scales)), _mm_set1_epi8(15));
    const __m128i high = _mm_and_si128(_mm_srlv_epi32(_mm_set1_epi32(load<int32_t>(b->scales + 8)), _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
    const Z s = _mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_or_si128(low, _mm_slli_epi32(high, 4))), _mm512_set1_epi32(32));
    // From -4 s to -s where the third bit is clear, from 0 to 3 s where it is set: -124 to 128, plus 127.
    const Z clear = products(s, 0x03020100u - 0x04040404u, 0x7f7f7f7f), set = products(s, 0x03020100, 0x7f7f7f7f);
    const Z mask = twice(b->hmask);
    QT_UNROLL for (int i = 0; i < 4; i++) {
        const int turn = 2 * i + 62, e = 4 * i;
        const Z third = _mm512_rorv_epi64(mask, _mm512_setr_epi64(turn & 63, turn & 63, turn & 63, turn & 63, (turn + 1) & 63, (turn + 1) & 63, (turn + 1) & 63, (turn + 1) & 63));
        const Z code = mask_or(third, b8(4), _mm512_and_si512(pairs64(b->qs + 32 * (i / 2), i % 2 * 2), b8(3)));
        const Z each = _mm512_setr_epi32(e, e + 16, e, e, e + 1, e + 17, e, e, e + 2, e + 18, e, e, e + 3, e + 19, e, e);
        _mm512_store_si512(p.q[row] + 64 * i, _mm512_shuffle_epi8(_mm512_permutex2var_epi32(clear, each, set), code));
    }
    p.s[row][0] = widen(b->d);
}

static void unpack(const block::Q2_K* b, int, Panel<folded_with_words>& p, int row) {
    const __m128i raw = _mm_loadu_si128((const __m128i*)b->scales), nibble = _mm_set1_epi8(15);
    const Z table = products(_mm512_cvtepu8_epi32(_mm_and_si128(raw, nibble)), 0x03020100, 0);
    QT_UNROLL for (int i = 0; i < 4; i++) {
        const int e = 4 * i;
        const Z code = _mm512_and_si512(pairs64(b->qs + 32 * (i / 2), i % 2 * 2), b8(3));
        const Z each = _mm512_setr_epi32(e, e, e, e, e + 1, e + 1, e + 1, e + 1, e + 2, e + 2, e + 2, e + 2, e + 3, e + 3, e + 3, e + 3);
        _mm512_store_si512(p.q[row] + 64 * i, _mm512_shuffle_epi8(_mm512_permutexvar_epi32(each, table), code));
    }
    _mm256_storeu_si256((__m256i*)p.words[row], _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(raw, 4), nibble)));
    p.s[row][0] = widen(b->d), p.m[row][0] = widen(b->dmin) * -8;
}

// 32 nibbles through a table of 16 unsigned codes.
QT_INLINE void through(const int8_t* table, const uint8_t* nibbles, uint8_t* q) {
    const __m256i codes = _mm256_broadcastsi128_si256(_mm_xor_si128(_mm_loadu_si128((const __m128i*)table), _mm_set1_epi8(char(128))));
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)nibbles));
    const __m256i index = _mm256_and_si256(_mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15));
    _mm256_storeu_si256((__m256i*)q, _mm256_shuffle_epi8(codes, index));
}

alignas(16) constexpr int8_t minus_eight[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

static void unpack(const block::IQ4_XS* b, int, Panel<plain32>& p, int row) {
    QT_UNROLL for (int i = 0; i < 8; i++) through(codebook::iq4[0], b->qs + 16 * i, p.q[row] + 32 * i);
    const __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load<int32_t>(b->scales_l)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(b->scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    const __m256i s = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4));
    _mm256_storeu_ps(p.s[row], _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(s, _mm256_set1_epi32(32))), _mm256_set1_ps(widen(b->d))));
}

static void unpack(const block::Q4_0* b, int blocks, Panel<plain32>& p, int row) {
    QT_UNROLL for (int i = 0; i < blocks; i++) through(minus_eight, b[i].qs, p.q[row] + 32 * i), p.s[row][i] = widen(b[i].d);
}
static void unpack(const block::IQ4_NL* b, int blocks, Panel<plain32>& p, int row) {
    QT_UNROLL for (int i = 0; i < blocks; i++) through(codebook::iq4[0], b[i].qs, p.q[row] + 32 * i), p.s[row][i] = widen(b[i].d);
}
static void unpack(const block::MXFP4* b, int blocks, Panel<wild32>& p, int row) {
    QT_UNROLL for (int i = 0; i < blocks; i++) through(codebook::fp4[0], b[i].qs, p.q[row] + 32 * i), p.s[row][i] = half_e8m0(b[i].e);
}
static void unpack(const block::Q8_0* b, int blocks, Panel<plain32>& p, int row) {
    for (int i = 0; i < blocks; i++) {
        const __m256i q = _mm256_loadu_si256((const __m256i*)b[i].qs);
        _mm256_storeu_si256((__m256i*)(p.q[row] + 32 * i), _mm256_xor_si256(q, _mm256_set1_epi8(char(128))));
        p.s[row][i] = widen(b[i].d);
    }
}
}  // namespace qt::QT_ISA
