// One row of 256-value blocks times 1 to 8 columns: each block is unpacked once for all of them.
//
// A Zen 4 core issues one 512-bit multiply (vpdpbusd, vpmulps, fma alike) a cycle, one shuffle or shift on a pipe that it shares with
// multiplies, and two of logic and addition; converts go elsewhere. So block headers are decoded four at a time in vector
// registers, and x is ordered (gemv_pack.h) so that a block's dots add up in 16 lanes with a scale each: six multiplies a column.
// Fields of a byte need no shift where their place can go into the scale.
#pragma once
#include "codebooks.h"
#include "gemv_pack.h"

namespace qt::QT_ISA {

// 16 bytes at `p` of 4 consecutive blocks, one a lane; blocks past the n-th repeat the last.
QT_INLINE Z lanes(const uint8_t* p, int stride, int n) {
    const uint8_t* at[4];
    QT_UNROLL for (int k = 0; k < 4; k++) at[k] = p + (k < n ? k : n - 1) * stride;
    Z z = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)at[0]));
    z = _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i*)at[1]), 1);
    z = _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i*)at[2]), 2);
    return _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i*)at[3]), 3);
}
// One f16 word of each lane, as f32 in the 4 lanes of its block; `index` from word_index.
QT_INLINE V word_f32(Z z, Z index) { return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(index, z))); }
QT_INLINE Z word_index(int w) { return words([&](int i) { return 8 * (i / 4 % 4) + w; }); }
QT_INLINE V times(V x, Z powers) { return _mm512_mul_ps(x, _mm512_castsi512_ps(powers)); }
template <class F> QT_INLINE Z floats(F f) {
    return dwords([&](int i) { return bits<uint32_t>(float(f(i))); });
}
// Bytes of a 16-byte lane that all four hold, widened to the 16 lanes of 32 bits: for each the one of its sub-block.
QT_INLINE Z lane_index(Order o, int per, int from = 0) { return bytes([&](int i) { return i % 4 ? 0x80 : from + sub_of(o, per, i / 4); }); }
QT_INLINE V small(Z x, int offset) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(x, _mm512_set1_epi32(offset))); }
QT_INLINE Z select(Z mask, Z a, Z b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }  // mask ? a : b

struct Head {  // of 4 blocks
    Z scales;
    V d, dmin;     // times what makes up for fields that were not shifted
    V minima[2];   // of groups 0-3 of the blocks, then 4-7
};

// The 8 + 8 six-bit numbers of Q4_K and Q5_K, for 4 blocks: bytes 0-7 of a lane scales, 8-15 minima.
struct Unpack6 {
    QT_INLINE Unpack6() {}
    Z pick = bytes([](int i) { int j = i % 16; return j < 4 ? 4 + j : j < 8 ? 8 + j : j; });
    Z low = bytes([](int i) { int j = i % 16; return j < 8 ? 8 * j : j < 12 ? 8 * (j - 8) : 8 * (j - 8) + 4; });
    Z high = bytes([](int i) { int j = i % 8; return j < 4 ? 0 : 8 * (j - 4) + 2; });
    Z low_mask = bytes([](int i) { return i % 8 < 4 ? 63 : 15; }), high_mask = bytes([](int i) { return i % 8 < 4 ? 0 : 0x30; });
    Z first = bytes([](int i) { return i % 4 ? 0x80 : 8 + i % 16 / 4; }), second = bytes([](int i) { return i % 4 ? 0x80 : 12 + i % 16 / 4; });
    Z word0 = word_index(0), word1 = word_index(1);
    QT_INLINE void operator()(const uint8_t* p, int stride, int n, Head& h) const {
        Z z = lanes(p, stride, n), x = _mm512_shuffle_epi8(z, pick);
        h.scales = mask_or(_mm512_multishift_epi64_epi8(high, x), high_mask, _mm512_and_si512(_mm512_multishift_epi64_epi8(low, x), low_mask));
        h.d = word_f32(z, word0);
        const V dmin = word_f32(z, word1);
        h.minima[0] = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_shuffle_epi8(h.scales, first)));
        h.minima[1] = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_shuffle_epi8(h.scales, second)));
    }
};

