// One row of 32-value blocks times 1 to 8 columns: 128 values a step, as two registers whose 16-byte lanes are the 4 blocks,
// so that one register of scales serves both.
#pragma once
#include "codebooks.h"
#include "gemv_pack.h"

namespace qt::QT_ISA {

// 4 consecutive blocks of `stride` bytes, 64 < 4 * stride <= 128, as two overlapping registers.
template <int stride>
struct Quad {
    static constexpr int second = 4 * stride - 64;
    Z a, b;
    QT_INLINE Quad(const uint8_t* p) : a(once(p)), b(once(p + second)) {}
    static constexpr int at(int i) { return i < 64 ? i : 64 + i - second; }
    QT_INLINE Z pick(Z index) const { return _mm512_permutex2var_epi8(a, index, b); }
};
// Byte `from` + 0..15 of each block; f16 word at byte `from` of each block; bit i of the two bytes at `from`, spread over bytes.
template <int stride> QT_INLINE Z run_index(int from) { return bytes([&](int i) { return Quad<stride>::at(stride * (i / 16) + from + i % 16); }); }
template <int stride> QT_INLINE Z word_index32(int from) { return bytes([&](int i) { return Quad<stride>::at(stride * (i / 8 % 4) + from + i % 2); }); }
template <int stride> QT_INLINE Z bits_index(int from) { return bytes([&](int i) { return Quad<stride>::at(stride * (i / 16) + from + i % 16 / 8); }); }
QT_INLINE V halves(Z z) { return _mm512_cvtph_ps(_mm512_castsi512_si256(z)); }

// Codes as unsigned bytes are value + offset; with minima the value is d * code + m.
template <class B, int from>
struct Nibbles {
    QT_INLINE Nibbles() {}
    static constexpr int stride = sizeof(B);
    Z run = run_index<stride>(from), word = word_index32<stride>(0);
    QT_INLINE void codes(const Quad<stride>& p, Z& w0, Z& w1) const {
        Z q = keep(p.pick(run));
        w0 = _mm512_and_si512(q, b8(15)), w1 = _mm512_and_si512(right(q, 4), b8(15));
    }
    QT_INLINE V scale(const Quad<stride>& p) const { return halves(p.pick(word)); }
};
template <class B, int from, int high>
struct FiveBits : Nibbles<B, from> {
    QT_INLINE FiveBits() {}
    using Base = Nibbles<B, from>;
    static constexpr int stride = sizeof(B);
    Z first = bits_index<stride>(high), second = bits_index<stride>(high + 2), bit = bytes([](int i) { return 1 << i % 8; });
    QT_INLINE void codes(const Quad<stride>& p, Z& w0, Z& w1) const {
        Base::codes(p, w0, w1);
        const Z sixteen = b8(16);
        w0 = _mm512_or_si512(w0, _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(p.pick(first), bit), sixteen));
        w1 = _mm512_or_si512(w1, _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(p.pick(second), bit), sixteen));
    }
};
struct GemvQ4_1 : Nibbles<block::Q4_1, 4> {
    QT_INLINE GemvQ4_1() {}
    static constexpr int offset = -1;
    static constexpr bool minima = true;
    Z min_word = word_index32<stride>(2);
};
struct GemvQ5_0 : FiveBits<block::Q5_0, 6, 2> {
    QT_INLINE GemvQ5_0() {}
    static constexpr int offset = 16;
    static constexpr bool minima = false;
};
struct GemvQ5_1 : FiveBits<block::Q5_1, 8, 4> {
    QT_INLINE GemvQ5_1() {}
    static constexpr int offset = -1;
    static constexpr bool minima = true;
    Z min_word = word_index32<stride>(2);
};
struct GemvQ8_0 {
    static constexpr int stride = sizeof(block::Q8_0), offset = 128;
    static constexpr bool minima = false;
    static_assert(stride == 34);
    // 136 bytes: three registers would cover them, but each half needs two.
    Z first = bytes([](int i) { return 34 * (i / 16) + 2 + i % 16; });
    Z second = bytes([](int i) { int f = 34 * (i / 16) + 18 + i % 16; return f < 68 ? f - 4 : 64 + f - 72; });
    Z word = words([](int i) { return 17 * (i / 4 % 4); });
    QT_INLINE void decode(const uint8_t* p, Z& w0, Z& w1, V& d) const {
        const Z a = once(p), b = once(p + 64);
        w0 = _mm512_xor_si512(_mm512_permutex2var_epi8(a, first, b), b8(0x80));
        w1 = _mm512_xor_si512(_mm512_permutex2var_epi8(load512(p + 4), second, load512(p + 72)), b8(0x80));
        d = halves(_mm512_permutex2var_epi16(a, word, b));
    }
};

template <class Q>
struct Rows32 : Q {
    QT_INLINE Rows32() {}
    using Record = Packed128;
    static constexpr int record = 4, block_bytes = Q::stride, block_size = 32;

    // `groups` blocks against C of `columns` columns
    template <int C>
    QT_INLINE void dots(const uint8_t* w, const Record* a, int columns, int groups, V* sum, const uint8_t*& ahead) const {
        constexpr int size = 4 * Q::stride;
        alignas(64) uint8_t rest[size];
        for (int g = 0; g < groups; g += 4, w += size, a += columns) {
            prefetch(ahead, size);
            if (groups - g < 4) [[unlikely]] {  // the row ends inside: zero blocks, which meet zeros of x
                __builtin_memset(rest, 0, size);
                __builtin_memcpy(rest, w, size_t(groups - g) * Q::stride);
                w = rest;
            }
            Z w0, w1;
            V d, m;
            if constexpr (requires(const Q& q) { q.decode(w, w0, w1, d); }) {
                Q::decode(w, w0, w1, d);
            } else {
                const Quad<Q::stride> p(w);
                Q::codes(p, w0, w1);
                d = Q::scale(p);
                if constexpr (Q::minima) m = halves(p.pick(Q::min_word));
            }
            QT_UNROLL for (int c = 0; c < C; c++) {
                const Z start = load512(a[c].start);
                const V unit = _mm512_load_ps(a[c].unit);
                Z total = _mm512_dpbusd_epi32(Q::minima ? _mm512_setzero_si512() : start, w0, load512(a[c].q));
                total = _mm512_dpbusd_epi32(total, w1, load512(a[c].q + 64));
                sum[c] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(total), unit), d, sum[c]);
                if constexpr (Q::minima) sum[c] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(start), unit), m, sum[c]);
            }
        }
    }
};
}  // namespace qt::QT_ISA
