// 256 columns of a row as bytes in registers, 32 at a time, and their scales: once for every regime and instruction set but
// AVX-512. unpack(blocks, s, m, f) fills s (and m, where the type has minima), then calls f(j, codes of columns 32j ..).
// Codes are offset as CodingOf says.
#pragma once
#include "decode_iq.h"
#include "decode_k.h"
#include "decode_legacy.h"
#include "decode_microscaling.h"
#include "decode_ternary.h"
#include "isa/coded.h"
#include "isa/dot8.h"
#include "isa/panel.h"

namespace qt::QT_ISA {

// 32 bytes. Shifts are of 16 bits, so they are followed by a mask.
struct Codes {
    static constexpr int parts = 8 / VL;
    Words at[parts];
};
template <class F>
QT_INLINE Codes each_part(F f) {
    Codes c;
    for (int i = 0; i < Codes::parts; i++) c.at[i] = f(i);
    return c;
}
QT_INLINE Codes load_codes(const void* p) {
    return each_part([&](int i) { return in_order(get<Words>((const uint8_t*)p + i * sizeof(Words))); });  // loaded once
}
QT_INLINE void store_codes(uint8_t* p, Codes c) {
    for (int i = 0; i < Codes::parts; i++) put(p + i * sizeof(Words), c.at[i]);
}
QT_INLINE Codes operator&(Codes a, uint8_t mask) {
    return each_part([&](int i) { return a.at[i] & uint16_t(mask * 0x101); });
}
QT_INLINE Codes operator|(Codes a, Codes b) {
    return each_part([&](int i) { return a.at[i] | b.at[i]; });
}
QT_INLINE Codes operator>>(Codes a, int n) {
    return each_part([&](int i) { return a.at[i] >> n; });
}
QT_INLINE Codes operator<<(Codes a, int n) {
    return each_part([&](int i) { return a.at[i] << n; });
}
// Signed bytes: bytes below 128, less a smaller one.
QT_INLINE Codes less(Codes a, int by) {
    return each_part([&](int i) { return ((a.at[i] | uint16_t(0x8080)) - uint16_t(by * 0x101)) ^ uint16_t(0x8080); });
}
QT_INLINE Codes shifted(Codes a, int left) { return left >= 0 ? a << left : a >> -left; }

// 16 bytes of nibbles: the low ones, then the high ones.
QT_INLINE Codes nibbles16(const uint8_t* p) {
#if defined(__AVX2__)
    const __m128i q = get<__m128i>(p);
    return Codes{{(Words)_mm256_set_m128i(_mm_srli_epi16(q, 4), q)}} & 15;
#else
    const Words q = get<Words>(p);
    return Codes{{q, q >> 4}} & 15;
#endif
}
// The same through a table of 16 values.
QT_INLINE Codes values16(const int8_t* table, const uint8_t* p) {
#if defined(__AVX2__)
    return {{(Words)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(get<__m128i>(table)), (__m256i)nibbles16(p).at[0])}};
#else
    int8_t q[32];
    nibble_values(table, p, q);
    return load_codes(q);
#endif
}
// 32 bits: 16 in each byte whose bit is set.
QT_INLINE Codes fifth_bits(const uint8_t* p) {
    uint8_t all[32];
    spread(load<uint32_t>(p), all);
    return load_codes(all) & 16;
}

struct Values16 { int8_t of[16]; };
static consteval Values16 offset_values(const int8_t* values, int offset) {
    Values16 v{};
    for (int i = 0; i < 16; i++) v.of[i] = int8_t(values[i] + offset);
    return v;
}
static constexpr Values16 fp4_codes = offset_values(codebook::fp4[0], CodingOf<block::MXFP4>::offset);

// The last n blocks of a row, fewer than 256 columns: with blocks of zeros, which meet zeros of x.
template <class Block>
struct Rest {
    Block blocks[panel_columns / Block::size];
    __attribute__((always_inline)) Rest(const Block* from, size_t n) {
        __builtin_memset(blocks, 0, sizeof blocks);
        __builtin_memcpy(blocks, from, n * sizeof(Block));
    }
};

// Types without a faster way, through their decoder.
template <class Block>
static __attribute__((noinline)) void decode_codes(const Block* b, PanelAt<CodingOf<Block>::sub, CodingOf<Block>::offset> to) {
    for (int k = 0; k < panel_columns; k += Block::size) decode(b[k / Block::size], to + k);
}
template <class Block, class F>
QT_INLINE void unpack(const Block* b, float* s, float* m, F f) {
    uint8_t q[panel_columns];
    decode_codes(b, {q, s, m});
    for (int j = 0; j < 8; j++) f(j, load_codes(q + 32 * j));
}