// A type says: `head` for 4 blocks; per block `values` (codes in the order of x), `scales` of the 16 lanes without d, and
// with sums16 `minima` without dmin. `stored`: scales come from the head, through memory.
struct GemvQ4_K {
    QT_INLINE GemvQ4_K() {}
    using Block = block::Q4_K;
    static constexpr Order order = nibble_pairs;
    static constexpr Rest rest = sums32;
    static constexpr int offset = 0;
    static constexpr bool stored = true;
    Unpack6 unpack;
    Z index = lane_index(order, 32), power = floats([](int i) { return i % 2 ? 1 / 16. : 1; });
    Z field = dwords([](int i) { return i % 2 ? 0xf0f0f0f0 : 0x0f0f0f0f; }), lane_swap = dwords([](int i) { return i ^ 5; });
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const {
        unpack(p, sizeof(Block), n, h);
        h.d = times(h.d, power);
    }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z a = once(p + 16), b = once(p + 80), x = _mm512_mask_blend_epi64(0xcc, a, b), y = _mm512_mask_blend_epi64(0xcc, b, a);
        w[0] = _mm512_and_si512(x, field), w[1] = _mm512_and_si512(_mm512_shuffle_epi32(x, _MM_PERM_CDAB), field);
        w[2] = _mm512_and_si512(_mm512_shuffle_i64x2(y, y, 0xb1), field), w[3] = _mm512_and_si512(_mm512_permutexvar_epi32(lane_swap, y), field);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(four(head), index)); }
};
struct GemvQ5_K {
    QT_INLINE GemvQ5_K() {}
    using Block = block::Q5_K;
    static constexpr Order order = nibble_pairs;
    static constexpr Rest rest = sums32;
    static constexpr int offset = 0;
    static constexpr bool stored = true;
    Unpack6 unpack;
    Z index = lane_index(order, 32), lane_swap = dwords([](int i) { return i ^ 5; }), even = dwords([](int i) { return i % 2 ? 0 : ~0u; });
    // Bit g of qh belongs to group g: brought to bit 4. Lanes of x hold the groups 0 1, 4 5, 2 3, 6 7, of y 4 5, 0 1, 6 7, 2 3.
    Z x0 = fifth(0, 0), x1 = fifth(0, 1), y0 = fifth(1, 0), y1 = fifth(1, 1);
    static QT_INLINE Z fifth(int other, int odd) {
        return bytes([&](int i) {
            const int L = i / 16 ^ other;
            return (8 * (i % 8) + 2 * (L % 2 * 2 + L / 2) + (i / 4 % 2 ^ odd) - 4) & 63;
        });
    }
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const { unpack(p, sizeof(Block), n, h); }
    QT_INLINE Z five(Z low, Z high, Z m) const { return _mm512_and_si512(select(b8(15), select(even, low, high), m), b8(31)); }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z a = once(p + 48), b = once(p + 112), h = twice(p + 16);
        const Z x = _mm512_mask_blend_epi64(0xcc, a, b), y = _mm512_mask_blend_epi64(0xcc, b, a), xh = right(x, 4), yh = right(y, 4);
        w[0] = five(x, xh, _mm512_multishift_epi64_epi8(x0, h));
        w[1] = _mm512_shuffle_epi32(five(xh, x, _mm512_multishift_epi64_epi8(x1, h)), _MM_PERM_CDAB);
        const Z v = five(y, yh, _mm512_multishift_epi64_epi8(y0, h)), u = five(yh, y, _mm512_multishift_epi64_epi8(y1, h));
        w[2] = _mm512_shuffle_i64x2(v, v, 0xb1), w[3] = _mm512_permutexvar_epi32(lane_swap, u);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(four(head), index)); }
};
struct GemvQ6_K {
    QT_INLINE GemvQ6_K() {}
    using Block = block::Q6_K;
    static constexpr Order order = six_bits;
    static constexpr Rest rest = start;
    static constexpr int offset = 32;
    static constexpr bool stored = false;
    Z index = lane_index(order, 16), word7 = word_index(7), even = dwords([](int i) { return i % 2 ? 0 : ~0u; });
    // Bits 2 f of qh belong to field f: the low nibbles of the first or second 32 bytes, then the high ones. Brought to bit 4.
    Z straight = fifth(0), crossed = fifth(1);
    static QT_INLINE Z fifth(int odd) {
        return bytes([&](int i) { return (8 * (i % 8) + 2 * (i / 32 + 2 * (i / 4 % 2 ^ odd)) - 4) & 63; });
    }
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const { h.d = word_f32(lanes(p + 194, sizeof(Block), n), word7); }
    QT_INLINE Z six(Z low, Z high, Z m) const { return _mm512_and_si512(select(b8(15), select(even, low, high), m), b8(63)); }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        V s[2], c[2];
        QT_UNROLL for (int n = 0; n < 2; n++) {
            const Z l = once(p + 64 * n), h = twice(p + 128 + 32 * n), r = right(l, 4);
            s[n] = _mm512_castsi512_ps(six(l, r, _mm512_multishift_epi64_epi8(straight, h)));
            c[n] = _mm512_castsi512_ps(six(r, l, _mm512_multishift_epi64_epi8(crossed, h)));
        }
        w[0] = _mm512_castps_si512(_mm512_shuffle_ps(s[0], s[1], 0x44)), w[1] = _mm512_castps_si512(_mm512_shuffle_ps(s[0], s[1], 0xee));
        w[2] = _mm512_castps_si512(_mm512_shuffle_ps(c[0], c[1], 0x11)), w[3] = _mm512_castps_si512(_mm512_shuffle_ps(c[0], c[1], 0xbb));
    }
    QT_INLINE V scales(const uint8_t* p, const uint8_t*) const {
        return small(_mm512_shuffle_epi8(_mm512_xor_si512(four(p + 192), b8(0x80)), index), 128);
    }
};
struct GemvQ3_K {
    QT_INLINE GemvQ3_K() {}
    using Block = block::Q3_K;
    static constexpr Order order = quarter_bytes;
    static constexpr Rest rest = start;
    static constexpr int offset = 4;
    static constexpr bool stored = true;
    Z index = lane_index(order, 16), word7 = word_index(7);
    // Two bits at 2 e of the dword e ^ r, and bit 4 (L / 2) + e of hmask brought to bit 2.
    Z two[2] = {pair(0), pair(1)}, third[2] = {bit(0), bit(1)};
    static QT_INLINE Z pair(int r) { return bytes([&](int i) { return 8 * (i % 8 ^ 4 * r) + 2 * (i / 4 % 4); }); }
    static QT_INLINE Z bit(int r) { return bytes([&](int i) { return (8 * (i % 8 ^ 4 * r) + 4 * (i / 32) + i / 4 % 4 - 2) & 63; }); }
    Z low = bytes([](int i) { return 2 + i % 8; }), high = bytes([](int i) { return 10 + i % 4; });
    Z low_shift = bytes([](int i) { return i % 16 < 8 ? 8 * (i % 8) : 8 * (i % 8) + 4; });
    Z high_shift = bytes([](int i) { return (8 * (i % 8) + 2 * (i % 16 / 4) - 4) & 63; });
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const {
        Z z = lanes(p + 94, sizeof(Block), n);  // two bytes of qs, 12 of scales, d
        Z l = _mm512_and_si512(_mm512_multishift_epi64_epi8(low_shift, _mm512_shuffle_epi8(z, low)), b8(15));
        h.scales = mask_or(_mm512_multishift_epi64_epi8(high_shift, _mm512_shuffle_epi8(z, high)), b8(0x30), l);
        h.d = word_f32(z, word7);
    }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        Z q = once(p + 32), h = twice(p);
        QT_UNROLL for (int r = 0; r < 4; r++) {
            if (r == 2) q = _mm512_shuffle_epi32(q, _MM_PERM_BADC), h = _mm512_shuffle_epi32(h, _MM_PERM_BADC);
            w[r] = _mm512_and_si512(select(b8(3), _mm512_multishift_epi64_epi8(two[r % 2], q), _mm512_multishift_epi64_epi8(third[r % 2], h)), b8(7));
        }
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return small(_mm512_shuffle_epi8(four(head), index), 32); }
};
struct GemvQ2_K {
    QT_INLINE GemvQ2_K() {}
    using Block = block::Q2_K;
    static constexpr Order order = quarter_bytes;
    static constexpr Rest rest = sums16;
    static constexpr int offset = 0;
    static constexpr bool stored = false;
    Z index = lane_index(order, 16), word6 = word_index(6), word7 = word_index(7);
    Z field = dwords([](int i) { return 0x03030303u << 2 * (i % 4); }), power = floats([](int i) { return 1. / (1 << 2 * (i % 4)); });
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const {
        Z z = lanes(p + 68, sizeof(Block), n);
        h.d = times(word_f32(z, word6), power), h.dmin = _mm512_mul_ps(word_f32(z, word7), _mm512_set1_ps(1 / 16.f));
    }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z q = once(p + 16);
        w[0] = _mm512_and_si512(q, field), w[1] = _mm512_and_si512(_mm512_shuffle_epi32(q, _MM_PERM_CDAB), field);
        w[2] = _mm512_and_si512(_mm512_shuffle_epi32(q, _MM_PERM_BADC), field), w[3] = _mm512_and_si512(_mm512_shuffle_epi32(q, _MM_PERM_ABCD), field);
    }
    QT_INLINE Z both(const uint8_t* p) const { return _mm512_shuffle_epi8(four(p), index); }
    QT_INLINE V scales(const uint8_t* p, const uint8_t*) const { return _mm512_cvtepi32_ps(_mm512_and_si512(both(p), _mm512_set1_epi32(15))); }
    QT_INLINE V minima(const uint8_t* p) const { return _mm512_cvtepi32_ps(_mm512_and_si512(both(p), _mm512_set1_epi32(0xf0))); }
};
struct GemvTQ2_0 {
    QT_INLINE GemvTQ2_0() {}
    using Block = block::TQ2_0;
    static constexpr Order order = quarter_bytes;
    static constexpr Rest rest = start;
    static constexpr int offset = 1;
    static constexpr bool stored = false;
    Z word7 = word_index(7), two[2] = {GemvQ3_K::pair(0), GemvQ3_K::pair(1)};
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const { h.d = word_f32(lanes(p + 50, sizeof(Block), n), word7); }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        Z q = once(p);
        QT_UNROLL for (int r = 0; r < 4; r++) {
            if (r == 2) q = _mm512_shuffle_epi32(q, _MM_PERM_BADC);
            w[r] = _mm512_and_si512(_mm512_multishift_epi64_epi8(two[r % 2], q), b8(3));
        }
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t*) const { return _mm512_set1_ps(1); }
};
struct GemvIQ4_XS {
    QT_INLINE GemvIQ4_XS() {}
    using Block = block::IQ4_XS;
    static constexpr Order order = half_blocks;
    static constexpr Rest rest = start;
    static constexpr int offset = 128;
    static constexpr bool stored = true;
    Z index = lane_index(order, 32), word0 = word_index(0), table = bytes([](int i) { return codebook::iq4[0][i % 16] + 128; });
    Z low = bytes([](int i) { return (32 + 4 * (i % 8)) & 63; }), high = bytes([](int i) { return (16 + 2 * (i % 8) - 4) & 63; });
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const {
        Z z = lanes(p, sizeof(Block), n);
        h.scales = mask_or(_mm512_multishift_epi64_epi8(high, z), b8(0x30), _mm512_and_si512(_mm512_multishift_epi64_epi8(low, z), b8(15)));
        h.d = word_f32(z, word0);
    }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z a = once(p + 8), b = once(p + 72), c = _mm512_unpacklo_epi64(a, b), d = _mm512_unpackhi_epi64(a, b);
        // vpermb reads 6 bits of the index and the table repeats every 16 entries: no masking.
        w[0] = _mm512_permutexvar_epi8(c, table), w[1] = _mm512_permutexvar_epi8(right(c, 4), table);
        w[2] = _mm512_permutexvar_epi8(d, table), w[3] = _mm512_permutexvar_epi8(right(d, 4), table);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return small(_mm512_shuffle_epi8(four(head), index), 32); }
};

