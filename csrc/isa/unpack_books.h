// The rest of unpack.h: types whose values are points of codebooks, digits or bits, or lie in another order.
#pragma once
#include "unpack.h"

namespace qt::QT_ISA {

typedef uint64_t Eights __attribute__((vector_size(sizeof(Words))));
typedef uint32_t Fours __attribute__((vector_size(sizeof(V))));

// f(j) for j from 0 to 7. The compiler's own unrolling comes too late for loops as long as these: sums would lie in memory.
template <class F>
QT_INLINE void each_32(F f) { f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7); }
#define QT_INLINED __attribute__((always_inline))

// 32 codes of which f(k) gives the eight from 8 k on.
template <class F>
QT_INLINE Codes eights(F f) {
#if defined(__AVX2__)
    return {{(Words)Eights{f(0), f(1), f(2), f(3)}}};
#else
    return {{(Words)Eights{f(0), f(1)}, (Words)Eights{f(2), f(3)}}};
#endif
}
// Four points of eight values, by index.
template <class F>
QT_INLINE Codes points(const int8_t (*book)[8], F index) {
    return eights([&](int k) { return load<uint64_t>(book[index(k)]); });
}
// Eight points of four.
template <class F>
QT_INLINE Codes points(const int8_t (*book)[4], F index) {
    return eights([&](int k) { return load<uint32_t>(book[index(2 * k)]) | uint64_t(load<uint32_t>(book[index(2 * k + 1)])) << 32; });
}
// 255 for each minus, by four indices of 7 bits.
QT_INLINE Codes minuses(uint32_t indices) {
    const Codes s = points(codebook::signs, [&](int k) { return indices >> 7 * k & 127; });
    return each_part([&](int i) {
        typedef int8_t Signed __attribute__((vector_size(sizeof(Words))));
        return (Words)((Signed)s.at[i] < 0);
    });
}
// d (2 n + 1) of the uppermost four bits of 8 numbers, f(i) being the i-th.
template <class F>
QT_INLINE void odd_scales(F f, float d, float* to) {
    V v[8 / VL];
    for (int i = 0; i < 8; i += VL) {
        Fours n{};
        QT_UNROLL for (int k = 0; k < VL; k++) n[k] = f(i + k);
        v[i / VL] = __builtin_convertvector((I)(n >> 27 | 1), V) * all(d);
    }
    put_eight(to, v);
}
// d (2 n + 1) of the nibbles of 8 bytes, low ones first.
QT_INLINE void sixteen_odd_scales(const uint8_t* nibbles, float d, float* to) {
    for (int i = 0; i < 2; i++) eight_bytes(spread_nibbles(load<uint32_t>(nibbles + 4 * i)) << 1 | 0x0101010101010101, d, to + 8 * i);
}

QT_UNPACK(IQ2_XXS) {
    const uint8_t* at = (const uint8_t*)b->qs;  // four indices, then signs and scale
    odd_scales([&](int j) { return load<uint32_t>(at + 8 * j + 4); }, widen(b->d) * 0.125f, s);
    each_32([&](int j) QT_INLINED { f(j, with_signs(points(codebook::iq2_xxs, [&](int k) { return at[8 * j + k]; }), minuses(load<uint32_t>(at + 8 * j + 4)))); });
}
QT_UNPACK(IQ2_XS) {
    sixteen_odd_scales(b->scales, widen(b->d) * 0.125f, s);
    each_32([&](int j) QT_INLINED {
        const uint16_t* q = b->qs + 4 * j;
        const uint32_t signs = q[0] >> 9 | q[1] >> 9 << 7 | q[2] >> 9 << 14 | q[3] >> 9 << 21;
        f(j, with_signs(points(codebook::iq2_xs, [&](int k) { return q[k] & 511; }), minuses(signs)));
    });
}
QT_UNPACK(IQ2_S) {
    sixteen_odd_scales(b->scales, widen(b->d) * 0.125f, s);
    each_32([&](int j) QT_INLINED {
        const Codes q = points(codebook::iq2_s, [&](int k) { return b->qs[4 * j + k] | (b->qh[j] >> 2 * k & 3) << 8; });
        f(j, with_signs(q, spread32(load<uint32_t>(b->signs + 4 * j))));
    });
}
QT_UNPACK(IQ3_XXS) {
    odd_scales([&](int j) { return load<uint32_t>(b->signs + 4 * j); }, widen(b->d) * 0.25f, s);
    each_32([&](int j) QT_INLINED { f(j, with_signs(points(codebook::iq3_xxs, [&](int k) { return b->qs[8 * j + k]; }), minuses(load<uint32_t>(b->signs + 4 * j)))); });
}
QT_UNPACK(IQ3_S) {
    eight_bytes(spread_nibbles(load<uint32_t>(b->scales)) << 1 | 0x0101010101010101, widen(b->d), s);
    each_32([&](int j) QT_INLINED {
        const Codes q = points(codebook::iq3_s, [&](int k) { return b->qs[8 * j + k] | (b->qh[j] >> k & 1) << 8; });
        f(j, with_signs(q, spread32(load<uint32_t>(b->signs + 4 * j))) + every(CodingOf<block::IQ3_S>::offset));
    });
}

