// Blocks that are small, or hold very few bits of each value, as gemv_books.h multiplies them: 256 values a step.
#pragma once
#include "gemv_books.h"

namespace qt::QT_ISA {

// 8 blocks of at most 18 bytes with 16 of nibbles at `from`: the first 8 of these of each block, then the others. Two
// windows of 64 bytes hold what is picked of four blocks each, and none ends past the last block.
template <class B, int from>
struct Eight {
    static constexpr int stride = sizeof(B), past = 4 * stride + 8 + 64 - 8 * stride, shift = past > 0 ? past : 0;
    static_assert(3 * stride + from + 8 + shift <= 64 && 4 * stride <= 72);
    static constexpr int at(int block, int i) { return (block < 4 ? 0 : 64 - 4 * stride) + stride * block + i; }
    static QT_INLINE Z eights(int shift) {
        return bytes([&](int i) { return at(i / 8, from + i % 8) + (i < 32 ? 0 : shift); });
    }
    Z first = eights(0), second = shift ? eights(shift) : first;
    QT_INLINE Eight() {}
    QT_INLINE Z pick(const uint8_t* p, Z which, int before = 0) const { return _mm512_permutex2var_epi8(once(p), which, load512(p + 4 * stride - before)); }
    QT_INLINE void nibbles(const uint8_t* p, Z* v) const {
        v[0] = keep(pick(p, first)), v[1] = right(v[0], 4);
        v[2] = keep(pick(p + 8, second, shift)), v[3] = right(v[2], 4);
    }
};
struct GemvQ4_0 : Eight<block::Q4_0, 2> {
    using Block = block::Q4_0;
    static constexpr Order order = halves_of_eights;
    static constexpr int offset = 8;
    static constexpr int n = 1;
    Z word = bytes([](int i) { return at(i / 4 % 8, i % 2); });
    QT_INLINE GemvQ4_0() {}
    QT_INLINE V scale(const uint8_t* p) const {  // of 16 lanes: each block's twice
        return _mm512_cvtph_ps(_mm512_castsi512_si256(pick(p, word)));
    }
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        nibbles(p, v);
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_and_si512(v[r], b8(15));
        s[0] = scale(p);
    }
};
struct GemvIQ4_NL : GemvQ4_0 {
    using Block = block::IQ4_NL;
    static constexpr int offset = 128;
    Z table = bytes([](int i) { return codebook::iq4[0][i % 16] + 128; });
    QT_INLINE GemvIQ4_NL() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        nibbles(p, v);  // vpermb reads 6 bits of the index and the table repeats every 16 entries: no masking
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_permutexvar_epi8(v[r], table);
        s[0] = scale(p);
    }
};
struct GemvMXFP4 : Eight<block::MXFP4, 1> {
    using Block = block::MXFP4;
    static constexpr Order order = halves_of_eights;
    static constexpr int offset = 12;
    static constexpr int n = 1;
    Z table = bytes([](int i) { return codebook::fp4[0][i % 16] + 12; }), exponent = bytes([](int i) { return at(i / 8, 0); });
    QT_INLINE GemvMXFP4() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        nibbles(p, v);
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_permutexvar_epi8(v[r], table);
        // 2^(e - 127) halved; the two lowest are subnormal
        const Z e = _mm512_and_si512(pick(p, exponent), _mm512_set1_epi32(255));
        const Z low = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e), high = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
        s[0] = _mm512_castsi512_ps(_mm512_mask_mov_epi32(high, _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), low));
    }
};
struct GemvNVFP4 {
    using Block = block::NVFP4;
    static constexpr Order order = sixteens;
    static constexpr int offset = 12;
    static constexpr int n = 1;
    Z table = bytes([](int i) { return codebook::fp4[0][i % 16] + 12; });
    QT_INLINE GemvNVFP4() {}
    static QT_INLINE Z two(const uint8_t* p) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)(p + 4))), _mm256_loadu_si256((const __m256i*)(p + 40)), 1);
    }
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z a = two(p), b = two(p + 72);  // a lane is half a group: even ones take the first halves of a's, odd ones b's second
        const Z x = keep(_mm512_mask_blend_epi32(0xaaaa, a, b)), y = keep(_mm512_shuffle_epi32(_mm512_mask_blend_epi32(0xaaaa, b, a), _MM_PERM_CDAB));
        v[0] = _mm512_permutexvar_epi8(x, table), v[1] = _mm512_permutexvar_epi8(right(x, 4), table);
        v[2] = _mm512_permutexvar_epi8(y, table), v[3] = _mm512_permutexvar_epi8(right(y, 4), table);
        const __m128i d = _mm_insert_epi32(_mm_loadu_si32(p), load<int>(p + 36), 1), e = _mm_insert_epi32(_mm_loadu_si32(p + 72), load<int>(p + 108), 1);
        // half_ue4m3 of decode_microscaling.h by way of halves, whose exponent is one bit wider: 2^-7 of it, and no subnormal costs time
        const __m128i code = _mm_unpacklo_epi8(d, e), nan = _mm_set1_epi8(0x7f);
        const __m128i some = _mm_maskz_mov_epi8(_mm_cmpneq_epi8_mask(code, nan), _mm_and_si128(code, nan));
        s[0] = times(_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(some), 7)), 128);
    }
};
struct GemvQ1_0 {
    using Block = block::Q1_0;
    static constexpr Order order = eights;
    static constexpr int offset = 1;
    static constexpr int n = 1;
    Z bit[4] = {at(0), at(1), at(2), at(3)};  // to bit 1
    static QT_INLINE Z at(int r) { return spread_index(8 * r - 1, 1); }
    QT_INLINE GemvQ1_0() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const __m256i a = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(p + 2)));
        const Z q = _mm512_cvtepu32_epi64(_mm256_inserti128_si256(a, _mm_loadu_si128((const __m128i*)(p + 20)), 1));
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_and_si512(spread(bit[r], q), b8(2));
        s[0] = _mm512_mask_mov_ps(half_in_all(p), 0xff00, half_in_all(p + 18));
    }
};
struct GemvQ2_0 {
    using Block = block::Q2_0;
    static constexpr Order order = eights;
    static constexpr int offset = 1;
    static constexpr int n = 1;
    Z pair[4] = {spread_index(0, 2), spread_index(16, 2), spread_index(32, 2), spread_index(48, 2)};
    QT_INLINE GemvQ2_0() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        Z q = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)(p + 2)));
        q = _mm512_inserti32x4(q, _mm_loadu_si128((const __m128i*)(p + 20)), 1);
        q = _mm512_inserti32x4(q, _mm_loadu_si128((const __m128i*)(p + 38)), 2);
        q = _mm512_inserti32x4(q, _mm_loadu_si128((const __m128i*)(p + 56)), 3);
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_and_si512(spread(pair[r], q), b8(3));
        s[0] = half_in_all(p);
        QT_UNROLL for (int k = 1; k < 4; k++) s[0] = _mm512_mask_mov_ps(s[0], 15 << 4 * k, half_in_all(p + 18 * k));
    }
};
// Digits of each byte as two planes: 0 to 3 in 2 bits each; 4.
consteval Planes<256> planes_of_digits() {
    Planes<256> p;
    for (int i = 0; i < 256; i++)
        for (int k = 0, rest = i; k < 5; k++, rest = rest * 3 % 256) p.of[k / 4][i] |= uint8_t(((rest > 85) + (rest > 170)) << 2 * (k % 4));
    return p;
}
constexpr Planes planes_tq1_0 = planes_of_digits();
struct GemvTQ1_0 {
    using Block = block::TQ1_0;
    static constexpr Order order = lane_by_lane;
    static constexpr int offset = 1;
    static constexpr int n = 1;
    // 32 bytes have 5 digits, 16 have 5, 4 have 4: the one that a lane of register r wants, and where four bytes of it lie.
    static constexpr int digit(int r, int lane) { return lane < 10 ? lane / 2 : lane < 14 ? lane - 10 : lane < 15 ? 4 : r; }
    static constexpr int four(int r, int lane) { return lane < 10 ? lane % 2 * 4 + r : lane < 15 ? 8 + r : 12; }
    Z pick[4] = {picks(0), picks(1), picks(2), picks(3)}, shift[4] = {shifts(0), shifts(1), shifts(2), shifts(3)};
    static QT_INLINE Z picks(int r) { return dwords([&](int i) { return four(r, i) + digit(r, i) / 4 * 16; }); }
    static QT_INLINE Z shifts(int r) { return dwords([&](int i) { return digit(r, i) % 4 * 2; }); }
    QT_INLINE GemvTQ1_0() {}
    static QT_INLINE void digits(const uint8_t* p, Z& first, Z& last) {
        const Z q = _mm512_maskz_loadu_epi8((1ull << 52) - 1, p);
        const __mmask64 high = _mm512_movepi8_mask(q);
        first = look_up(planes_tq1_0.of[0], q, &high), last = look_up(planes_tq1_0.of[1], q, &high);
    }
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        Z first, last;
        digits(p, first, last);
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_and_si512(_mm512_srlv_epi32(_mm512_permutex2var_epi32(first, pick[r], last), shift[r]), b8(3));
        s[0] = half_in_all(p + 52);
    }
};
}  // namespace qt::QT_ISA