// Scales are made 8 at a time and stored at once: narrow stores read back by a wide load would stall. They are read back
// one by one, as a broadcast load is free where a shuffle is not; the compiler is not to know what it reads.
QT_INLINE void put_eight(float* to, const V* v) {
    for (int i = 0; i < 8; i += VL) store(to + i, v[i / VL]);
    asm volatile("" ::"r"(to) : "memory");
}

// d times each of 8 bytes.
template <bool is_signed = false>
QT_INLINE void eight_bytes(uint64_t x, float d, float* to) {
    V v[8 / VL];
#if defined(__AVX2__)
    const __m128i bytes = _mm_cvtsi64_si128(int64_t(x));
    v[0] = _mm256_cvtepi32_ps(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes)) * all(d);
#elif defined(__SSE2__)
    const __m128i bytes = _mm_cvtsi64_si128(int64_t(x)), zero = _mm_setzero_si128();
    const __m128i words = is_signed ? _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8) : _mm_unpacklo_epi8(bytes, zero);
    const __m128i sign = is_signed ? _mm_srai_epi16(words, 15) : zero;
    v[0] = _mm_cvtepi32_ps(_mm_unpacklo_epi16(words, sign)) * all(d);
    v[1] = _mm_cvtepi32_ps(_mm_unpackhi_epi16(words, sign)) * all(d);
#elif defined(__aarch64__)
    const int16x8_t words = is_signed ? vmovl_s8(vcreate_s8(x)) : vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(x)));
    v[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))) * all(d);
    v[1] = vcvtq_f32_s32(vmovl_high_s16(words)) * all(d);
#else
    for (int i = 0; i < 8; i++) v[i / VL][i % VL] = d * float(is_signed ? int8_t(x >> 8 * i) : int(x >> 8 * i & 255));
#endif
    put_eight(to, v);
}
QT_INLINE uint64_t minus_32(uint64_t x) { return ((x | 0x8080808080808080) - 0x2020202020202020) ^ 0x8080808080808080; }  // of bytes below 64

// One f16 of each of 8 blocks, times `sign`.
template <int stride>
QT_INLINE void eight_halves(const void* p, float* to, float sign = 1) {
    auto at = [&](int k) { return load<uint16_t>((const uint8_t*)p + k * stride); };
    V v[8 / VL];
#if defined(__F16C__)
    v[0] = _mm256_cvtph_ps(_mm_setr_epi16(short(at(0)), short(at(1)), short(at(2)), short(at(3)), short(at(4)), short(at(5)), short(at(6)), short(at(7))));
#else
    for (int k = 0; k < 8; k += VL) {  // see widen
        const I h = {at(k), at(k + 1), at(k + 2), at(k + 3)}, magnitude = (h & 0x7fff) << 13;
        const I x = (I)((V)magnitude * all(0x1p112f)) | ((magnitude >= 0x0f800000) & 0x7f800000) | (h & 0x8000) << 16;
        v[k / VL] = (V)x;
    }
#endif
    for (int i = 0; i < 8 / VL; i++) v[i] *= sign;
    put_eight(to, v);
}
#define QT_UNPACK(name) \
    template <class F>  \
    QT_INLINE void unpack(const block::name* b, float* s, [[maybe_unused]] float* m, F f)

QT_UNPACK(Q4_0) {
    eight_halves<sizeof *b>(&b->d, s);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, nibbles16(b[j].qs));
}
QT_UNPACK(Q4_1) {
    eight_halves<sizeof *b>(&b->d, s);
    eight_halves<sizeof *b>(&b->m, m, -1);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, nibbles16(b[j].qs));
}
QT_UNPACK(Q5_0) {
    eight_halves<sizeof *b>(&b->d, s);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, nibbles16(b[j].qs) | fifth_bits(b[j].qh));
}
QT_UNPACK(Q5_1) {
    eight_halves<sizeof *b>(&b->d, s);
    eight_halves<sizeof *b>(&b->m, m, -1);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, nibbles16(b[j].qs) | fifth_bits(b[j].qh));
}
QT_UNPACK(Q8_0) {
    eight_halves<sizeof *b>(&b->d, s);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, load_codes(b[j].qs));
}
QT_UNPACK(IQ4_NL) {
    eight_halves<sizeof *b>(&b->d, s);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, values16(codebook::iq4[0], b[j].qs));
}

QT_UNPACK(IQ4_XS) {
    uint64_t low = load<uint32_t>(b->scales_l), high = b->scales_h;  // to bytes: nibbles, and pairs of bits
    low = (low | low << 16) & 0x0000ffff0000ffff, high = (high | high << 24) & 0x000000ff000000ff;
    low = (low | low << 8) & 0x00ff00ff00ff00ff, high = (high | high << 12) & 0x000f000f000f000f;
    low = (low | low << 4) & 0x0f0f0f0f0f0f0f0f, high = (high | high << 6) & 0x0303030303030303;
    eight_bytes<true>(minus_32(low | high << 4), widen(b->d), s);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, values16(codebook::iq4[0], b->qs + 16 * j));
}

