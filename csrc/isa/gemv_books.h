// One row of blocks that look their values up in codebooks, times 1 to 8 columns, 256 values a step.
//
// A Zen 4 core looks 64 bytes up in a table of 128 with one shuffle (vpermi2b). Points are packed in two bytes, so that a
// book of 256 takes four and two blends for 64 points; those of 2,048 are loaded one by one in scalar code instead.
#pragma once
#include "codebooks.h"
#include "gemv_pack.h"

namespace qt::QT_ISA {

// The values of a codebook without their signs, ascending.
struct Levels { int n = 0, of[16] = {}; };
template <size_t N, size_t K>
consteval Levels levels(const int8_t (&book)[N][K]) {
    Levels l;
    for (auto& point : book)
        for (int v : point) {
            int at = 0;
            while (at < l.n && l.of[at] < v) at++;
            if (at < l.n && l.of[at] == v) continue;
            for (int i = l.n++; i > at; i--) l.of[i] = l.of[i - 1];
            l.of[at] = v;
        }
    return l;
}
// Bit k of byte i: value k has a minus where signs have index i.
struct alignas(64) Signs { uint8_t of[128] = {}; };
consteval Signs packed_signs() {
    Signs s;
    for (int i = 0; i < 128; i++)
        for (int k = 0; k < 8; k++) s.of[i] |= uint8_t((codebook::signs[i][k] < 0) << k);
    return s;
}
constexpr Signs sign_bytes = packed_signs();

// Points of 8 values as bytes: `times` the value, plus 128 and `more`.
template <size_t N>
struct Whole { uint64_t of[N] = {}; };
template <size_t N>
consteval Whole<N> whole_book(const int8_t (&book)[N][8], int times, int more) {
    Whole<N> b;
    for (size_t i = 0; i < N; i++)
        for (int k = 0; k < 8; k++) b.of[i] |= uint64_t(uint8_t(book[i][k] * times + 128 + more)) << 8 * k;
    return b;
}
alignas(64) constexpr Whole whole_iq1 = whole_book(codebook::iq1, 8, 1);

// The point of word 4 i + r of 32 indices in 64-bit lane i of register r. Loads of points and of indices, two a load,
// and what takes these apart keep all of scalar code's pipes busy: nothing goes through memory twice.
QT_INLINE __m128i with_upper(__m128i x, const void* p) { return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(x), (const __m64*)p)); }
template <size_t N>
QT_INLINE void look_up_whole(const Whole<N>& book, const uint16_t* at, Z* v) {
    QT_UNROLL for (int r = 0; r < 4; r += 2) {
        __m256i half[2][2];
        QT_UNROLL for (int h = 0; h < 2; h++) {
            __m128i two[2][2];
            QT_UNROLL for (int g = 0; g < 4; g++) {
                uint32_t both = load<uint32_t>(at + 4 * (4 * h + g) + r);
                asm("" : "+r"(both));
                const uint64_t *low = book.of + uint16_t(both), *high = book.of + (both >> 16);
                two[0][g / 2] = g % 2 ? with_upper(two[0][g / 2], low) : _mm_loadl_epi64((const __m128i*)low);
                two[1][g / 2] = g % 2 ? with_upper(two[1][g / 2], high) : _mm_loadl_epi64((const __m128i*)high);
            }
            QT_UNROLL for (int k = 0; k < 2; k++) half[k][h] = _mm256_inserti128_si256(_mm256_castsi128_si256(two[k][0]), two[k][1], 1);
        }
        QT_UNROLL for (int k = 0; k < 2; k++) v[r + k] = _mm512_inserti64x4(_mm512_castsi256_si512(half[k][0]), half[k][1], 1);
    }
}