// IQ1: d/8 (8 point + 1 or - 1).
QT_UNPACK(IQ1_S) {
    odd_scales([&](int j) { return uint32_t(b->qh[j] & 0x7fff) << 16; }, widen(b->d) * 0.125f, s);
    each_32([&](int j) QT_INLINED {
        const uint32_t h = b->qh[j];
        const Codes q = points(codebook::iq1, [&](int k) { return b->qs[4 * j + k] | (h >> 3 * k & 7) << 8; });
        f(j, (q << 3 & 0xf8) + every(CodingOf<block::IQ1_S>::offset + (h & 0x8000 ? -1 : 1)));
    });
}
// What is added to four points, by the bits that tell which are shifted down.
struct Shifts { uint64_t of[16][4]; };
static consteval Shifts shifts_of(int offset) {
    Shifts t{};
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 4; k++) t.of[i][k] = uint64_t(offset + (i >> k & 1 ? -1 : 1)) * 0x0101010101010101;
    return t;
}
static constexpr Shifts iq1_shifts = shifts_of(CodingOf<block::IQ1_M>::offset);

QT_UNPACK(IQ1_M) {
    const uint64_t words = load<uint64_t>(b->scales);  // of each, 12 bits of scales and 4 of the factor
    const float d = widen(f16((words >> 12 & 0xf) | (words >> 24 & 0xf0) | (words >> 36 & 0xf00) | (words >> 48 & 0xf000))) * 0.125f;
    for (int i = 0; i < 2; i++) {  // threes of bits to bytes
        uint64_t x = words >> 32 * i;
        x = (x & 0xfff) | (x & 0xfff0000) << 16;
        x = (x | x << 10) & 0x003f003f003f003f;
        x = (x | x << 5) & 0x0707070707070707;
        eight_bytes(x << 1 | 0x0101010101010101, d, s + 8 * i);
    }
    each_32([&](int j) QT_INLINED {
        const uint32_t h = load<uint16_t>(b->qh + 2 * j);  // of each point three bits of its index, one of its shift
        const uint64_t* const shift = iq1_shifts.of[((h & 0x8888) >> 3) * 0x1248 >> 12 & 15];
        const Codes q = points(codebook::iq1, [&](int k) { return b->qs[4 * j + k] | (h >> 4 * k & 7) << 8; });
        f(j, (q << 3 & 0xf8) + load_codes(shift));
    });
}

// A byte is a fraction of 256 in base three: see decode_ternary.h.
QT_INLINE Codes digit(Codes rest) {
    return each_part([&](int i) { return (Words)-(Bytes)(((Bytes)rest.at[i] > 85) + ((Bytes)rest.at[i] > 170)); });
}
QT_INLINE Codes thrice(Codes a) { return a + a + a; }
QT_UNPACK(TQ1_0) {
    const float d = widen(b->d);
    eight_scales([&](int) { return d; }, s);
    Codes rest = load_codes(b->qs);
    QT_UNROLL for (int j = 0; j < 5; j++, rest = thrice(rest)) f(j, digit(rest));
    const uint64_t middle[2] = {load<uint64_t>(b->qs + 32), load<uint64_t>(b->qs + 40)};
    rest = eights([&](int k) { return middle[k % 2]; });
    rest = halves(rest, thrice(rest));  // two digits at a time
    QT_UNROLL for (int j = 5; j < 7; j++, rest = thrice(thrice(rest))) f(j, digit(rest));
    uint32_t last[4] = {load<uint32_t>(b->qh)};
    for (int i = 1; i < 4; i++) last[i] = ((last[i - 1] & 0xff00ff) * 3 & 0xff00ff) | ((last[i - 1] >> 8 & 0xff00ff) * 3 & 0xff00ff) << 8;
    f(7, digit(halves(rest, eights([&](int k) { return last[k % 2 * 2] | uint64_t(last[k % 2 * 2 + 1]) << 32; }))));
}

QT_UNPACK(Q1_0) {
    eight_scales([&](int j) { return widen(b[j / 4].d); }, s);
    each_32([&](int j) QT_INLINED { f(j, spread32(load<uint32_t>(b[j / 4].qs + 4 * (j % 4))) & 2); });
}
QT_UNPACK(Q2_0) {
    eight_scales([&](int j) { return widen(b[j / 2].d); }, s);
    each_32([&](int j) QT_INLINED {  // pairs of bits to bytes
        I x[Codes::parts] = {};
        eight_ints(load<uint64_t>(b[j / 2].qs + 8 * (j % 2)), x);
        f(j, each_part([&](int i) {
            const I two = (x[i] | x[i] << 12) & 0x000f000f;
            return (Words)((two | two << 6) & 0x03030303);
        }));
    });
}

// As values16, but nibbles of the first 8 bytes come first.
QT_INLINE Codes values8(const NibbleTable& table, const uint8_t* p) {
#if defined(__AVX2__)
    const __m256i twice = _mm256_permute4x64_epi64(_mm256_castsi128_si256(get<__m128i>(p)), 0x50);
    const __m256i index = _mm256_and_si256(_mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 4, 0, 4)), _mm256_set1_epi8(15));
    return {{(Words)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(get<__m128i>(table.of)), index)}};
#else
    int8_t q[32];
    nibble_values<true>(table, p, q);
    return load_codes(q);
#endif
}
QT_UNPACK(NVFP4) {
    for (int i = 0; i < 16; i += 8) {
        const uint64_t eight = load<uint32_t>(b[i / 4].d) | uint64_t(load<uint32_t>(b[i / 4 + 1].d)) << 32;
        I e[8 / VL] = {};
        V d[8 / VL];
        eight_ints(eight, e);
        for (int k = 0; k < 8 / VL; k++) d[k] = (V)((e[k] & 0x7f) << 20 & (e[k] != 0x7f)) * all(0x1p119f);  // see half_ue4m3
        put_eight(s + i, d);
    }
    each_32([&](int j) QT_INLINED { f(j, values8(fp4_codes, b[j / 2].qs + 16 * (j % 2))); });
}
}  // namespace qt::QT_ISA
