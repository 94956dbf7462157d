// One row of blocks that look their values up in codebooks, times 1 to 8 columns, 256 values a step.
//
// A codebook of up to 512 points stays in registers and L1 as words of 2 or 4 bits a value: vpermi2w looks 32 points up at
// once, and shifts by 2 or 4 bits spread them over bytes. Larger ones are looked up in scalar code, on other pipes.
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
// Points as words: indices into the levels, 16 / K bits each.
template <size_t N>
struct alignas(64) Book { uint16_t of[N + 2] = {}; };  // gathers read 4 bytes at a time
template <size_t N, size_t K>
consteval Book<N> packed_book(const int8_t (&book)[N][K]) {
    const Levels l = levels(book);
    Book<N> b;
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < K; k++) {
            int at = 0;
            while (l.of[at] != book[i][k]) at++;
            b.of[i] |= uint16_t(at << 16 / K * k);
        }
    return b;
}
// Bit k of byte i: value k has a minus where signs have index i.
struct alignas(64) Signs { uint8_t of[128] = {}; };
consteval Signs packed_signs() {
    Signs s;
    for (int i = 0; i < 128; i++)
        for (int k = 0; k < 8; k++) s.of[i] |= uint8_t((codebook::signs[i][k] < 0) << k);
    return s;
}
constexpr Book book_iq2_xxs = packed_book(codebook::iq2_xxs), book_iq3_xxs = packed_book(codebook::iq3_xxs);
constexpr Book book_iq2_xs = packed_book(codebook::iq2_xs), book_iq3_s = packed_book(codebook::iq3_s);
constexpr Book book_iq2_s = packed_book(codebook::iq2_s);
constexpr Book book_iq1 = packed_book(codebook::iq1);
constexpr Signs sign_bytes = packed_signs();

// The words of 32 points, by index in words.
template <size_t N>
QT_INLINE Z look_up(const Book<N>& book, Z index) {
    constexpr int n = N / 64;
    Z part[n];
    QT_UNROLL for (int i = 0; i < n; i++) part[i] = _mm512_permutex2var_epi16(_mm512_load_si512(book.of + 64 * i), index, _mm512_load_si512(book.of + 64 * i + 32));
    QT_UNROLL for (int bit = 1; bit < n; bit *= 2) {
        const __mmask32 upper = _mm512_test_epi16_mask(index, _mm512_set1_epi16(short(64 * bit)));
        QT_UNROLL for (int i = 0; i < n; i += 2 * bit) part[i] = _mm512_mask_blend_epi16(upper, part[i], part[i + bit]);
    }
    return part[0];
}
template <size_t N>
QT_INLINE Z look_up_gathered(const Book<N>& book, Z index) {
    const Z even = _mm512_i32gather_epi32(_mm512_and_si512(index, _mm512_set1_epi32(0xffff)), book.of, 2);
    const Z odd = _mm512_i32gather_epi32(_mm512_srli_epi32(index, 16), book.of, 2);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
}

// 8 bits of each 64-bit lane for each of its bytes, from bit `from` + `step` times the byte on.
QT_INLINE Z spread_index(int from, int step) { return bytes([&](int i) { return (from + step * (i % 8)) & 63; }); }
QT_INLINE Z spread(Z index, Z x) { return _mm512_multishift_epi64_epi8(index, x); }
QT_INLINE Z level_table(const Levels& l, int times, int plus) { return bytes([&](int i) { return l.of[i % (l.n <= 4 ? 4 : 8)] * times + plus; }); }
QT_INLINE V half_in_all(const void* p) { return _mm512_cvtph_ps(_mm256_set1_epi16(load<int16_t>(p))); }
QT_INLINE Z low_dwords(Z x) { return _mm512_shuffle_epi32(x, _MM_PERM_CCAA); }  // of each 64-bit lane, twice
QT_INLINE V scaled(Z x, V by, V plus) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), by, plus); }
QT_INLINE V times(V x, float y) { return _mm512_mul_ps(x, _mm512_set1_ps(y)); }
QT_INLINE Z qwords_of_bytes(const void* p) { return _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p)); }
QT_INLINE Z qwords_of_words(const void* p) { return _mm512_cvtepu16_epi64(_mm_loadu_si128((const __m128i*)p)); }
QT_INLINE Z qwords_of_dwords(const void* p) { return _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i*)p)); }
QT_INLINE Z words_of_bytes(const void* p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p)); }

