// Codes into blocks: what the decoders take apart. Codes count from 0.
#pragma once
#include "isa/narrow.h"

namespace qt::QT_ISA {
// Scales of a block as they are stored.
struct Packed {
    float d, dmin;
    int sc[16], m[16];
};

template <int n = 16>
static inline void pack_nibbles(const uint8_t* q, uint8_t* packed) {
    for (int i = 0; i < n; i++) packed[i] = uint8_t((q[i] & 15) | (q[i + n] & 15) << 4);
}
static inline void pack_two_bits(const uint8_t* q, uint8_t* packed) {
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i++) {
            const uint8_t* c = q + 128 * half + i;
            packed[32 * half + i] = uint8_t((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
        }
}

static inline void pack(const uint8_t* q, const Packed& s, block::Q4_0& b) {
    b.d = narrow(s.d);
    pack_nibbles(q, b.qs);
}
static inline void pack(const uint8_t* q, const Packed& s, block::Q4_1& b) {
    b.d = narrow(s.d), b.m = narrow(-s.dmin);
    pack_nibbles(q, b.qs);
}
static inline void pack_fifth(const uint8_t* q, uint8_t* qh) {
    for (int k = 0; k < 4; k++) {
        int byte = 0;
        for (int i = 0; i < 8; i++) byte |= (q[8 * k + i] >> 4) << i;
        qh[k] = uint8_t(byte);
    }
}
static inline void pack(const uint8_t* q, const Packed& s, block::Q5_0& b) {
    b.d = narrow(s.d);
    pack_fifth(q, b.qh);
    pack_nibbles(q, b.qs);
}
static inline void pack(const uint8_t* q, const Packed& s, block::Q5_1& b) {
    b.d = narrow(s.d), b.m = narrow(-s.dmin);
    pack_fifth(q, b.qh);
    pack_nibbles(q, b.qs);
}

static inline void pack(const uint8_t* q, const Packed& s, block::Q2_K& b) {
    b.d = narrow(s.d), b.dmin = narrow(s.dmin);
    for (int g = 0; g < 16; g++) b.scales[g] = uint8_t(s.sc[g] | s.m[g] << 4);
    pack_two_bits(q, b.qs);
}
static inline void pack(const uint8_t* q, const Packed& s, block::Q3_K& b) {
    b.d = narrow(s.d);
    pack_two_bits(q, b.qs);
    for (int i = 0; i < 32; i++) {
        int byte = 0;
        for (int j = 0; j < 8; j++) byte |= (q[32 * j + i] >> 2) << j;
        b.hmask[i] = uint8_t(byte);
    }
    for (int g = 0; g < 8; g++) b.scales[g] = uint8_t(((s.sc[g] + 32) & 15) | ((s.sc[g + 8] + 32) & 15) << 4);
    for (int g = 0; g < 4; g++) {
        int byte = 0;
        for (int k = 0; k < 4; k++) byte |= (s.sc[g + 4 * k] + 32) >> 4 << 2 * k;
        b.scales[8 + g] = uint8_t(byte);
    }
}
static inline void pack_scales_and_minima(const Packed& s, uint8_t* to) {
    for (int g = 0; g < 4; g++) {
        to[g] = uint8_t(s.sc[g] | s.sc[g + 4] >> 4 << 6);
        to[g + 4] = uint8_t(s.m[g] | s.m[g + 4] >> 4 << 6);
        to[g + 8] = uint8_t((s.sc[g + 4] & 15) | (s.m[g + 4] & 15) << 4);
    }
}
static inline void pack(const uint8_t* q, const Packed& s, block::Q4_K& b) {
    b.d = narrow(s.d), b.dmin = narrow(s.dmin);
    pack_scales_and_minima(s, b.scales);
    for (int j = 0; j < 4; j++) pack_nibbles<32>(q + 64 * j, b.qs + 32 * j);
}
static inline void pack(const uint8_t* q, const Packed& s, block::Q5_K& b) {
    b.d = narrow(s.d), b.dmin = narrow(s.dmin);
    pack_scales_and_minima(s, b.scales);
    for (int j = 0; j < 4; j++) pack_nibbles<32>(q + 64 * j, b.qs + 32 * j);
    for (int i = 0; i < 32; i++) {
        int byte = 0;
        for (int j = 0; j < 8; j++) byte |= (q[32 * j + i] >> 4) << j;
        b.qh[i] = uint8_t(byte);
    }
}
static inline void pack(const uint8_t* q, const Packed& s, block::Q6_K& b) {
    b.d = narrow(s.d);
    for (int g = 0; g < 16; g++) b.scales[g] = int8_t(s.sc[g]);
    for (int half = 0; half < 2; half++) pack_nibbles<64>(q + 128 * half, b.ql + 64 * half);
    uint8_t high[256];
    for (int i = 0; i < 256; i++) high[i] = q[i] >> 4;
    pack_two_bits(high, b.qh);
}

static inline void pack(const uint8_t* q, const Packed& s, block::Q2_0& b) {
    b.d = narrow(s.d);
    for (int i = 0; i < 16; i++) b.qs[i] = uint8_t(q[4 * i] | q[4 * i + 1] << 2 | q[4 * i + 2] << 4 | q[4 * i + 3] << 6);
}
// Up to five digits a byte, n bytes side by side: the next fraction of 256 above them.
static inline void pack_digits(const uint8_t* q, int n, int n_digits, uint8_t* to) {
    for (int i = 0; i < n; i++) {
        int value = 0;
        for (int k = 0; k < 5; k++) value = value * 3 + (k < n_digits ? q[k * n + i] : 0);
        to[i] = uint8_t((value * 256 + 242) / 243);
    }
}
static inline void pack(const uint8_t* q, const Packed& s, block::TQ1_0& b) {
    b.d = narrow(s.d);
    pack_digits(q, 32, 5, b.qs);
    pack_digits(q + 160, 16, 5, b.qs + 32);
    pack_digits(q + 240, 4, 4, b.qh);
}
static inline void pack(const uint8_t* q, const Packed& s, block::TQ2_0& b) {
    b.d = narrow(s.d);
    pack_two_bits(q, b.qs);
}
static inline void pack(const uint8_t* q, const Packed& s, block::IQ4_NL& b) {
    b.d = narrow(s.d);
    pack_nibbles(q, b.qs);
}
static inline void pack(const uint8_t* q, const Packed& s, block::IQ4_XS& b) {
    b.d = narrow(s.d);
    int high = 0;
    for (int g = 0; g < 8; g++) high |= (s.sc[g] + 32) >> 4 << 2 * g;
    b.scales_h = uint16_t(high);
    for (int g = 0; g < 4; g++) b.scales_l[g] = uint8_t(((s.sc[2 * g] + 32) & 15) | ((s.sc[2 * g + 1] + 32) & 15) << 4);
    for (int g = 0; g < 8; g++) pack_nibbles(q + 32 * g, b.qs + 16 * g);
}
}  // namespace qt::QT_ISA
