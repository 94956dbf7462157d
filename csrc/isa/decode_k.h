// K types: 256 values whose groups of 16 or 32 have small integer scales, and some minima, of their own.
#pragma once
#include "isa/decode.h"

namespace qt::QT_ISA {

template <class Out>
static inline void decode(const block::Q2_K& b, Out y) {
    const float d = widen(b.d), dmin = widen(b.dmin);
    uint8_t q[256];
    float dl[16], ml[16];
    two_bits(b.qs, q);
    for (int g = 0; g < 16; g++) {
        dl[g] = d * float(b.scales[g] & 15);
        ml[g] = dmin * float(b.scales[g] >> 4);
    }
    for (int g = 0; g < 16; g++) scale_min<16>(q + 16 * g, dl[g], ml[g], y + 16 * g);
}

template <class Out>
static inline void decode(const block::Q3_K& b, Out y) {
    const float d = widen(b.d);
    uint8_t u[256];
    int8_t q[256];
    float dl[16];
    two_bits(b.qs, u);
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) q[32 * j + i] = int8_t(u[32 * j + i] + (b.hmask[i] >> j & 1) * 4 - 4);
    for (int g = 0; g < 16; g++) {
        const int low = g < 8 ? b.scales[g] & 15 : b.scales[g - 8] >> 4, high = b.scales[8 + g % 4] >> 2 * (g / 4) & 3;
        dl[g] = d * float((low | high << 4) - 32);
    }
    for (int g = 0; g < 16; g++) scale<16>(q + 16 * g, dl[g], y + 16 * g);
}

// Eight scales and eight minima of 6 bits in 12 bytes: bytes 0-3 and 4-7 carry the first four of each and, on top,
// the upper pairs of bits of the last four, whose lower nibbles are bytes 8-11.
static inline void scales_and_minima(const uint8_t* s, float d, float dmin, float* dl, float* ml) {
    for (int g = 0; g < 4; g++) {
        dl[g] = d * float(s[g] & 63);
        ml[g] = dmin * float(s[g + 4] & 63);
        dl[g + 4] = d * float((s[g + 8] & 15) | s[g] >> 6 << 4);
        ml[g + 4] = dmin * float(s[g + 8] >> 4 | s[g + 4] >> 6 << 4);
    }
}

template <class Out>
static inline void decode(const block::Q4_K& b, Out y) {
    uint8_t q[256];
    float dl[8], ml[8];
    scales_and_minima(b.scales, widen(b.d), widen(b.dmin), dl, ml);
    for (int j = 0; j < 4; j++) nibbles<32>(b.qs + 32 * j, q + 64 * j);
    for (int g = 0; g < 8; g++) scale_min<32>(q + 32 * g, dl[g], ml[g], y + 32 * g);
}

template <class Out>
static inline void decode(const block::Q5_K& b, Out y) {
    uint8_t q[256];
    float dl[8], ml[8];
    scales_and_minima(b.scales, widen(b.d), widen(b.dmin), dl, ml);
    for (int j = 0; j < 4; j++) nibbles<32>(b.qs + 32 * j, q + 64 * j);
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) q[32 * j + i] |= (b.qh[i] >> j & 1) << 4;
    for (int g = 0; g < 8; g++) scale_min<32>(q + 32 * g, dl[g], ml[g], y + 32 * g);
}

template <class Out>
static inline void decode(const block::Q6_K& b, Out y) {
    const float d = widen(b.d);
    uint8_t low[256], high[256];
    int8_t q[256];
    float dl[16];
    nibbles<64>(b.ql, low);
    nibbles<64>(b.ql + 64, low + 128);
    two_bits(b.qh, high);
    for (int i = 0; i < 256; i++) q[i] = int8_t((low[i] | high[i] << 4) - 32);
    for (int g = 0; g < 16; g++) dl[g] = d * float(b.scales[g]);
    for (int g = 0; g < 16; g++) scale<16>(q + 16 * g, dl[g], y + 16 * g);
}

template <class Out>
static inline void decode(const block::Q8_K& b, Out y) { scale<256>(b.qs, b.d, y); }
}  // namespace qt::QT_ISA
