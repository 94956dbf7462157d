// One row of 256-value blocks times one packed input.
//
// A Zen 4 core issues one 512-bit multiply (vpdpbusd, vpmaddwd, fma alike), one shuffle or shift (on a pipe shared with
// multiplies) and one 512-bit load a cycle; converts go elsewhere. So block headers are decoded four at a time in vector
// registers; the 16 dot lanes of vpdpbusd fit 16 bits for codes of up to 6 bits, so two registers are packed and one vpdpwssd
// applies the sub-block scales and adds; offsets and minima use sums of x.
#pragma once
#include "gemv_pack.h"

namespace qt::QT_ISA {

// 16 bytes at `p` of 4 consecutive blocks, one a lane; blocks past the n-th repeat the last.
INLINE Z lanes(const uint8_t* p, int stride, int n) {
    const uint8_t* at[4];
    UNROLL for (int k = 0; k < 4; k++) at[k] = p + (k < n ? k : n - 1) * stride;
    Z z = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)at[0]));
    z = _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i*)at[1]), 1);
    z = _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i*)at[2]), 2);
    return _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i*)at[3]), 3);
}
// One f16 word of each lane, as f32 in the 4 lanes of its block; `index` from word_index.
INLINE V word_f32(Z z, Z index) { return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(index, z))); }
INLINE Z word_index(int w) { return words([&](int i) { return 8 * (i / 4 % 4) + w; }); }

// First value of 16-byte lane `lane` of register r.
constexpr int first_value(Order o, int r, int lane) {
    for (int i = 0; i < 256; i += 16)
        if (place(o, i) == 64 * r + 16 * lane) return i;
    return 0;
}
// Word i of the scales for packs(dot 2w, dot 2w + 1): 4 words from the lane of the first, then 4 from that of the second.
constexpr int scale_of(Order o, int per, int w, int i) { return first_value(o, 2 * w + i % 8 / 4, i / 8) / per; }
INLINE Z scale_words(Order o, int per, int w) { return words([&](int i) { return scale_of(o, per, w, i); }); }
// The same as a shuffle within lanes that all hold the 16 scales, zero-extended.
INLINE Z scale_bytes(Order o, int per, int w) { return bytes([&](int i) { return i % 2 ? 0x80 : scale_of(o, per, w, i / 2); }); }

struct Head {  // of 4 blocks
    Z scales, mins;
    V d, dmin;
};
enum Minima { per_32, per_16, offset };  // minima per sub-block, or codes offset by 32 (by 4 for Q3_K: then shift = 3)

// The 8 + 8 six-bit numbers of Q4_K and Q5_K, for 4 blocks: bytes 0-7 of a lane scales, 8-15 minima.
struct Unpack6 {
    Z pick = bytes([](int i) { int j = i % 16; return j < 4 ? 4 + j : j < 8 ? 8 + j : j; });
    Z low = bytes([](int i) { int j = i % 16; return j < 8 ? 8 * j : j < 12 ? 8 * (j - 8) : 8 * (j - 8) + 4; });
    Z high = bytes([](int i) { int j = i % 8; return j < 4 ? 0 : 8 * (j - 4) + 2; });
    Z low_mask = bytes([](int i) { return i % 8 < 4 ? 63 : 15; }), high_mask = bytes([](int i) { return i % 8 < 4 ? 0 : 0x30; });
    Z mins = bytes([](int i) { return i % 2 ? 0x80 : 8 + i % 16 / 2; });
    Z word0 = word_index(0), word1 = word_index(1);
    INLINE void operator()(const uint8_t* p, int stride, int n, Head& h) const {
        Z z = lanes(p, stride, n), x = _mm512_shuffle_epi8(z, pick);
        h.scales = mask_or(_mm512_multishift_epi64_epi8(high, x), high_mask, _mm512_and_si512(_mm512_multishift_epi64_epi8(low, x), low_mask));
        h.mins = _mm512_shuffle_epi8(h.scales, mins);
        h.d = word_f32(z, word0), h.dmin = word_f32(z, word1);
    }
};