template <class Q>
struct RowsK : Q {
    QT_INLINE RowsK() {}
    using Record = Packed1024;
    static constexpr int record = 4, block_bytes = sizeof(typename Q::Block), block_size = 256;

    // nb blocks against C of `columns` columns
    template <int C>
    QT_INLINE void dots(const uint8_t* w, const Record* a, int columns, int nb, V* sum, const uint8_t*& ahead) const {
        for (int b = 0; b < nb; b += 4, a += columns) {
            const int n = nb - b < 4 ? nb - b : 4;
            Head h;
            alignas(64) float d[16], dmin[16];
            alignas(64) uint8_t raw[64];
            Q::head(w, n, h);
            prefetch(ahead, n * block_bytes);
            _mm512_store_ps(d, h.d);
            spill(d);
            if constexpr (Q::stored) {
                _mm512_store_si512(raw, h.scales);
                spill(raw);
            }
            if constexpr (Q::rest == sums16) {
                _mm512_store_ps(dmin, h.dmin);
                spill(dmin);
            }
            if constexpr (Q::rest == sums32)  // lanes of blocks past the n-th meet sums of zero
                QT_UNROLL for (int c = 0; c < C; c++)
                    sum[c] = _mm512_fnmadd_ps(h.minima[1], _mm512_load_ps(a[c].sums[1]), _mm512_fnmadd_ps(h.minima[0], _mm512_load_ps(a[c].sums[0]), sum[c]));
            QT_UNROLL for (int k = 0; k < 4; k++, w += block_bytes) {
                if (k >= n) break;
                Z v[4];
                Q::values(w, v);
                const V s = _mm512_mul_ps(Q::scales(w, raw + 16 * k), _mm512_broadcast_f32x4(_mm_load_ps(d + 4 * k)));
                V m;
                if constexpr (Q::rest == sums16) m = _mm512_mul_ps(Q::minima(w), _mm512_broadcast_f32x4(_mm_load_ps(dmin + 4 * k)));
                QT_UNROLL for (int c = 0; c < C; c++) {
                    const int8_t* x = a[c].q[k];
                    Z total = Q::rest == start ? load512(a[c].start[k]) : _mm512_setzero_si512();
                    QT_UNROLL for (int r = 0; r < 4; r++) total = _mm512_dpbusd_epi32(total, v[r], load512(x + 64 * r));
                    sum[c] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_load_ps(a[c].unit[k])), s, sum[c]);
                    if constexpr (Q::rest == sums16) sum[c] = _mm512_fnmadd_ps(m, _mm512_load_ps(a[c].sums[k]), sum[c]);
                }
            }
        }
    }
};
}  // namespace qt::QT_ISA