// Values of two bits in words of 8, or of four in words of 4, and signs: register r holds values 8 r to 8 r + 7 of each group.
template <int bits>
struct Points {
    Z pick[4] = {at(0), at(1), at(2), at(3)}, table;
    static QT_INLINE Z at(int r) { return spread_index(bits == 2 ? 16 * r : 32 * (r % 2), bits); }
    QT_INLINE Points(const Levels& l, int times = 1) : table(level_table(l, times, 128)) {}
    QT_INLINE Z value(int r, Z words) const { return _mm512_permutexvar_epi8(spread(pick[r], words), table); }  // reads 6 bits
};
struct Signed {
    Z one = b8(1), bit[4] = {spread_index(0, 1), spread_index(8, 1), spread_index(16, 1), spread_index(24, 1)};
    Z first = once(sign_bytes.of), second = once(sign_bytes.of + 64);
    QT_INLINE Signed() {}
    QT_INLINE Z by_index(Z index) const { return _mm512_permutex2var_epi8(first, index, second); }  // reads 7 bits
    // `minus`: sign bits of the four registers in bytes 0 to 3 of each group. 128 + x becomes 128 - x.
    QT_INLINE Z apply(int r, Z minus, Z v) const {
        return _mm512_mask_sub_epi8(v, _mm512_test_epi8_mask(spread(bit[r], minus), one), _mm512_setzero_si512(), v);
    }
};