// A type says: `head` for 4 blocks, then per block `values` (codes in the order of x) and `scales` (two registers of words,
// and what multiplies the sums of 16: `other`). `stored`: scales come from the head, through memory.
struct GemvQ4_K {
    using Block = block::Q4_K;
    static constexpr Order order = pair;
    static constexpr Minima minima = per_32;
    static constexpr bool stored = true;
    Unpack6 unpack;
    Z s0 = scale_bytes(pair, 32, 0), s1 = scale_bytes(pair, 32, 1);
    INLINE void head(const uint8_t* p, int n, Head& h) const { unpack(p, sizeof(Block), n, h); }
    INLINE void values(const uint8_t* p, Z* w) const {
        Z m = b8(15), a = once(p + 16), b = once(p + 80);
        w[0] = _mm512_and_si512(a, m), w[1] = _mm512_and_si512(right(a, 4), m);
        w[2] = _mm512_and_si512(b, m), w[3] = _mm512_and_si512(right(b, 4), m);
    }
    INLINE void scales(const uint8_t*, const uint8_t* head, Z* s, Z&) const {
        Z z = four(head);
        s[0] = _mm512_shuffle_epi8(z, s0), s[1] = _mm512_shuffle_epi8(z, s1);
    }
};
struct GemvQ5_K {
    using Block = block::Q5_K;
    static constexpr Order order = pair;
    static constexpr Minima minima = per_32;
    static constexpr bool stored = true;
    Unpack6 unpack;
    Z s0 = scale_bytes(pair, 32, 0), s1 = scale_bytes(pair, 32, 1);
    // Bit g of qh belongs to group g: brought to bit 4, in the order (0 2) (1 3) (4 6) (5 7).
    Z fifth[4] = {bit(0, 2), bit(1, 3), bit(4, 6), bit(5, 7)};
    static INLINE Z bit(int a, int b) { return bytes([&](int i) { return (8 * (i % 8) + (i < 32 ? a : b) - 4) & 63; }); }
    INLINE void head(const uint8_t* p, int n, Head& h) const { unpack(p, sizeof(Block), n, h); }
    INLINE void values(const uint8_t* p, Z* w) const {
        Z m = b8(15), a = once(p + 48), b = once(p + 112), h = twice(p + 16), sixteen = b8(16);
        Z low[4] = {_mm512_and_si512(a, m), _mm512_and_si512(right(a, 4), m), _mm512_and_si512(b, m), _mm512_and_si512(right(b, 4), m)};
        UNROLL for (int i = 0; i < 4; i++) w[i] = mask_or(_mm512_multishift_epi64_epi8(fifth[i], h), sixteen, low[i]);
    }
    INLINE void scales(const uint8_t*, const uint8_t* head, Z* s, Z&) const {
        Z z = four(head);
        s[0] = _mm512_shuffle_epi8(z, s0), s[1] = _mm512_shuffle_epi8(z, s1);
    }
};
struct GemvQ6_K {
    using Block = block::Q6_K;
    static constexpr Order order = natural;
    static constexpr Minima minima = offset;
    static constexpr bool stored = false;
    static constexpr int shift = 0;
    Z s0 = scale_words(natural, 16, 0), s1 = scale_words(natural, 16, 1), word7 = word_index(7);
    Z high0 = bytes([](int i) { return (8 * (i % 8) + (i < 32 ? -4 : -2)) & 63; });
    Z high1 = bytes([](int i) { return 8 * (i % 8) + (i < 32 ? 0 : 2); });
    INLINE void head(const uint8_t* p, int n, Head& h) const { h.d = word_f32(lanes(p + 194, sizeof(Block), n), word7); }
    INLINE void values(const uint8_t* p, Z* w) const {
        Z m = b8(15), t = b8(0x30);
        UNROLL for (int n = 0; n < 2; n++) {
            Z l = once(p + 64 * n), h = twice(p + 128 + 32 * n);
            w[2 * n] = mask_or(_mm512_multishift_epi64_epi8(high0, h), t, _mm512_and_si512(l, m));
            w[2 * n + 1] = mask_or(_mm512_multishift_epi64_epi8(high1, h), t, _mm512_and_si512(right(l, 4), m));
        }
    }
    INLINE void scales(const uint8_t* p, const uint8_t*, Z* s, Z& other) const {
        other = _mm512_broadcast_i64x4(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 192))));
        s[0] = _mm512_permutexvar_epi16(s0, other), s[1] = _mm512_permutexvar_epi16(s1, other);
    }
};
struct GemvQ3_K {
    using Block = block::Q3_K;
    static constexpr Order order = half;
    static constexpr Minima minima = offset;
    static constexpr bool stored = true;
    static constexpr int shift = 3;
    Z s0 = scale_words(half, 16, 0), s1 = scale_words(half, 16, 1), word7 = word_index(7);
    Z third[4] = {bit(0), bit(1), bit(2), bit(3)};
    static INLINE Z bit(int g) { return bytes([&](int i) { return (8 * (i % 8) + (i < 32 ? g : g + 4) - 2) & 63; }); }
    Z low = bytes([](int i) { return 2 + i % 8; }), high = bytes([](int i) { return 10 + i % 4; });
    Z low_shift = bytes([](int i) { return i % 16 < 8 ? 8 * (i % 8) : 8 * (i % 8) + 4; });
    Z high_shift = bytes([](int i) { return (8 * (i % 8) + 2 * (i % 16 / 4) - 4) & 63; });
    INLINE void head(const uint8_t* p, int n, Head& h) const {
        Z z = lanes(p + 94, sizeof(Block), n);  // two bytes of qs, 12 of scales, d
        Z l = _mm512_and_si512(_mm512_multishift_epi64_epi8(low_shift, _mm512_shuffle_epi8(z, low)), b8(15));
        Z r = mask_or(_mm512_multishift_epi64_epi8(high_shift, _mm512_shuffle_epi8(z, high)), b8(0x30), l);
        h.scales = _mm512_sub_epi8(r, b8(32));
        h.d = word_f32(z, word7);
    }
    INLINE void values(const uint8_t* p, Z* w) const {
        Z q = once(p + 32), h = twice(p), three = b8(3), four_ = b8(4);
        UNROLL for (int i = 0; i < 4; i++)
            w[i] = mask_or(_mm512_multishift_epi64_epi8(third[i], h), four_, _mm512_and_si512(i ? right(q, 2 * i) : q, three));
    }
    INLINE void scales(const uint8_t*, const uint8_t* head, Z* s, Z& other) const {
        other = _mm512_broadcast_i64x4(_mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)head)));
        s[0] = _mm512_permutexvar_epi16(s0, other), s[1] = _mm512_permutexvar_epi16(s1, other);
    }
};
struct GemvQ2_K {
    using Block = block::Q2_K;
    static constexpr Order order = half;
    static constexpr Minima minima = per_16;
    static constexpr bool stored = false;
    Z s0 = scale_bytes(half, 16, 0), s1 = scale_bytes(half, 16, 1), word6 = word_index(6), word7 = word_index(7);
    Z min_bytes = bytes([](int i) { return i % 2 ? 0x80 : i % 32 / 2; });
    INLINE void head(const uint8_t* p, int n, Head& h) const {
        Z z = lanes(p + 68, sizeof(Block), n);
        h.d = word_f32(z, word6), h.dmin = _mm512_mul_ps(word_f32(z, word7), _mm512_set1_ps(1.f / 32));
    }
    INLINE void values(const uint8_t* p, Z* w) const {
        Z q = once(p + 16), m = b8(3);
        UNROLL for (int i = 0; i < 4; i++) w[i] = _mm512_and_si512(i ? right(q, 2 * i) : q, m);
    }
    INLINE void scales(const uint8_t* p, const uint8_t*, Z* s, Z& other) const {
        Z z = four(p), m = b8(15), l = _mm512_and_si512(z, m);
        s[0] = _mm512_shuffle_epi8(l, s0), s[1] = _mm512_shuffle_epi8(l, s1);
        other = _mm512_shuffle_epi8(_mm512_and_si512(right(z, 4), m), min_bytes);
    }
};