// 8 bits of each 64-bit lane for each of its bytes, from bit `from` + `step` times the byte on.
QT_INLINE Z spread_index(int from, int step) { return bytes([&](int i) { return (from + step * (i % 8)) & 63; }); }
QT_INLINE Z spread(Z index, Z x) { return _mm512_multishift_epi64_epi8(index, x); }
QT_INLINE Z mask_into(Z x, Z y, Z mask) { return _mm512_ternarylogic_epi32(mask, y, x, 0xca); }  // y where the mask is set
QT_INLINE V half_in_all(const void* p) { return _mm512_cvtph_ps(_mm256_set1_epi16(load<int16_t>(p))); }
QT_INLINE Z low_dwords(Z x) { return _mm512_shuffle_epi32(x, _MM_PERM_CCAA); }  // of each 64-bit lane, twice
QT_INLINE V times(V x, float y) { return _mm512_mul_ps(x, _mm512_set1_ps(y)); }
QT_INLINE Z qwords_of_words(const void* p) { return _mm512_cvtepu16_epi64(_mm_loadu_si128((const __m128i*)p)); }
QT_INLINE Z words_of_bytes(const void* p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p)); }

// Points as two planes of bytes: of 4 values, 2 and 0 then 3 and 1 in 3 bits each; of 8, 3 to 0 then 7 to 4 in 2 bits each,
// the first in the lowest.
template <size_t N>
struct alignas(64) Planes { uint8_t of[2][N] = {}; };
template <size_t N, size_t K>
consteval Planes<N> planes_of(const int8_t (&book)[N][K]) {
    const Levels l = levels(book);
    Planes<N> p;
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < K; k++) {
            int at = 0;
            while (l.of[at] != book[i][k]) at++;
            p.of[K == 4 ? k % 2 : k / 4][i] |= uint8_t(at << (K == 4 ? 3 * (k < 2) : 2 * (3 - k % 4)));
        }
    return p;
}
constexpr Planes planes_iq2_xxs = planes_of(codebook::iq2_xxs);
constexpr Planes planes_iq2_xs = planes_of(codebook::iq2_xs);
constexpr Planes planes_iq2_s = planes_of(codebook::iq2_s);
constexpr Planes planes_iq3_xxs = planes_of(codebook::iq3_xxs);
constexpr Planes planes_iq3_s = planes_of(codebook::iq3_s);

// One plane of 64 points, by 8 lowest bits of their indices and masks of the 8th bit and those above.
template <size_t N>
QT_INLINE Z look_up(const uint8_t (&plane)[N], Z index, const __mmask64* bit) {
    constexpr int n = N / 128;
    Z part[n];
    QT_UNROLL for (int i = 0; i < n; i++) part[i] = _mm512_permutex2var_epi8(_mm512_load_si512(plane + 128 * i), index, _mm512_load_si512(plane + 128 * i + 64));
    QT_UNROLL for (int k = 1; k < n; k *= 2, bit++)
        QT_UNROLL for (int i = 0; i < n; i += 2 * k) part[i] = _mm512_mask_blend_epi8(*bit, part[i], part[i + k]);
    return part[0];
}

// Bits of x that are in the mask, whose bit 0 is clear, plus one, times d.
QT_INLINE V odd(Z x, int mask, V d) { return _mm512_mul_ps(_mm512_cvtepi32_ps(mask_or(x, _mm512_set1_epi32(mask), _mm512_set1_epi32(1))), d); }
struct Signs128 {  // by seven bits of each byte
    Z first = once(sign_bytes.of), second = once(sign_bytes.of + 64);
    QT_INLINE Signs128() {}
    QT_INLINE Z of(Z index) const { return _mm512_permutex2var_epi8(first, index, second); }
};
// A byte of `codes` and a sign in bit k of another: the sign takes the place of a bit of another value, then vpermb reads
// six bits. 128 + x, or 128 - x where the sign is set.
template <const auto& book>
QT_INLINE Z signed_table(int field, int sign) {
    constexpr Levels l = levels(book);
    return bytes([&](int i) { return 128 + (i >> sign & 1 ? -1 : 1) * l.of[i >> field & (l.n > 4 ? 7 : 3)]; });
}

