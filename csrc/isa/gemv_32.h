// Blocks of 32 values in 20 to 34 bytes, as gemv_books.h multiplies them: 256 values a step.
#pragma once
#include "gemv_books.h"

namespace qt::QT_ISA {

// 8 blocks of 20 to 24 bytes as three windows of 64, the last ending with them: four blocks lie in the first two windows, four
// in the last two. 64-bit lane j of what is picked belongs to block j / 2 + 4 * (j % 2), as in the order half_blocks.
template <class B, int from>
struct Nibbles32 {
    static constexpr int stride = sizeof(B), last = 8 * stride - 64;
    static_assert(4 * stride <= 128 && 4 * stride + from >= 64 && last <= 128);
    static constexpr int head(int i) { return stride * (i / 16 + 4 * (i / 8 % 2)) + i % 8; }
    static QT_INLINE Z word(int w) { return words([&](int i) { return 4 * (i / 2 % 8) + w; }); }
    Z low = bytes([](int i) { return stride * (i / 16) + from + i % 16; });
    Z high = bytes([](int i) { const int at = stride * (4 + i / 16) + from + i % 16; return at < 128 ? at - 64 : 64 + at - last; });
    Z heads = bytes([](int i) { return head(i); }), rest = bytes([](int i) { return head(i) - last; });
    Z scale = word(0), least = word(1);
    static consteval uint64_t past() {
        uint64_t mask = 0;
        for (int i = 0; i < 64; i++) mask |= uint64_t(head(i) >= 128) << i;
        return mask;
    }
    QT_INLINE Nibbles32() {}
    static QT_INLINE V half(Z index, Z h) { return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(index, h))); }
    // Values with their neighbours' bits above; the first 8 bytes of each block.
    QT_INLINE Z codes(const uint8_t* p, Z* v) const {
        const Z a = once(p), b = once(p + 64), c = once(p + last);
        const Z x = _mm512_permutex2var_epi8(a, low, b), y = _mm512_permutex2var_epi8(b, high, c);
        v[0] = keep(_mm512_unpacklo_epi64(x, y)), v[1] = right(v[0], 4), v[2] = keep(_mm512_unpackhi_epi64(x, y)), v[3] = right(v[2], 4);
        return keep(_mm512_mask_permutexvar_epi8(_mm512_permutex2var_epi8(a, heads, b), past(), rest, c));
    }
};
// Bit i of the four bytes at `at` of a block is the fifth of value i.
template <class B, int from, int at>
struct Fives32 : Nibbles32<B, from> {
    using Base = Nibbles32<B, from>;
    Z fifth[4] = {bit(0), bit(16), bit(8), bit(24)};
    static QT_INLINE Z bit(int first) { return bytes([&](int i) { return (8 * at + first + i % 8 - 4) & 63; }); }
    QT_INLINE Fives32() {}
    QT_INLINE Z codes(const uint8_t* p, Z* v) const {
        const Z h = Base::codes(p, v);
        QT_UNROLL for (int r = 0; r < 4; r++)
            v[r] = _mm512_and_si512(_mm512_ternarylogic_epi32(b8(15), v[r], _mm512_multishift_epi64_epi8(fifth[r], h), 0xca), b8(31));
        return h;
    }
};
struct GemvQ4_1 : Nibbles32<block::Q4_1, 4> {
    using Block = block::Q4_1;
    static constexpr Order order = half_blocks;
    static constexpr int offset = 0;
    static constexpr int n = 1;
    QT_INLINE GemvQ4_1() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z h = codes(p, v);
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_and_si512(v[r], b8(15));
        s[0] = half(scale, h), s[1] = half(least, h);
    }
};
struct GemvQ5_0 : Fives32<block::Q5_0, 6, 2> {
    using Block = block::Q5_0;
    static constexpr Order order = half_blocks;
    static constexpr int offset = 16;
    static constexpr int n = 1;
    QT_INLINE GemvQ5_0() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const { s[0] = half(scale, codes(p, v)); }
};
struct GemvQ5_1 : Fives32<block::Q5_1, 8, 4> {
    using Block = block::Q5_1;
    static constexpr Order order = half_blocks;
    static constexpr int offset = 0;
    static constexpr int n = 1;
    QT_INLINE GemvQ5_1() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z h = codes(p, v);
        s[0] = half(scale, h), s[1] = half(least, h);
    }
};
struct GemvQ8_0 {
    using Block = block::Q8_0;
    static constexpr Order order = turned_eights;
    static constexpr int offset = 128;
    static constexpr int n = 1;
    Z twice_each = dwords([](int i) { return i / 2; });
    QT_INLINE GemvQ8_0() {}
    static QT_INLINE Z blend(int mask, Z a, Z b) { return _mm512_mask_blend_epi64((__mmask8)mask, a, b); }
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        Z b[4];  // blocks k and k + 4, whose 64-bit lanes change places until each lane holds one block's
        QT_UNROLL for (int k = 0; k < 4; k++) {
            const Z first = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)(p + 34 * k + 2)));
            b[k] = _mm512_inserti64x4(first, _mm256_loadu_si256((const __m256i*)(p + 34 * k + 138)), 1);
            b[k] = _mm512_xor_si512(b[k], b8(0x80));
        }
        const Z x = blend(0xaa, b[0], b[1]), y = blend(0xaa, b[1], b[0]), z = blend(0xaa, b[2], b[3]), w = blend(0xaa, b[3], b[2]);
        v[0] = blend(0xcc, x, z), v[1] = _mm512_shuffle_epi32(blend(0xcc, y, w), _MM_PERM_BADC);
        v[2] = _mm512_shuffle_i64x2(blend(0xcc, z, x), blend(0xcc, z, x), 0xb1), v[3] = _mm512_permutex_epi64(blend(0xcc, w, y), 0x1b);
        __m128i d = _mm_loadu_si16(p);
        d = _mm_insert_epi16(d, load<int16_t>(p + 34), 1), d = _mm_insert_epi16(d, load<int16_t>(p + 68), 2);
        d = _mm_insert_epi16(d, load<int16_t>(p + 102), 3), d = _mm_insert_epi16(d, load<int16_t>(p + 136), 4);
        d = _mm_insert_epi16(d, load<int16_t>(p + 170), 5), d = _mm_insert_epi16(d, load<int16_t>(p + 204), 6);
        d = _mm_insert_epi16(d, load<int16_t>(p + 238), 7);
        s[0] = _mm512_permutexvar_ps(twice_each, _mm512_castps256_ps512(_mm256_cvtph_ps(d)));
    }
};
}  // namespace qt::QT_ISA
