// 256 columns of a row as bytes in registers, 32 at a time, and their scales: once for every regime and instruction set but
// AVX-512. unpack(blocks, s, m, f) fills s (and m, where the type has minima), then calls f(j, codes of columns 32j ..).
// Codes are offset as CodingOf says. A type that has none here, nor in unpack_books.h, does not compile.
#pragma once
#include "codes.h"
#include "decode_iq.h"
#include "decode_k.h"
#include "decode_microscaling.h"

namespace qt::QT_ISA {
static constexpr NibbleTable fp4_codes = nibble_table(codebook::fp4[0], CodingOf<block::MXFP4>::offset);

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
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, values16(iq4_values, b[j].qs));
}

QT_UNPACK(IQ4_XS) {
    uint64_t high = b->scales_h;  // pairs of bits to bytes
    high = (high | high << 24) & 0x000000ff000000ff;
    high = (high | high << 12) & 0x000f000f000f000f;
    high = (high | high << 6) & 0x0303030303030303;
    eight_bytes<true>(minus_32(spread_nibbles(load<uint32_t>(b->scales_l)) | high << 4), widen(b->d), s);
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, values16(iq4_values, b->qs + 16 * j));
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
    const float d = widen(b->d);
    eight_scales([&](int) { return d; }, s);
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
    QT_UNROLL for (int j = 0; j < 8; j++) f(j, values16(fp4_codes, b[j].qs));
}
}  // namespace qt::QT_ISA