// Types of 8 values a point: two blocks at a time, whose indices stand in turns of 8 points.
template <const auto& book>
struct Eights {
    Z table[4] = {signed_table<book>(4, 0), signed_table<book>(4, 1), signed_table<book>(0, 2), signed_table<book>(0, 3)};
    Z half = bytes([](int i) { return 16 * (i % 8 / 2) + i % 2 * 4; });
    QT_INLINE Eights() {}
    template <size_t N>
    QT_INLINE void look_up_both(const Planes<N>& planes, Z index, const __mmask64* high, Z* codes) const {
        const Z low = look_up(planes.of[0], index, high), up = look_up(planes.of[1], index, high);
        codes[0] = _mm512_unpacklo_epi8(low, up), codes[1] = _mm512_unpackhi_epi8(low, up);
    }
    // `signs`: a byte in each word
    QT_INLINE void values(Z codes, Z signs, Z* v) const {
        const Z minus = spread(half, signs), shifted = right(codes, 2);
        QT_UNROLL for (int k = 0; k < 4; k++) v[k] = _mm512_permutexvar_epi8(mask_into(k % 2 ? codes : shifted, minus, b8(1 << k)), table[k]);
    }
};
struct GemvIQ2_XXS {
    using Block = block::IQ2_XXS;
    static constexpr Order order = fours;
    static constexpr int offset = 128, n = 1, together = 2;
    static constexpr float unit = 1 / 8.f;
    Eights<codebook::iq2_xxs> eights;
    Signs128 signs;
    Z points = dwords([](int i) { return i / 4 * 4 + i % 2 * 2 + i % 4 / 2 * 16; }), seven = bytes([](int i) { return 32 + 7 * (i % 8 / 2); });
    QT_INLINE GemvIQ2_XXS() {}
    QT_INLINE void unpack(const uint8_t* first, const uint8_t* second, Z (*v)[4], V (*s)[1]) const {
        const uint8_t* at[2] = {first, second};
        const Z q[2] = {once(at[0] + 2), once(at[1] + 2)}, index = _mm512_permutex2var_epi32(q[0], points, q[1]);
        const __mmask64 high = _mm512_movepi8_mask(index);
        Z codes[2];
        eights.look_up_both(planes_iq2_xxs, index, &high, codes);
        QT_UNROLL for (int i = 0; i < 2; i++) {
            eights.values(codes[i], signs.of(spread(seven, q[i])), v[i]);
            s[i][0] = odd(_mm512_shuffle_epi32(_mm512_srli_epi32(q[i], 27), _MM_PERM_DDBB), 30, half_in_all(at[i]));
        }
    }
};
struct GemvIQ2_XS {
    using Block = block::IQ2_XS;
    static constexpr Order order = fours;
    static constexpr int offset = 128, n = 1, together = 2;
    static constexpr float unit = 1 / 8.f;
    Eights<codebook::iq2_xs> eights;
    Signs128 signs;
    Z low = point(0), ninth = point(1), seven = bytes([](int i) { return 16 * (i % 8 / 2) + 9; }), nibble = nibbles();
    static QT_INLINE Z point(int byte) { return bytes([&](int i) { return 16 * (i / 16) + 2 * (i % 8) + byte + i % 16 / 8 * 64; }); }
    static QT_INLINE Z nibbles() { return bytes([](int i) { return (i - i % 4 - 1) & 63; }); }
    QT_INLINE GemvIQ2_XS() {}
    QT_INLINE void unpack(const uint8_t* first, const uint8_t* second, Z (*v)[4], V (*s)[1]) const {
        const uint8_t* at[2] = {first, second};
        const Z q[2] = {once(at[0] + 2), once(at[1] + 2)}, index = _mm512_permutex2var_epi8(q[0], low, q[1]);
        const __mmask64 high[2] = {_mm512_movepi8_mask(index), _mm512_test_epi8_mask(_mm512_permutex2var_epi8(q[0], ninth, q[1]), b8(1))};
        Z codes[2];
        eights.look_up_both(planes_iq2_xs, index, high, codes);
        QT_UNROLL for (int i = 0; i < 2; i++) {
            eights.values(codes[i], signs.of(spread(seven, q[i])), v[i]);
            s[i][0] = odd(spread(nibble, _mm512_set1_epi64(load<int64_t>(at[i] + 66))), 30, half_in_all(at[i]));
        }
    }
};
struct GemvIQ2_S {
    using Block = block::IQ2_S;
    static constexpr Order order = fours;
    static constexpr int offset = 128, n = 1, together = 2;
    static constexpr float unit = 1 / 8.f;
    Eights<codebook::iq2_s> eights;
    Z points = bytes([](int i) { return i % 8 ? 0 : i / 16 + i / 8 % 2 * 8; }), nibble = GemvIQ2_XS::nibbles();
    QT_INLINE GemvIQ2_S() {}
    // A bit of each two bits, of both blocks in turns of eight
    static QT_INLINE uint64_t turns(const uint64_t* pairs, uint64_t which) {
        return _pdep_u64(_pext_u64(pairs[0], which), 0x00ff00ff00ff00ff) | _pdep_u64(_pext_u64(pairs[1], which), 0xff00ff00ff00ff00);
    }
    QT_INLINE void unpack(const uint8_t* first, const uint8_t* second, Z (*v)[4], V (*s)[1]) const {
        const uint8_t* at[2] = {first, second};
        const uint64_t pairs[2] = {load<uint64_t>(at[0] + 66), load<uint64_t>(at[1] + 66)};
        const Z index = _mm512_permutex2var_epi64(once(at[0] + 2), points, once(at[1] + 2));
        const __mmask64 high[3] = {_mm512_movepi8_mask(index), turns(pairs, 0x5555555555555555), turns(pairs, 0xaaaaaaaaaaaaaaaa)};
        Z codes[2];
        eights.look_up_both(planes_iq2_s, index, high, codes);
        QT_UNROLL for (int i = 0; i < 2; i++) {
            eights.values(codes[i], words_of_bytes(at[i] + 34), v[i]);
            s[i][0] = odd(spread(nibble, _mm512_set1_epi64(load<int64_t>(at[i] + 74))), 30, half_in_all(at[i]));
        }
    }
};