// A type says: `unpack` 256 values to codes in the order of x, and scales of the lanes of registers 0 and 1, then 2 and 3,
// or where n is 1 of all four.
struct GemvIQ2_XXS {
    using Block = block::IQ2_XXS;
    static constexpr Order order = eights;
    static constexpr int offset = 128;
    static constexpr int n = 1;
    Points<2> points{levels(codebook::iq2_xxs)};
    Signed sign;
    Z index = bytes([](int i) { return i % 2 ? 0x80 : 8 * (i / 8 % 2) + i % 8 / 2; }), seven = spread_index(32, 7);
    QT_INLINE GemvIQ2_XXS() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z q = once(p + 2), words = look_up(book_iq2_xxs, _mm512_shuffle_epi8(q, index)), minus = sign.by_index(spread(seven, q));
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = sign.apply(r, minus, points.value(r, words));
        const V d = half_in_all(p);
        s[0] = scaled(_mm512_shuffle_epi32(_mm512_srli_epi32(q, 28), _MM_PERM_DDBB), times(d, 1 / 4.f), times(d, 1 / 8.f));
    }
};
struct GemvIQ2_XS {
    using Block = block::IQ2_XS;
    static constexpr Order order = eights;
    static constexpr int offset = 128;
    static constexpr int n = 2;
    Points<2> points{levels(codebook::iq2_xs)};
    Signed sign;
    Z seven = spread_index(9, 16);
    QT_INLINE GemvIQ2_XS() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z q = once(p + 2), words = look_up(book_iq2_xs, q), minus = sign.by_index(spread(seven, q));
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = sign.apply(r, minus, points.value(r, words));
        two_scales(qwords_of_bytes(p + 66), half_in_all(p), s);
    }
    // A nibble for each 16 values.
    static QT_INLINE void two_scales(Z x, V d, V* s) {
        const Z n = low_dwords(x);
        s[0] = scaled(_mm512_and_si512(n, _mm512_set1_epi32(15)), times(d, 1 / 4.f), times(d, 1 / 8.f));
        s[1] = scaled(_mm512_and_si512(n, _mm512_set1_epi32(0xf0)), times(d, 1 / 64.f), times(d, 1 / 8.f));
    }
};
struct GemvIQ2_S {
    using Block = block::IQ2_S;
    static constexpr Order order = eights;
    static constexpr int offset = 128;
    static constexpr int n = 2;
    Points<2> points{levels(codebook::iq2_s)};
    Signed sign;
    Z high = bytes([](int i) { return i % 8 - 1; });  // two bits for each index of a group: to the upper byte of its word
    QT_INLINE GemvIQ2_S() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z index = mask_or(spread(high, qwords_of_bytes(p + 66)), _mm512_set1_epi16(0x300), words_of_bytes(p + 2));
        const Z words = look_up(book_iq2_s, index), minus = qwords_of_dwords(p + 34);
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = sign.apply(r, minus, points.value(r, words));
        GemvIQ2_XS::two_scales(qwords_of_bytes(p + 74), half_in_all(p), s);
    }
};
struct GemvIQ3_XXS {
    using Block = block::IQ3_XXS;
    static constexpr Order order = eights;
    static constexpr int offset = 128;
    static constexpr int n = 1;
    Points<4> points{levels(codebook::iq3_xxs)};
    Signed sign;
    Z index[2] = {half(0), half(4)}, seven = spread_index(0, 7);
    static QT_INLINE Z half(int from) { return bytes([&](int i) { return i % 2 ? 0x80 : 8 * (i / 8 % 2) + from + i % 8 / 2; }); }
    QT_INLINE GemvIQ3_XXS() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z q = once(p + 2), rest = qwords_of_dwords(p + 66), minus = sign.by_index(spread(seven, rest));
        Z words[2];
        QT_UNROLL for (int h = 0; h < 2; h++) words[h] = look_up(book_iq3_xxs, _mm512_shuffle_epi8(q, index[h]));
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = sign.apply(r, minus, points.value(r, words[r / 2]));
        const V d = half_in_all(p);
        s[0] = scaled(low_dwords(_mm512_srli_epi64(rest, 28)), times(d, 1 / 2.f), times(d, 1 / 4.f));
    }
};
struct GemvIQ3_S {
    using Block = block::IQ3_S;
    static constexpr Order order = eights;
    static constexpr int offset = 128;
    static constexpr int n = 1;
    Points<4> points{levels(codebook::iq3_s)};
    Signed sign;
    Z index[2] = {GemvIQ3_XXS::half(0), GemvIQ3_XXS::half(4)}, nibble = dwords([](int i) { return 4 * (i / 2); });
    // The ninth bit of each index of a group: to the upper byte of its word.
    Z ninth[2] = {bytes([](int i) { return i % 8 / 2; }), bytes([](int i) { return 4 + i % 8 / 2; })};
    QT_INLINE GemvIQ3_S() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z q = once(p + 2), high = qwords_of_bytes(p + 66), minus = qwords_of_dwords(p + 74);
        Z words[2];
        QT_UNROLL for (int h = 0; h < 2; h++)
            words[h] = look_up(book_iq3_s, mask_or(spread(ninth[h], high), _mm512_set1_epi16(0x100), _mm512_shuffle_epi8(q, index[h])));
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = sign.apply(r, minus, points.value(r, words[r / 2]));
        const V d = half_in_all(p);
        const Z n = _mm512_and_si512(_mm512_srlv_epi32(_mm512_set1_epi32(load<int32_t>(p + 106)), nibble), _mm512_set1_epi32(15));
        s[0] = scaled(n, _mm512_add_ps(d, d), d);
    }
};
// Eight times the point, plus or minus one: d (point + 1/8 or - 1/8).
struct GemvIQ1_S {
    using Block = block::IQ1_S;
    static constexpr Order order = eights;
    static constexpr int offset = 128;
    static constexpr int n = 1;
    Points<2> points{levels(codebook::iq1), 8};
    Z high = bytes([](int i) { return 3 * (i % 8 / 2); });
    QT_INLINE GemvIQ1_S() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z h = qwords_of_words(p + 34), index = mask_or(spread(high, h), _mm512_set1_epi16(0x700), words_of_bytes(p + 2));
        const Z words = look_up_gathered(book_iq1, index);
        const Z shift = _mm512_mask_mov_epi64(b8(1), _mm512_test_epi64_mask(h, _mm512_set1_epi64(0x8000)), b8(-1));
        QT_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_add_epi8(points.value(r, words), shift);
        const V d = times(half_in_all(p), 1 / 8.f);
        s[0] = scaled(low_dwords(_mm512_and_si512(_mm512_srli_epi64(h, 12), _mm512_set1_epi64(7))), _mm512_add_ps(d, d), d);
    }
};
struct GemvIQ1_M {
    using Block = block::IQ1_M;
    static constexpr Order order = eights;
    static constexpr int offset = 128;
    static constexpr int n = 2;
    Points<2> points{levels(codebook::iq1), 8};
    Z high = bytes([](int i) { return 4 * (i % 8 / 2); });
    Z place = dwords([](int i) { return i % 2 ? 0 : 16 * (i / 4) + 6 * (i / 2 % 2); });
    QT_INLINE GemvIQ1_M() {}
    QT_INLINE void unpack(const uint8_t* p, Z* v, V* s) const {
        const Z h = qwords_of_words(p + 32), index = mask_or(spread(high, h), _mm512_set1_epi16(0x700), words_of_bytes(p));
        const Z words = look_up_gathered(book_iq1, index);
        QT_UNROLL for (int r = 0; r < 4; r++) {
            const Z shift = _mm512_mask_mov_epi64(b8(1), _mm512_test_epi64_mask(h, _mm512_set1_epi64(8 << 4 * r)), b8(-1));
            v[r] = _mm512_add_epi8(points.value(r, words), shift);
        }
        const uint64_t scales = load<uint64_t>(p + 48);
        const V d = _mm512_set1_ps(widen(f16(_pext_u64(scales, 0xf000f000f000f000ull))) * (1 / 8.f));
        const Z n = low_dwords(_mm512_srlv_epi64(_mm512_set1_epi64((int64_t)scales), place));
        s[0] = scaled(_mm512_and_si512(n, _mm512_set1_epi32(7)), _mm512_add_ps(d, d), d);
        s[1] = scaled(_mm512_and_si512(n, _mm512_set1_epi32(7 << 3)), times(d, 1 / 4.f), d);
    }
};

