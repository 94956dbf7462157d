// Blocks to rows of a panel, 256 columns at a time: in registers, 9 to 45 cycles each.
#pragma once
#include "codebooks.h"
#include "gemm_tile.h"
#include "gemv_32.h"
#include "gemv_books.h"
#include "gemv_small.h"
#include "isa/decode_k.h"
#include "isa/decode_microscaling.h"
#include "isa/decode_ternary.h"

namespace qt::QT_ISA {

constexpr Form plain16{16}, plain32{32}, plain256{256}, minima16{16, floats, 0}, minima32{32, floats, 0};
constexpr Form with_words{32, words32, 0};                                     // Q4_K, Q5_K
constexpr Form folded{256, none, 127}, folded_with_words{256, words16, 0};  // Q3_K, Q2_K: scale * code fits a byte

// A type with 256 values in a block, through its decoder.
template <Form f, class Block>
static void unpack(const Block* b, Panel<f>& p, int row) {
    decode(*b, PanelAt<f.sub>{p.q[row], p.s[row], p.m[row]});
    if (f.minima == floats)
        for (float& m : p.m[row]) m *= 0x1p-7f;
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

static void unpack(const block::Q4_K* b, Panel<with_words>& p, int row) {
    QT_UNROLL for (int i = 0; i < 4; i++) _mm512_store_si512(p.q[row] + 64 * i, nibbles64(b->qs + 32 * i));
    scales_and_words(b->scales, b->d, b->dmin, p, row);
}

static void unpack(const block::Q5_K* b, Panel<with_words>& p, int row) {
    const Z high = twice(b->qh);
    QT_UNROLL for (int i = 0; i < 4; i++) {
        const int low = 4 - 2 * i & 63, next = 3 - 2 * i & 63;  // to the left, within 64 bits
        const Z fifth = _mm512_rolv_epi64(high, _mm512_setr_epi64(low, low, low, low, next, next, next, next));
        _mm512_store_si512(p.q[row] + 64 * i, mask_or(fifth, b8(16), nibbles64(b->qs + 32 * i)));
    }
    scales_and_words(b->scales, b->d, b->dmin, p, row);
}

static void unpack(const block::Q6_K* b, Panel<plain16>& p, int row) {
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

static void unpack(const block::Q3_K* b, Panel<folded>& p, int row) {
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

static void unpack(const block::Q2_K* b, Panel<folded_with_words>& p, int row) {
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

static void unpack(const block::IQ4_XS* b, Panel<plain32>& p, int row) {
    QT_UNROLL for (int i = 0; i < 8; i++) through(codebook::iq4[0], b->qs + 16 * i, p.q[row] + 32 * i);
    const __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load<int32_t>(b->scales_l)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(b->scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    const __m256i s = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4));
    _mm256_storeu_ps(p.s[row], _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(s, _mm256_set1_epi32(32))), _mm256_set1_ps(widen(b->d))));
}

static void unpack(const block::MXFP4* b, Panel<plain32>& p, int row) {
    QT_UNROLL for (int i = 0; i < 8; i++) through(codebook::fp4[0], b[i].qs, p.q[row] + 32 * i), p.s[row][i] = half_e8m0(b[i].e);
}

// The scales of 8 blocks.
template <class Block>
QT_INLINE void eight_halves(const Block* b, float* to) {
    const __m128i d = _mm_setr_epi16(short(b[0].d), short(b[1].d), short(b[2].d), short(b[3].d), short(b[4].d), short(b[5].d), short(b[6].d), short(b[7].d));
    _mm256_storeu_ps(to, _mm256_cvtph_ps(d));
}
static void unpack(const block::Q8_0* b, Panel<plain32>& p, int row) {
    QT_UNROLL for (int i = 0; i < 4; i++) {
        const __m256i low = _mm256_loadu_si256((const __m256i*)b[2 * i].qs), high = _mm256_loadu_si256((const __m256i*)b[2 * i + 1].qs);
        _mm512_store_si512(p.q[row] + 64 * i, _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), b8(128)));
    }
    eight_halves(b, p.s[row]);
}

// 8 blocks of a scale and 16 bytes of nibbles, through a table of signed values.
template <class Block>
struct NibbleBlocks {
    static constexpr int stride = sizeof(Block), before = 64 - 2 * stride;  // the last two blocks are in the 64 bytes that end with them
    Z two = at(0), last = at(before), table;
    static QT_INLINE Z at(int from) { return bytes([&](int i) { return from + stride * (i / 32) + 2 + i % 16; }); }
    template <class F>
    QT_INLINE NibbleBlocks(F value) : table(bytes([&](int i) { return 128 + value(i % 16); })) {}
    QT_INLINE void operator()(const Block* b, Panel<plain32>& p, int row) const {
        QT_UNROLL for (int i = 0; i < 4; i++) {
            const Z q = _mm512_permutexvar_epi8(i < 3 ? two : last, load512((const uint8_t*)(b + 2 * i) - (i < 3 ? 0 : before)));
            // Of an index 6 bits are read, and the table repeats.
            _mm512_store_si512(p.q[row] + 64 * i, _mm512_permutexvar_epi8(_mm512_srlv_epi64(q, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)), table));
        }
        eight_halves(b, p.s[row]);
    }
};

