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
// Bytes of a 16-byte lane that all four hold, widened to the 16 lanes of 32 bits: for each the one of its sub-block.
QT_INLINE Z lane_index(Order o, int per, int byte = 0) { return bytes([&](int i) { return i % 4 != byte ? 0x80 : sub_of(o, per, i / 4); }); }
// A signed byte is put where it has its sign, 2^24 times what it was.
QT_INLINE Z signed_index(Order o, int per) { return lane_index(o, per, 3); }
constexpr float per_signed = 1.f / (1 << 24);
QT_INLINE __m256 times(__m256 x, float y) { return _mm256_mul_ps(x, _mm256_set1_ps(y)); }
QT_INLINE V scales_of(const uint8_t* p, Z index) { return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(four(p), index)); }
QT_INLINE Z select(Z mask, Z a, Z b) { return _mm512_ternarylogic_epi32(a, b, mask, 0xe4); }  // mask ? a : b, in place of a

// Codes of one byte's fields stay where they are: lane e of four takes field e, of the dword e ^ r in register r; those of
// odd distance come from y.
QT_INLINE Z place_mask(int places, int n) { return dwords([&](int i) { return ((1u << n) - 1) * 0x01010101u << place(places, i); }); }
QT_INLINE void in_place(Z x, Z y, Z field, Z* w) {
    w[0] = _mm512_and_si512(x, field), w[1] = _mm512_and_si512(_mm512_shuffle_epi32(y, _MM_PERM_CDAB), field);
    w[2] = _mm512_and_si512(_mm512_shuffle_epi32(x, _MM_PERM_BADC), field), w[3] = _mm512_and_si512(_mm512_shuffle_epi32(y, _MM_PERM_ABCD), field);
}

// The half at `p` of 4 consecutive blocks, as `lanes`; two of them one after the other.
QT_INLINE __m256 halves(const uint8_t* p, int stride, int n) {
    const int last = n - 1;
    __m128i x = _mm_loadu_si16(p);
    x = _mm_insert_epi16(x, load<int16_t>(p + (last < 1 ? last : 1) * stride), 1);
    x = _mm_insert_epi16(x, load<int16_t>(p + (last < 2 ? last : 2) * stride), 2);
    return _mm256_cvtph_ps(_mm_insert_epi16(x, load<int16_t>(p + last * stride), 3));
}
QT_INLINE __m256 two_halves(const uint8_t* p, int stride, int n) {
    const int last = n - 1;
    __m128i x = _mm_loadu_si32(p);
    x = _mm_insert_epi32(x, load<int>(p + (last < 1 ? last : 1) * stride), 1);
    x = _mm_insert_epi32(x, load<int>(p + (last < 2 ? last : 2) * stride), 2);
    return _mm256_cvtph_ps(_mm_insert_epi32(x, load<int>(p + last * stride), 3));
}

// Low nibbles of even lanes and high ones of odd lanes at bit 0, others' bits above; or the other way round.
struct Nibbles {
    Z high[2] = {dwords([](int i) { return i % 2 * 4; }), dwords([](int i) { return 4 - i % 2 * 4; })};
    QT_INLINE Nibbles() {}
    QT_INLINE Z straight(Z x) const { return _mm512_srlv_epi32(x, high[0]); }
    QT_INLINE Z crossed(Z x) const { return _mm512_srlv_epi32(x, high[1]); }
};

struct Head {  // of 4 blocks
    Z scales;
    __m256 d;      // with minima: d and dmin in turns
    V minima[4];   // of groups in the order of `Packed1024::sums`, without dmin
};

// The 8 + 8 six-bit numbers of Q4_K and Q5_K, for 4 blocks: bytes 0-7 of a lane scales, 8-15 minima.
struct Unpack6 {
    QT_INLINE Unpack6() {}
    Z pick = bytes([](int i) { int j = i % 16; return j < 4 ? 4 + j : j < 8 ? 8 + j : j; });
    Z low = bytes([](int i) { int j = i % 16; return j < 8 ? 8 * j : j < 12 ? 8 * (j - 8) : 8 * (j - 8) + 4; });
    Z high = bytes([](int i) { int j = i % 8; return j < 4 ? 0 : 8 * (j - 4) + 2; });
    Z low_mask = bytes([](int i) { return i % 8 < 4 ? 63 : 15; }), high_mask = bytes([](int i) { return i % 8 < 4 ? 0 : 0x30; });
    Z first = bytes([](int i) { return i % 4 ? 0x80 : 8 + i % 16 / 4; }), second = bytes([](int i) { return i % 4 ? 0x80 : 12 + i % 16 / 4; });
    QT_INLINE void operator()(const uint8_t* p, int stride, int n, Head& h) const {
        Z z = lanes(p, stride, n), x = _mm512_shuffle_epi8(z, pick);
        h.scales = mask_or(_mm512_multishift_epi64_epi8(high, x), high_mask, _mm512_and_si512(_mm512_multishift_epi64_epi8(low, x), low_mask));
        h.d = two_halves(p, stride, n);
        h.minima[0] = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(h.scales, first));
        h.minima[1] = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(h.scales, second));
    }
};