// Types of 4 values a point.
template <const auto& book>
struct Pairs {
    Z table[4] = {signed_table<book>(3, 1), signed_table<book>(3, 2), signed_table<book>(0, 3), signed_table<book>(0, 4)};
    // Even points first, then odd ones: a lane of 32 bits is of one group of 32 values, and the lane 8 further of the same.
    Z even = bytes([](int i) { return i < 32 ? 2 * i : 2 * i - 63; });
    Z half = bytes([](int i) { return (8 * (i % 8) + (i < 32 ? -1 : 3)) & 63; });
    QT_INLINE Pairs() {}
    // `signs`: a byte for each 8 values, twice
    template <size_t N>
    QT_INLINE void values(const Planes<N>& planes, Z index, const __mmask64* high, Z signs, Z* v) const {
        const Z minus = spread(half, signs), codes[2] = {look_up(planes.of[0], index, high), look_up(planes.of[1], index, high)};
        QT_UNROLL for (int k = 0; k < 4; k++) v[k] = _mm512_permutexvar_epi8(mask_into(codes[k % 2], minus, b8(2 << k)), table[k]);
    }
};
struct GemvIQ3_XXS {
    using Block = block::IQ3_XXS;
    static constexpr Order order = even_fours;
    static constexpr int offset = 128, n = 1;
    static constexpr float unit = 1 / 4.f;
    Pairs<codebook::iq3_xxs> pairs;
    Signs128 signs;
    Z seven = bytes([](int i) { return 32 * (i % 8 / 4) + 7 * (i % 4); });
    QT_INLINE GemvIQ3_XXS() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z q = _mm512_permutexvar_epi8(pairs.even, load512(p + 2)), rest = twice(p + 66);
        const __mmask64 high = _mm512_movepi8_mask(q);
        pairs.values(planes_iq3_xxs, q, &high, signs.of(spread(seven, rest)), v);
        s[0] = odd(_mm512_srli_epi32(rest, 27), 30, half_in_all(p));
    }
};
struct GemvIQ3_S {
    using Block = block::IQ3_S;
    static constexpr Order order = even_fours;
    static constexpr int offset = 128, n = 1;
    Pairs<codebook::iq3_s> pairs;
    Z nibble = dwords([](int i) { return 1 - 4 * (i % 8) & 31; });
    QT_INLINE GemvIQ3_S() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z q = _mm512_permutexvar_epi8(pairs.even, load512(p + 2));
        const uint64_t ninth = load<uint64_t>(p + 66);
        const __mmask64 high[2] = {_mm512_movepi8_mask(q), _pext_u64(ninth, 0x5555555555555555) | _pext_u64(ninth, 0xaaaaaaaaaaaaaaaa) << 32};
        pairs.values(planes_iq3_s, q, high, twice(p + 74), v);
        s[0] = odd(_mm512_rolv_epi32(_mm512_set1_epi32(load<int32_t>(p + 106)), nibble), 30, half_in_all(p));
    }
};
// Eight times the point, plus or minus one: d (point + 1/8 or - 1/8). The book has the one added; two are taken away again.
QT_INLINE Z two_less(Z v, __mmask8 where) { return _mm512_mask_sub_epi64(v, where, v, b8(2)); }  // no byte is below
struct GemvIQ1_S {
    using Block = block::IQ1_S;
    static constexpr Order order = eights;
    static constexpr int offset = 128, n = 1;
    static constexpr float unit = 1 / 8.f;
    Z high = bytes([](int i) { return 3 * (i % 8 / 2); });
    QT_INLINE GemvIQ1_S() {}
    QT_INLINE Z index(const uint8_t* p) const { return mask_or(spread(high, qwords_of_words(p + 34)), _mm512_set1_epi16(0x700), words_of_bytes(p + 2)); }
    QT_INLINE void unpack(const uint8_t* p, const uint16_t* index, Z* v, V* s) const {
        look_up_whole(whole_iq1, index, v);
        const __m128i h = _mm_loadu_si128((const __m128i*)(p + 34));
        const __mmask8 minus = _mm_movepi16_mask(h);
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = two_less(v[r], minus);
        s[0] = odd(low_dwords(_mm512_cvtepu16_epi64(_mm_srli_epi16(h, 11))), 14, half_in_all(p));
    }
};
struct GemvIQ1_M {
    using Block = block::IQ1_M;
    static constexpr Order order = eights;
    static constexpr int offset = 128, n = 2;
    static constexpr float unit = 1 / 8.f;
    Z high = bytes([](int i) { return 4 * (i % 8 / 2); });
    Z three[2] = {scale(0), scale(1)};
    static QT_INLINE Z scale(int odd) { return bytes([&](int i) { return (16 * (i / 16) + 6 * (i / 8 % 2) + 3 * odd - 1) & 63; }); }
    QT_INLINE GemvIQ1_M() {}
    QT_INLINE Z index(const uint8_t* p) const { return mask_or(spread(high, qwords_of_words(p + 32)), _mm512_set1_epi16(0x700), words_of_bytes(p)); }
    QT_INLINE void unpack(const uint8_t* p, const uint16_t* index, Z* v, V* s) const {
        look_up_whole(whole_iq1, index, v);
        const __m128i h = _mm_loadu_si128((const __m128i*)(p + 32));
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = two_less(v[r], _mm_test_epi16_mask(h, _mm_set1_epi16(short(8 << 4 * r))));
        const uint64_t scales = load<uint64_t>(p + 48);
        const V d = _mm512_set1_ps(widen(f16(_pext_u64(scales, 0xf000f000f000f000ull))));
        QT_UNROLL for (int i = 0; i < 2; i++) s[i] = odd(spread(three[i], _mm512_set1_epi64(int64_t(scales))), 14, d);
    }
};