// What follows is unpacked as for few columns, and brought to file order.

// The low or the high halves of both.
QT_INLINE Z half_lanes(Z a, Z b, int high) { return high ? _mm512_shuffle_i32x4(a, b, 0xee) : _mm512_shuffle_i32x4(a, b, 0x44); }

// Registers in one of the orders of gemv_pack.h to file order.
template <Order order>
QT_INLINE void to_file_order(const Z* v, Z* o) {
    if constexpr (order == sixteens) {
        Z half[4];  // of 8 groups the first 8 values and the second, then of the 8 others
        QT_UNROLL for (int h = 0; h < 2; h++) {
            const Z y = _mm512_shuffle_epi32(v[2 + h], _MM_PERM_CDAB);
            half[h] = _mm512_mask_blend_epi32(0xaaaa, v[h], y), half[2 + h] = _mm512_mask_blend_epi32(0xaaaa, y, v[h]);
        }
        QT_UNROLL for (int i = 0; i < 4; i++) {
            const int k = i % 2 * 4;
            o[i] = _mm512_permutex2var_epi64(half[i / 2 * 2], _mm512_setr_epi64(k, k + 8, k + 1, k + 9, k + 2, k + 10, k + 3, k + 11), half[i / 2 * 2 + 1]);
        }
        return;
    }
    if constexpr (order == half_blocks) {
        QT_UNROLL for (int h = 0; h < 2; h++) {  // lanes of 128 bits: a half of each of four blocks
            const Z first = h ? _mm512_unpackhi_epi64(v[0], v[2]) : _mm512_unpacklo_epi64(v[0], v[2]);
            const Z second = h ? _mm512_unpackhi_epi64(v[1], v[3]) : _mm512_unpacklo_epi64(v[1], v[3]);
            o[2 * h] = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second);
            o[2 * h + 1] = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), second);
        }
        return;
    }
    Z a[4];  // values in a row within lanes of 128 bits
    if constexpr (order == eights) {
        a[0] = _mm512_unpacklo_epi64(v[0], v[1]), a[1] = _mm512_unpacklo_epi64(v[2], v[3]), a[2] = _mm512_unpackhi_epi64(v[0], v[1]), a[3] = _mm512_unpackhi_epi64(v[2], v[3]);
    } else {
        const Z low[2] = {_mm512_unpacklo_epi8(v[0], v[1]), _mm512_unpacklo_epi8(v[2], v[3])}, high[2] = {_mm512_unpackhi_epi8(v[0], v[1]), _mm512_unpackhi_epi8(v[2], v[3])};
        a[0] = _mm512_unpacklo_epi16(low[0], low[1]), a[1] = _mm512_unpackhi_epi16(low[0], low[1]);
        a[2] = _mm512_unpacklo_epi16(high[0], high[1]), a[3] = _mm512_unpackhi_epi16(high[0], high[1]);
    }
    if constexpr (order == even_fours) {
        QT_UNROLL for (int i = 0; i < 4; i++) {
            const int k = i / 2 * 4;
            const Z turns = _mm512_setr_epi32(k, k + 8, k + 1, k + 9, k + 2, k + 10, k + 3, k + 11, k + 16, k + 24, k + 17, k + 25, k + 18, k + 26, k + 19, k + 27);
            o[i] = _mm512_permutex2var_epi32(a[i % 2 * 2], turns, a[i % 2 * 2 + 1]);
        }
    } else {
        QT_UNROLL for (int h = 0; h < 2; h++) {
            const Z low = half_lanes(a[0], a[1], h), high = half_lanes(a[2], a[3], h);
            o[2 * h] = _mm512_shuffle_i32x4(low, high, 0x88), o[2 * h + 1] = _mm512_shuffle_i32x4(low, high, 0xdd);
        }
    }
}