// A row of nb blocks as one sequential stream.
template <class Q>
INLINE float dot_k(const Q& q, const uint8_t* w, const Packed1024* a, int nb, const uint8_t*& ahead) {
    constexpr int size = sizeof(typename Q::Block);
    const Z zero = _mm512_setzero_si512();
    V sum[planes] = {};
    for (int b = 0; b < nb; b += 4, a += planes) {
        const int n = nb - b < 4 ? nb - b : 4;
        Head h;
        alignas(64) float d[planes][16], dmin[planes][16];
        alignas(64) uint8_t raw[64];
        q.head(w, n, h);
        prefetch(ahead, n * size);
        if constexpr (Q::stored) {
            _mm512_store_si512(raw, h.scales);
            spill(raw);
        }
        for (int t = 0; t < planes; t++) {
            const V dx = _mm512_load_ps(a[t].d);
            _mm512_store_ps(d[t], _mm512_mul_ps(h.d, dx));
            if constexpr (Q::minima == per_32)  // lanes of blocks past the n-th meet sums of zero
                sum[t] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(_mm512_madd_epi16(h.mins, load512(a[t].sum32))), _mm512_mul_ps(h.dmin, dx), sum[t]);
            if constexpr (Q::minima == per_16) _mm512_store_ps(dmin[t], _mm512_mul_ps(h.dmin, dx));
        }
        spill(d);
        if constexpr (Q::minima == per_16) spill(dmin);
        UNROLL for (int k = 0; k < 4; k++) {
            if (k >= n) break;
            Z v[4], s[2], other;
            q.values(w, v);
            q.scales(w, raw + 16 * k, s, other);
            UNROLL for (int t = 0; t < planes; t++) {
                const int8_t* x = a[t].q + 256 * k;
                Z total = zero;
                if constexpr (Q::minima == offset) total = _mm512_srai_epi32(_mm512_madd_epi16(other, load512(a[t].sum16[k])), Q::shift);
                const Z d0 = _mm512_dpbusd_epi32(zero, v[0], load512(x)), d1 = _mm512_dpbusd_epi32(zero, v[1], load512(x + 64));
                const Z d2 = _mm512_dpbusd_epi32(zero, v[2], load512(x + 128)), d3 = _mm512_dpbusd_epi32(zero, v[3], load512(x + 192));
                total = _mm512_dpwssd_epi32(total, _mm512_packs_epi32(d0, d1), s[0]);
                total = _mm512_dpwssd_epi32(total, _mm512_packs_epi32(d2, d3), s[1]);
                sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), bcast(&d[t][4 * k]), sum[t]);
                if constexpr (Q::minima == per_16)
                    sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_madd_epi16(other, load512(a[t].sum16[k]))), bcast(&dmin[t][4 * k]), sum[t]);
            }
            w += size;
        }
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

