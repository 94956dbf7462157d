// IQ types: groups of neighbours are points of a codebook, signs stand apart.
#pragma once
#include "codebooks.h"
#include "isa/decode.h"

namespace qt::QT_ISA {

inline constexpr NibbleTable iq4_values = nibble_table(codebook::iq4[0]);

// Four points of eight values.
static inline void look_up(const int8_t (*book)[8], const uint32_t* index, int8_t* q) {
    for (int i = 0; i < 4; i++) __builtin_memcpy(q + 8 * i, book[index[i]], 8);
}

// Eight points of four values.
static inline void look_up(const int8_t (*book)[4], const uint32_t* index, int8_t* q) {
    for (int i = 0; i < 8; i++) __builtin_memcpy(q + 4 * i, book[index[i]], 4);
}

// Give 32 magnitudes their signs: minus where a bit of `minus` is set.
static inline void apply_sign_bits(uint32_t minus, int8_t* q) {
    uint8_t m[32];
    spread(minus, m);
    for (int i = 0; i < 32; i++) q[i] = int8_t((uint8_t(q[i]) ^ m[i]) - m[i]);
}

// The same for four indices of 7 bits: the eighth sign makes the number of minuses even.
static inline void apply_sign_indices(uint32_t indices, int8_t* q) {
    int8_t s[32];
    for (int i = 0; i < 4; i++) __builtin_memcpy(s + 8 * i, codebook::signs[indices >> 7 * i & 127], 8);
    for (int i = 0; i < 32; i++) q[i] = s[i] < 0 ? int8_t(-q[i]) : q[i];
}

template <class Out>
static inline void decode(const block::IQ2_XXS& b, Out y) {
    const float d = widen(b.d);
    for (int g = 0; g < 8; g++) {
        const uint8_t* at = reinterpret_cast<const uint8_t*>(&b) + sizeof b.d + 8 * g;  // four indices, then signs and scale
        const uint32_t index[4] = {at[0], at[1], at[2], at[3]}, rest = load<uint32_t>(at + 4);
        int8_t q[32];
        look_up(codebook::iq2_xxs, index, q);
        apply_sign_indices(rest, q);
        scale<32>(q, d * (0.5f + float(rest >> 28)) * 0.25f, y + 32 * g);
    }
}

template <class Out>
static inline void decode(const block::IQ2_XS& b, Out y) {
    const float d = widen(b.d);
    for (int g = 0; g < 8; g++) {
        uint32_t index[4], signs = 0;
        for (int i = 0; i < 4; i++) {
            index[i] = b.qs[4 * g + i] & 511;
            signs |= uint32_t(b.qs[4 * g + i] >> 9) << 7 * i;
        }
        int8_t q[32];
        look_up(codebook::iq2_xs, index, q);
        apply_sign_indices(signs, q);
        scale<16>(q, d * (0.5f + float(b.scales[g] & 15)) * 0.25f, y + 32 * g);
        scale<16>(q + 16, d * (0.5f + float(b.scales[g] >> 4)) * 0.25f, y + 32 * g + 16);
    }
}

template <class Out>
static inline void decode(const block::IQ2_S& b, Out y) {
    const float d = widen(b.d);
    for (int g = 0; g < 8; g++) {
        uint32_t index[4];
        for (int i = 0; i < 4; i++) index[i] = b.qs[4 * g + i] | (b.qh[g] >> 2 * i & 3) << 8;
        int8_t q[32];
        look_up(codebook::iq2_s, index, q);
        apply_sign_bits(load<uint32_t>(b.signs + 4 * g), q);
        scale<16>(q, d * (0.5f + float(b.scales[g] & 15)) * 0.25f, y + 32 * g);
        scale<16>(q + 16, d * (0.5f + float(b.scales[g] >> 4)) * 0.25f, y + 32 * g + 16);
    }
}

template <class Out>
static inline void decode(const block::IQ3_XXS& b, Out y) {
    const float d = widen(b.d);
    for (int g = 0; g < 8; g++) {
        const uint32_t rest = load<uint32_t>(b.signs + 4 * g);
        uint32_t index[8];
        for (int i = 0; i < 8; i++) index[i] = b.qs[8 * g + i];
        int8_t q[32];
        look_up(codebook::iq3_xxs, index, q);
        apply_sign_indices(rest, q);
        scale<32>(q, d * (0.5f + float(rest >> 28)) * 0.5f, y + 32 * g);
    }
}

template <class Out>
static inline void decode(const block::IQ3_S& b, Out y) {
    const float d = widen(b.d);
    for (int g = 0; g < 8; g++) {
        uint32_t index[8];
        for (int i = 0; i < 8; i++) index[i] = b.qs[8 * g + i] | (b.qh[g] >> i & 1) << 8;
        int8_t q[32];
        look_up(codebook::iq3_s, index, q);
        apply_sign_bits(load<uint32_t>(b.signs + 4 * g), q);
        scale<32>(q, d * float(1 + 2 * (b.scales[g / 2] >> 4 * (g % 2) & 15)), y + 32 * g);
    }
}

// IQ1: d (point + shift) with a shift of plus or minus an eighth, computed exactly as d/8 (8 point + 1 or - 1).
template <class Out>
static inline void decode(const block::IQ1_S& b, Out y) {
    const float d = widen(b.d);
    for (int g = 0; g < 8; g++) {
        const uint32_t h = b.qh[g];
        const int8_t shift = h & 0x8000 ? -1 : 1;
        uint32_t index[4];
        for (int i = 0; i < 4; i++) index[i] = b.qs[4 * g + i] | (h >> 3 * i & 7) << 8;
        int8_t q[32];
        look_up(codebook::iq1, index, q);
        for (int i = 0; i < 32; i++) q[i] = int8_t(8 * q[i] + shift);
        scale<32>(q, d * float(2 * (h >> 12 & 7) + 1) * 0.125f, y + 32 * g);
    }
}

template <class Out>
static inline void decode(const block::IQ1_M& b, Out y) {
    const float d = widen(f16(b.scales[0] >> 12 | (b.scales[1] >> 12) << 4 | (b.scales[2] >> 12) << 8 | (b.scales[3] >> 12) << 12));
    for (int g = 0; g < 8; g++) {
        const uint32_t h = b.qh[2 * g] | b.qh[2 * g + 1] << 8;  // of each point three bits of its index, one of its shift
        const uint32_t two = (h >> 3 & 0x11) | (h >> 11 & 0x11) << 16, minus = ((two | two << 4) & 0x01010101) * 255;
        uint32_t index[4];
        int8_t q[32];
        uint8_t m[32];
        for (int i = 0; i < 4; i++) index[i] = b.qs[4 * g + i] | (h >> 4 * i & 7) << 8;
        look_up(codebook::iq1, index, q);
        spread(minus, m);
        for (int i = 0; i < 32; i++) q[i] = int8_t(8 * q[i] + 1 + 2 * int8_t(m[i]));
        const uint32_t s = b.scales[g / 2] >> 6 * (g % 2);
        scale<16>(q, d * float(2 * (s & 7) + 1) * 0.125f, y + 32 * g);
        scale<16>(q + 16, d * float(2 * (s >> 3 & 7) + 1) * 0.125f, y + 32 * g + 16);
    }
}

template <class Out>
static inline void decode(const block::IQ4_NL& b, Out y) {
    const float d = widen(b.d);
    int8_t q[32];
    nibble_values(iq4_values, b.qs, q);
    scale<16>(q, d, y);
    scale<16>(q + 16, d, y + 16);
}

template <class Out>
static inline void decode(const block::IQ4_XS& b, Out y) {
    const float d = widen(b.d);
    for (int g = 0; g < 8; g++) {
        const int s = (b.scales_l[g / 2] >> 4 * (g % 2) & 15) | (b.scales_h >> 2 * g & 3) << 4;
        const float dl = d * float(s - 32);
        int8_t q[32];
        nibble_values(iq4_values, b.qs + 16 * g, q);
        scale<16>(q, dl, y + 32 * g);
        scale<16>(q + 16, dl, y + 32 * g + 16);
    }
}
}  // namespace qt::QT_ISA