// The layout of scales_and_minima, four at a time.
QT_INLINE void unpack_scales(const uint8_t* from, float d, float dmin, float* s, float* m) {
    const uint32_t a = load<uint32_t>(from), b = load<uint32_t>(from + 4), c = load<uint32_t>(from + 8);
    const uint32_t low = 0x3f3f3f3f, nibble = 0x0f0f0f0f, pair = 0x30303030;
    eight_bytes((a & low) | uint64_t((c & nibble) | (a >> 2 & pair)) << 32, d, s);
    eight_bytes((b & low) | uint64_t((c >> 4 & nibble) | (b >> 2 & pair)) << 32, dmin, m);
}
QT_UNPACK(Q4_K) {
    unpack_scales(b->scales, widen(b->d), widen(b->dmin), s, m);
    QT_UNROLL for (int j = 0; j < 8; j += 2) {
        const Codes q = load_codes(b->qs + 16 * j);
        f(j, q & 15);
        f(j + 1, q >> 4 & 15);
    }
}
QT_UNPACK(Q5_K) {
    unpack_scales(b->scales, widen(b->d), widen(b->dmin), s, m);
    const Codes h = load_codes(b->qh);
    QT_UNROLL for (int j = 0; j < 8; j += 2) {
        const Codes q = load_codes(b->qs + 16 * j);
        f(j, (q & 15) | (shifted(h, 4 - j) & 16));
        f(j + 1, (q >> 4 & 15) | (shifted(h, 3 - j) & 16));
    }
}
QT_UNPACK(Q6_K) {
    const float d = widen(b->d);
    for (int i = 0; i < 16; i += 8) eight_bytes<true>(load<uint64_t>(b->scales + i), d, s + i);
    QT_UNROLL for (int half = 0; half < 2; half++) {
        const Codes first = load_codes(b->ql + 64 * half), second = load_codes(b->ql + 64 * half + 32), h = load_codes(b->qh + 32 * half);
        f(4 * half, (first & 15) | (h << 4 & 0x30));
        f(4 * half + 1, (second & 15) | (h << 2 & 0x30));
        f(4 * half + 2, (first >> 4 & 15) | (h & 0x30));
        f(4 * half + 3, (second >> 4 & 15) | (h >> 2 & 0x30));
    }
}
QT_UNPACK(Q3_K) {
    const uint64_t low = load<uint64_t>(b->scales), nibble = 0x0f0f0f0f0f0f0f0f;
    const uint32_t high = load<uint32_t>(b->scales + 8), pair = 0x30303030;
    const float d = widen(b->d);
    eight_bytes<true>(minus_32((low & nibble) | (high << 4 & pair) | uint64_t(high << 2 & pair) << 32), d, s);
    eight_bytes<true>(minus_32((low >> 4 & nibble) | (high & pair) | uint64_t(high >> 2 & pair) << 32), d, s + 8);
    const Codes h = load_codes(b->hmask);
    QT_UNROLL for (int half = 0; half < 2; half++) {
        const Codes q = load_codes(b->qs + 32 * half);
        QT_UNROLL for (int i = 0; i < 4; i++) f(4 * half + i, (q >> 2 * i & 3) | (shifted(h, 2 - 4 * half - i) & 4));
    }
}
QT_UNPACK(Q2_K) {
    const float d = widen(b->d), dmin = widen(b->dmin);
    for (int i = 0; i < 16; i += 8) {
        const uint64_t both = load<uint64_t>(b->scales + i), nibble = 0x0f0f0f0f0f0f0f0f;
        eight_bytes(both & nibble, d, s + i);
        eight_bytes(both >> 4 & nibble, dmin, m + i);
    }
    QT_UNROLL for (int half = 0; half < 2; half++) {
        const Codes q = load_codes(b->qs + 32 * half);
        QT_UNROLL for (int i = 0; i < 4; i++) f(4 * half + i, q >> 2 * i & 3);
    }
}
QT_UNPACK(TQ2_0) {
    V d[8 / VL];
    for (V& v : d) v = all(widen(b->d));
    put_eight(s, d);
    QT_UNROLL for (int half = 0; half < 2; half++) {
        const Codes q = load_codes(b->qs + 32 * half);
        QT_UNROLL for (int i = 0; i < 4; i++) f(4 * half + i, q >> 2 * i & 3);
    }
}
QT_UNPACK(MXFP4) {
    V d[8 / VL];
    for (int k = 0; k < 8; k += VL) {  // see half_e8m0
        I e;
        for (int i = 0; i < VL; i++) e[i] = b[k + i].e;
        d[k / VL] = (V)(e < 2 ? (e + 1) << 21 : (e - 1) << 23);
    }
    put_eight(s, d);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, values16(fp4_codes.of, b[j].qs));
}
#undef QT_UNPACK
}  // namespace qt::QT_ISA