// A type says: `unpack` 256 values to codes in the order of x, and scales of the lanes of registers 0 and 1, then 2 and 3,
// or where n is 1 of all four; two blocks where it takes two `together`. `unit` is what a row is times in the end. Where the offset is 0
// codes are unsigned, and minima follow the scales.
template <class Q>
struct RowsBook : Q {
    using Record = Packed256<Q::n>;
    static constexpr int block_bytes = sizeof(typename Q::Block), block_size = Q::Block::size, record = 256 / block_size, together = [] { if constexpr (requires { Q::together; }) return Q::together; else return 1; }();
    static constexpr bool minima = Q::offset == 0;
    QT_INLINE RowsBook() {}

    template <int C>
    QT_INLINE void multiply(const Z* v, const V* s, const Record* a, V* sum) const {
        QT_UNROLL for (int c = 0; c < C; c++) {
            QT_UNROLL for (int h = 0; h < Q::n; h++) {
                Z total = minima ? _mm512_setzero_si512() : load512(a[c].start[h]);
                QT_UNROLL for (int r = 4 / Q::n * h; r < 4 / Q::n * (h + 1); r++) total = _mm512_dpbusd_epi32(total, v[r], load512(a[c].q + 64 * r));
                sum[c] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_load_ps(a[c].unit[h])), s[h], sum[c]);
                if constexpr (minima) sum[c] = _mm512_fmadd_ps(s[Q::n + h], _mm512_load_ps(a[c].sums[h]), sum[c]);
            }
        }
    }
    // `blocks` blocks against C of `columns` columns
    template <int C>
    QT_INLINE void dots(const uint8_t* w, const Record* a, int columns, int blocks, V* sum, const uint8_t*& ahead) const {
        constexpr int step = record * together;  // blocks
        alignas(64) uint8_t rest[step * block_bytes];
        for (int b = 0; b < blocks; b += step, w += step * block_bytes, a += together * columns) {
            const int left = blocks - b;
            prefetch(ahead, (step < left ? step : left) * block_bytes);
            Z v[together][4];
            V s[together][minima ? 2 * Q::n : Q::n];
            if constexpr (together == 2) {
                Q::unpack(w, left > 1 ? w + block_bytes : w, v, s);
            } else {
                if (left < step) [[unlikely]] {  // the row ends inside: zero blocks, which meet zeros of x
                    __builtin_memset(rest, 0, sizeof rest);
                    __builtin_memcpy(rest, w, size_t(left) * block_bytes);
                    w = rest;
                }
                Q::unpack(w, v[0], s[0]);
            }
            QT_UNROLL for (int k = 0; k < together; k++)
                if (left > k) multiply<C>(v[k], s[k], a + k * columns, sum);
        }
    }
};

// Types whose points scalar code looks up: `index` of several blocks at a time, or it would wait for them.
template <class Q>
struct RowsPoints : RowsBook<Q> {
    using Rows = RowsBook<Q>;
    QT_INLINE RowsPoints() {}
    template <int C>
    QT_INLINE void dots(const uint8_t* w, const typename Rows::Record* a, int columns, int blocks, V* sum, const uint8_t*& ahead) const {
        constexpr int several = 8;
        alignas(64) uint16_t index[several][32];
        for (; blocks > 0; blocks -= several) {
            const int n = blocks < several ? blocks : several;
            for (int i = 0; i < n; i++) _mm512_store_si512(index[i], Q::index(w + i * Rows::block_bytes));
            spill(index);
            for (int i = 0; i < n; i++, w += Rows::block_bytes, a += columns) {
                prefetch(ahead, Rows::block_bytes);
                Z v[4];
                V s[Q::n];
                Q::unpack(w, index[i], v, s);
                Rows::template multiply<C>(v, s, a, sum);
            }
        }
    }
};
}  // namespace qt::QT_ISA
