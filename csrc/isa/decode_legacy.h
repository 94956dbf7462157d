// Plain floats and the formats with one scale per block.
#pragma once
#include "isa/decode.h"

namespace qt::QT_ISA {

template <class Out>
static inline void decode(const block::Q4_0& b, Out y) {
    const float d = widen(b.d);
    int8_t q[32];
    for (int i = 0; i < 16; i++) q[i] = int8_t((b.qs[i] & 15) - 8);
    for (int i = 0; i < 16; i++) q[i + 16] = int8_t((b.qs[i] >> 4) - 8);
    scale<16>(q, d, y);
    scale<16>(q + 16, d, y + 16);
}

template <class Out>
static inline void decode(const block::Q4_1& b, Out y) {
    const float d = widen(b.d), m = widen(b.m);
    uint8_t q[32];
    nibbles(b.qs, q);
    scale_min<16>(q, d, -m, y);
    scale_min<16>(q + 16, d, -m, y + 16);
}

// The fifth bit of each value stands in qh.
static inline void five_bits(const uint8_t* qs, const uint8_t* qh, uint8_t* q) {
    uint8_t high[32];
    spread(load<uint32_t>(qh), high);
    for (int i = 0; i < 16; i++) q[i] = (qs[i] & 15) | (high[i] & 16);
    for (int i = 0; i < 16; i++) q[i + 16] = qs[i] >> 4 | (high[i + 16] & 16);
}

template <class Out>
static inline void decode(const block::Q5_0& b, Out y) {
    const float d = widen(b.d);
    uint8_t u[32];
    int8_t q[32];
    five_bits(b.qs, b.qh, u);
    for (int half = 0; half < 32; half += 16) {
        for (int i = 0; i < 16; i++) q[half + i] = int8_t(u[half + i] - 16);
        scale<16>(q + half, d, y + half);
    }
}

template <class Out>
static inline void decode(const block::Q5_1& b, Out y) {
    const float d = widen(b.d), m = widen(b.m);
    uint8_t q[32];
    five_bits(b.qs, b.qh, q);
    scale_min<16>(q, d, -m, y);
    scale_min<16>(q + 16, d, -m, y + 16);
}

template <class Out>
static inline void decode(const block::Q8_0& b, Out y) { scale<32>(b.qs, widen(b.d), y); }
template <class Out>
static inline void decode(const block::Q8_1& b, Out y) { scale<32>(b.qs, widen(b.d), y); }

// A set bit is +d, a clear one -d.
template <class Out>
static inline void decode(const block::Q1_0& b, Out y) {
    const float d = widen(b.d);
    for (int g = 0; g < 4; g++) {
        uint8_t set[32];
        int8_t q[32];
        spread(load<uint32_t>(b.qs + 4 * g), set);
        for (int i = 0; i < 32; i++) q[i] = int8_t((set[i] & 2) - 1);
        scale<32>(q, d, y + 32 * g);
    }
}

// Four neighbours a byte, lowest first: -1, 0, 1, 2.
template <class Out>
static inline void decode(const block::Q2_0& b, Out y) {
    int8_t q[64];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        const uint32_t x = b.qs[i], pairs = (x | x << 12) & 0x000f000f, each = (pairs | pairs << 6) & 0x03030303;
        const uint32_t minus_one = (each + 0x7f7f7f7f) ^ 0x80808080;  // bytewise, no borrow crosses
        __builtin_memcpy(q + 4 * i, &minus_one, 4);
    }
    scale<64>(q, widen(b.d), y);
}
}  // namespace qt::QT_ISA