// IQ4_XS: 8-bit table values, but split16 puts a whole sub-block in a lane: one convert and one fma per 128 values.
struct GemvIQ4_XS {
    using Block = block::IQ4_XS;
    static constexpr Order order = split16;
    Z table, first = dwords([](int i) { return i / 4; }), second = dwords([](int i) { return 4 + i / 4; });
};
INLINE float dot_iq4_xs(const GemvIQ4_XS& q, const uint8_t* w, const Packed1024* a, int nb, const uint8_t*& ahead) {
    const Z zero = _mm512_setzero_si512();
    V sum[planes] = {};
    for (int b = 0; b < nb; b++, w += sizeof(block::IQ4_XS)) {
        prefetch(ahead, sizeof(block::IQ4_XS));
        const uint64_t six = _pdep_u64(load<uint32_t>(w + 4), 0x0f0f0f0f0f0f0f0full) | _pdep_u64(load<uint16_t>(w + 2), 0x3030303030303030ull);
        __m256 f = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)six)), _mm256_set1_epi32(32)));
        f = _mm256_mul_ps(f, _mm256_set1_ps(widen(load<f16>(w))));
        const V s = _mm512_castps256_ps512(f), s0 = _mm512_permutexvar_ps(q.first, s), s1 = _mm512_permutexvar_ps(q.second, s);
        const V undo = _mm512_maskz_mul_ps(0xff, s, _mm512_set1_ps(128));
        // vpermb reads 6 bits of the index and the table repeats every 16 entries: no masking.
        const Z p0 = once(w + 8), p1 = once(w + 72);
        const Z v0 = _mm512_permutexvar_epi8(p0, q.table), v1 = _mm512_permutexvar_epi8(right(p0, 4), q.table);
        const Z v2 = _mm512_permutexvar_epi8(p1, q.table), v3 = _mm512_permutexvar_epi8(right(p1, 4), q.table);
        UNROLL for (int t = 0; t < planes; t++) {
            const Packed1024& r = a[b / 4 * planes + t];
            const int8_t* x = r.q + 256 * (b % 4);
            const Z d0 = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, v0, load512(x)), v1, load512(x + 64));
            const Z d1 = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, v2, load512(x + 128)), v3, load512(x + 192));
            V total = _mm512_fmadd_ps(s1, _mm512_cvtepi32_ps(d1), _mm512_mul_ps(s0, _mm512_cvtepi32_ps(d0)));
            const __m256 sums = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_load_si128((const __m128i*)(r.sum32 + 8 * (b % 4)))));
            total = _mm512_mask3_fnmadd_ps(undo, _mm512_castps256_ps512(sums), total, 0xff);
            sum[t] = _mm512_fmadd_ps(total, bcast(&r.d[4 * (b % 4)]), sum[t]);
        }
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}
}  // namespace qt::QT_ISA