// A type says: `head` for 4 blocks; per block `values` (codes in the order of x) and `scales` of the 16 lanes without d.
// `stored`: scales come from the head, through memory. `places`: how many bits above the lowest each lane of four has its codes.
struct GemvQ4_K {
    QT_INLINE GemvQ4_K() {}
    using Block = block::Q4_K;
    static constexpr Order order = nibble_pairs;
    static constexpr Rest rest = sums32;
    static constexpr int offset = 0, places = 0x4040;
    static constexpr bool stored = true;
    Unpack6 unpack;
    Z index = lane_index(order, 32);
    Z field = dwords([](int i) { return i % 2 ? 0xf0f0f0f0 : 0x0f0f0f0f; }), lane_swap = dwords([](int i) { return i ^ 5; });
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const { unpack(p, sizeof(Block), n, h); }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z a = once(p + 16), b = once(p + 80), x = _mm512_mask_blend_epi64(0xcc, a, b), y = _mm512_mask_blend_epi64(0xcc, b, a);
        w[0] = _mm512_and_si512(x, field), w[1] = _mm512_and_si512(_mm512_shuffle_epi32(x, _MM_PERM_CDAB), field);
        w[2] = _mm512_and_si512(_mm512_shuffle_i64x2(y, y, 0xb1), field), w[3] = _mm512_and_si512(_mm512_permutexvar_epi32(lane_swap, y), field);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return scales_of(head, index); }
};
struct GemvQ5_K {
    QT_INLINE GemvQ5_K() {}
    using Block = block::Q5_K;
    static constexpr Order order = nibble_pairs;
    static constexpr Rest rest = sums32;
    static constexpr int offset = 0, places = 0;
    static constexpr bool stored = true;
    Unpack6 unpack;
    Z index = lane_index(order, 32), lane_swap = dwords([](int i) { return i ^ 5; });
    Nibbles nibbles;
    // Bit g of qh belongs to group g: brought to bit 4. Lanes of x hold the groups 0 1, 4 5, 2 3, 6 7, of y 4 5, 0 1, 6 7, 2 3.
    Z x0 = fifth(0, 0), x1 = fifth(0, 1), y0 = fifth(1, 0), y1 = fifth(1, 1);
    static QT_INLINE Z fifth(int other, int odd) {
        return bytes([&](int i) {
            const int L = i / 16 ^ other;
            return (8 * (i % 8) + 2 * (L % 2 * 2 + L / 2) + (i / 4 % 2 ^ odd) - 4) & 63;
        });
    }
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const { unpack(p, sizeof(Block), n, h); }
    static QT_INLINE Z five(Z q, Z m) { return _mm512_and_si512(select(b8(15), q, m), b8(31)); }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z a = once(p + 48), b = once(p + 112), h = twice(p + 16);
        const Z x = _mm512_mask_blend_epi64(0xcc, a, b), y = _mm512_mask_blend_epi64(0xcc, b, a);
        w[0] = five(nibbles.straight(x), _mm512_multishift_epi64_epi8(x0, h));
        w[1] = _mm512_shuffle_epi32(five(nibbles.crossed(x), _mm512_multishift_epi64_epi8(x1, h)), _MM_PERM_CDAB);
        const Z v = five(nibbles.straight(y), _mm512_multishift_epi64_epi8(y0, h)), u = five(nibbles.crossed(y), _mm512_multishift_epi64_epi8(y1, h));
        w[2] = _mm512_shuffle_i64x2(v, v, 0xb1), w[3] = _mm512_permutexvar_epi32(lane_swap, u);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return scales_of(head, index); }
};
struct GemvQ6_K {
    QT_INLINE GemvQ6_K() {}
    using Block = block::Q6_K;
    static constexpr Order order = six_bits;
    static constexpr Rest rest = start;
    static constexpr int offset = 32, places = 0;
    static constexpr bool stored = false;
    Z index = signed_index(order, 16);
    Nibbles nibbles;
    // Bits 2 f of qh belong to field f: the low nibbles of the first or second 32 bytes, then the high ones. Brought to bit 4.
    Z straight = fifth(0), crossed = fifth(1);
    static QT_INLINE Z fifth(int odd) {
        return bytes([&](int i) { return (8 * (i % 8) + 2 * (i / 32 + 2 * (i / 4 % 2 ^ odd)) - 4) & 63; });
    }
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const { h.d = times(halves(p + 208, sizeof(Block), n), per_signed); }
    static QT_INLINE Z six(Z q, Z m) { return _mm512_and_si512(select(b8(15), q, m), b8(63)); }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        V s[2], c[2];
        QT_UNROLL for (int n = 0; n < 2; n++) {
            const Z l = once(p + 64 * n), h = twice(p + 128 + 32 * n);
            s[n] = _mm512_castsi512_ps(six(nibbles.straight(l), _mm512_multishift_epi64_epi8(straight, h)));
            c[n] = _mm512_castsi512_ps(six(nibbles.crossed(l), _mm512_multishift_epi64_epi8(crossed, h)));
        }
        w[0] = _mm512_castps_si512(_mm512_shuffle_ps(s[0], s[1], 0x44)), w[1] = _mm512_castps_si512(_mm512_shuffle_ps(s[0], s[1], 0xee));
        w[2] = _mm512_castps_si512(_mm512_shuffle_ps(c[0], c[1], 0x11)), w[3] = _mm512_castps_si512(_mm512_shuffle_ps(c[0], c[1], 0xbb));
    }
    QT_INLINE V scales(const uint8_t* p, const uint8_t*) const { return scales_of(p + 192, index); }
};
struct GemvQ3_K {
    QT_INLINE GemvQ3_K() {}
    using Block = block::Q3_K;
    static constexpr Order order = quarter_bytes;
    static constexpr Rest rest = start;
    static constexpr int offset = 4, places = 0x5410;
    static constexpr bool stored = true;
    Z index = signed_index(order, 16), field = place_mask(places, 3);
    Z third[2] = {dwords([](int i) { return i % 2 ? 0x88888888 : 0x44444444; }), dwords([](int i) { return i % 2 ? 0x44444444 : 0x88888888; })};
    Z shift[2] = {dwords([](int i) { return i % 2; }), dwords([](int i) { return 1 - i % 2; })};
    // Bits 4 (L / 2) and on of hmask, to go above those of qs: the first two to bits 2 and 3, the others to 6 and 7.
    Z lower = bit(2), upper = bit(4);
    static QT_INLINE Z bit(int up) { return bytes([&](int i) { return (8 * (i % 8) + 4 * (i / 32) - up) & 63; }); }
    Z low = bytes([](int i) { return 2 + i % 8; }), high = bytes([](int i) { return 10 + i % 4; });
    Z low_shift = bytes([](int i) { return i % 16 < 8 ? 8 * (i % 8) : 8 * (i % 8) + 4; });
    Z high_shift = bytes([](int i) { return (8 * (i % 8) + 2 * (i % 16 / 4) - 4) & 63; });
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const {
        Z z = lanes(p + 94, sizeof(Block), n);  // two bytes of qs, 12 of scales, d
        Z l = _mm512_and_si512(_mm512_multishift_epi64_epi8(low_shift, _mm512_shuffle_epi8(z, low)), b8(15));
        h.scales = _mm512_sub_epi8(mask_or(_mm512_multishift_epi64_epi8(high_shift, _mm512_shuffle_epi8(z, high)), b8(0x30), l), b8(32));
        h.d = times(halves(p + 108, sizeof(Block), n), per_signed);
    }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z q = once(p + 32), h = twice(p);
        const Z above = select(b8(0x0c), _mm512_multishift_epi64_epi8(lower, h), _mm512_multishift_epi64_epi8(upper, h));
        // fields 0 and 2 from bits 0 and 4 on, 1 and 3 a bit above: those of even lanes, and those of odd ones
        in_place(select(third[0], above, _mm512_srlv_epi32(q, shift[0])), select(third[1], above, _mm512_srlv_epi32(q, shift[1])), field, w);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return scales_of(head, index); }
};
struct GemvQ2_K {
    QT_INLINE GemvQ2_K() {}
    using Block = block::Q2_K;
    static constexpr Order order = quarter_bytes;
    static constexpr Rest rest = sums16;
    static constexpr int offset = 0, places = 0x6420;
    static constexpr bool stored = true;
    Z index = lane_index(order, 16), field = place_mask(places, 2);
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const {
        const Z both = keep(lanes(p, sizeof(Block), n));
        h.d = two_halves(p + 80, sizeof(Block), n);
        h.scales = _mm512_and_si512(both, b8(15));
        QT_UNROLL for (int v = 0; v < 3; v++) h.minima[v] = _mm512_cvtepi32_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xf0 << 8 * v)));
        h.minima[3] = _mm512_cvtepi32_ps(_mm512_srli_epi32(both, 28));
    }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z q = once(p + 16);
        in_place(q, q, field, w);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return scales_of(head, index); }
};
struct GemvTQ2_0 {
    QT_INLINE GemvTQ2_0() {}
    using Block = block::TQ2_0;
    static constexpr Order order = quarter_bytes;
    static constexpr Rest rest = start;
    static constexpr int offset = 1, places = 0x6420;
    static constexpr bool stored = false;
    Z field = place_mask(places, 2);
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const { h.d = halves(p + 64, sizeof(Block), n); }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z q = once(p);
        in_place(q, q, field, w);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t*) const { return _mm512_set1_ps(1); }
};
struct GemvIQ4_XS {
    QT_INLINE GemvIQ4_XS() {}
    using Block = block::IQ4_XS;
    static constexpr Order order = half_blocks;
    static constexpr Rest rest = start;
    static constexpr int offset = 128, places = 0;
    static constexpr bool stored = true;
    Z index = signed_index(order, 32), table = bytes([](int i) { return codebook::iq4[0][i % 16] + 128; });
    Z low = bytes([](int i) { return (32 + 4 * (i % 8)) & 63; }), high = bytes([](int i) { return (16 + 2 * (i % 8) - 4) & 63; });
    QT_INLINE void head(const uint8_t* p, int n, Head& h) const {
        Z z = lanes(p, sizeof(Block), n);
        const Z six = mask_or(_mm512_multishift_epi64_epi8(high, z), b8(0x30), _mm512_and_si512(_mm512_multishift_epi64_epi8(low, z), b8(15)));
        h.scales = _mm512_sub_epi8(six, b8(32));
        h.d = times(halves(p, sizeof(Block), n), per_signed);
    }
    QT_INLINE void values(const uint8_t* p, Z* w) const {
        const Z a = once(p + 8), b = once(p + 72), c = _mm512_unpacklo_epi64(a, b), d = _mm512_unpackhi_epi64(a, b);
        // vpermb reads 6 bits of the index and the table repeats every 16 entries: no masking.
        w[0] = _mm512_permutexvar_epi8(c, table), w[1] = _mm512_permutexvar_epi8(right(c, 4), table);
        w[2] = _mm512_permutexvar_epi8(d, table), w[3] = _mm512_permutexvar_epi8(right(d, 4), table);
    }
    QT_INLINE V scales(const uint8_t*, const uint8_t* head) const { return scales_of(head, index); }
};