template <class Q>
struct RowsBook : Q {
    using Record = Packed256<Q::n>;
    static constexpr int block_bytes = sizeof(typename Q::Block), block_size = Q::Block::size, record = 256 / block_size;
    QT_INLINE RowsBook() {}

    // `blocks` blocks against C of `columns` columns
    template <int C>
    QT_INLINE void dots(const uint8_t* w, const Record* a, int columns, int blocks, V* sum, const uint8_t*& ahead) const {
        alignas(64) uint8_t rest[record * block_bytes];
        for (int b = 0; b < blocks; b += record, w += record * block_bytes, a += columns) {
            prefetch(ahead, record * block_bytes);
            if (record > 1 && blocks - b < record) [[unlikely]] {  // the row ends inside: zero blocks, which meet zeros of x
                __builtin_memset(rest, 0, record * block_bytes);
                __builtin_memcpy(rest, w, size_t(blocks - b) * block_bytes);
                w = rest;
            }
            Z v[4];
            V s[Q::n];
            Q::unpack(w, v, s);
            QT_UNROLL for (int c = 0; c < C; c++) {
                QT_UNROLL for (int h = 0; h < Q::n; h++) {
                    Z total = load512(a[c].start[h]);
                    QT_UNROLL for (int r = 4 / Q::n * h; r < 4 / Q::n * (h + 1); r++) total = _mm512_dpbusd_epi32(total, v[r], load512(a[c].q + 64 * r));
                    sum[c] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_load_ps(a[c].unit[h])), s[h], sum[c]);
                }
            }
        }
    }
};
}  // namespace qt::QT_ISA