// Q of gemv_32.h, gemv_books.h or gemv_small.h: a scale in each lane of 32 bits, or in two.
template <class Q, Form f>
struct Registers {
    Q type;
    // A lane that has the scale of each group.
    Z each = dwords([](int i) { return Q::order == sixteens ? 2 * (i % 8) + i / 8 : Q::order == half_blocks ? 4 * (i % 4) + 2 * (i / 4) : 2 * i; });
    QT_INLINE Registers() {}
    QT_INLINE void operator()(const typename Q::Block* b, Panel<f>& p, int row) const {
        const uint8_t* from = (const uint8_t*)b;
        Z v[2][4], o[4];
        V s[2][Q::offset ? Q::n : 2];
        if constexpr (requires { Q::together; }) {
            type.unpack(from, from, v, s);
        } else if constexpr (requires { type.index(from); }) {
            alignas(64) uint16_t index[32];
            _mm512_store_si512(index, type.index(from));
            spill(index);
            type.unpack(from, index, v[0], s[0]);
        } else {
            type.unpack(from, v[0], s[0]);
        }
        if constexpr (Q::offset != 128 && Q::offset != 0) QT_UNROLL for (Z& x : v[0]) x = _mm512_add_epi8(x, b8(128 - Q::offset));
        if constexpr (requires { Q::unit; }) QT_UNROLL for (V& x : s[0]) x = times(x, Q::unit);
        to_file_order<Q::order>(v[0], o);
        QT_UNROLL for (int i = 0; i < 4; i++) _mm512_store_si512(p.q[row] + 64 * i, o[i]);
        const V first = s[0][0], last = s[0][Q::n - 1];
        if constexpr (f.sub == 256) p.s[row][0] = _mm512_cvtss_f32(first);
        else if constexpr (Q::order == even_fours) _mm256_storeu_ps(p.s[row], _mm512_castps512_ps256(first));
        else if constexpr (f.sub == 32) _mm256_storeu_ps(p.s[row], _mm512_castps512_ps256(_mm512_permutexvar_ps(each, first)));
        else if constexpr (Q::order == sixteens) _mm512_store_ps(p.s[row], _mm512_permutexvar_ps(each, first));
        else if constexpr (Q::n == 1) _mm512_store_ps(p.s[row], first);
        else _mm512_store_ps(p.s[row], _mm512_mask_mov_ps(first, 0xaaaa, last));
        if constexpr (f.minima == floats) _mm256_storeu_ps(p.m[row], _mm512_castps512_ps256(_mm512_permutexvar_ps(each, times(s[0][1], -0x1p-7f))));
    }
};

struct Digits {
    QT_INLINE Digits() {}
    QT_INLINE void operator()(const block::TQ1_0* b, Panel<plain256>& p, int row) const {
        Z first, last;
        GemvTQ1_0::digits((const uint8_t*)b, first, last);
        QT_UNROLL for (int k = 0; k < 5; k++) {
            const Z x = _mm512_add_epi8(_mm512_and_si512(k < 4 ? right(first, 2 * k) : last, b8(3)), b8(127));
            _mm256_storeu_si256((__m256i*)(p.q[row] + 32 * k), _mm512_castsi512_si256(x));
            _mm_storeu_si128((__m128i*)(p.q[row] + 160 + 16 * k), _mm512_extracti32x4_epi32(x, 2));
            if (k < 4) _mm_storeu_si32(p.q[row] + 240 + 4 * k, _mm512_extracti32x4_epi32(x, 3));
        }
        p.s[row][0] = widen(b->d);
    }
};

// What unpacks a type, with the constants it wants at hand.
template <class Block, Form f>
struct Unpacker {
    QT_INLINE void operator()(const Block* b, Panel<f>& p, int row) const { unpack(b, p, row); }
};
#define QT_UNPACKER(name, form, ...) \
    template <>                      \
    struct Unpacker<block::name, form> : __VA_ARGS__
QT_UNPACKER(Q4_0, plain32, NibbleBlocks<block::Q4_0>) { QT_INLINE Unpacker() : NibbleBlocks([](int i) { return i - 8; }) {} };
QT_UNPACKER(IQ4_NL, plain32, NibbleBlocks<block::IQ4_NL>) { QT_INLINE Unpacker() : NibbleBlocks([](int i) { return codebook::iq4[0][i]; }) {} };
#define QT_REGISTERS(name, form) QT_UNPACKER(name, form, Registers<Gemv##name, form>) { QT_INLINE Unpacker() {} };
QT_REGISTERS(Q4_1, minima32)
QT_REGISTERS(Q5_0, plain32)
QT_REGISTERS(Q5_1, minima32)
QT_REGISTERS(IQ2_XXS, plain32)
QT_REGISTERS(IQ2_XS, plain16)
QT_REGISTERS(IQ2_S, plain16)
QT_REGISTERS(IQ3_XXS, plain32)
QT_REGISTERS(IQ3_S, plain32)
QT_REGISTERS(IQ1_S, plain32)
QT_REGISTERS(IQ1_M, plain16)
QT_REGISTERS(NVFP4, plain16)
QT_REGISTERS(Q1_0, plain32)
QT_REGISTERS(Q2_0, plain32)
QT_UNPACKER(TQ1_0, plain256, Digits) { QT_INLINE Unpacker() {} };
#undef QT_REGISTERS
#undef QT_UNPACKER
}  // namespace qt::QT_ISA