template <class Q>
struct RowsK : Q {
    QT_INLINE RowsK() {}
    using Record = Packed1024;
    static constexpr int record = 4, block_bytes = sizeof(typename Q::Block), block_size = 256;
    static constexpr bool minima = Q::rest != start;
    Z second_of_two = dwords([](int i) { return 2 * (i / 4) + 1; });

    // nb blocks against C of `columns` columns
    template <int C>
    QT_INLINE void dots(const uint8_t* w, const Record* a, int columns, int nb, V* sum, const uint8_t*& ahead) const {
        for (int b = 0; b < nb; b += 4, a += columns) {
            const int n = nb - b < 4 ? nb - b : 4;
            Head h;
            alignas(64) float d[8];
            alignas(64) uint8_t raw[64];
            Q::head(w, n, h);
            prefetch(ahead, n * block_bytes);
            _mm256_store_ps(d, h.d);
            spill(d);
            if constexpr (Q::stored) {
                _mm512_store_si512(raw, h.scales);
                spill(raw);
            }
            if constexpr (minima) {  // lanes of blocks past the n-th meet sums of zero
                const V dmin = _mm512_permutexvar_ps(second_of_two, _mm512_castps256_ps512(h.d));
                QT_UNROLL for (int c = 0; c < C; c++) {
                    V least = _mm512_mul_ps(h.minima[0], _mm512_load_ps(a[c].sums[0]));
                    QT_UNROLL for (int v = 1; v < (Q::rest == sums16 ? 4 : 2); v++) least = _mm512_fmadd_ps(h.minima[v], _mm512_load_ps(a[c].sums[v]), least);
                    sum[c] = _mm512_fnmadd_ps(dmin, least, sum[c]);
                }
            }
            QT_UNROLL for (int k = 0; k < 4; k++, w += block_bytes) {
                if (k >= n) break;
                Z v[4];
                Q::values(w, v);
                const V s = _mm512_mul_ps(Q::scales(w, raw + 16 * k), bcast(d + (minima ? 2 * k : k)));
                QT_UNROLL for (int c = 0; c < C; c++) {
                    const int8_t* x = a[c].q[k];
                    Z total = Q::rest == start ? load512(a[c].start[k]) : _mm512_setzero_si512();
                    QT_UNROLL for (int r = 0; r < 4; r++) total = _mm512_dpbusd_epi32(total, v[r], load512(x + 64 * r));
                    sum[c] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_load_ps(a[c].unit[k])), s, sum[c]);
                }
            }
        }
    }
};
}  // namespace qt::QT_ISA
