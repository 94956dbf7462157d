// Microscaling: values of E2M1, doubled in the codebook, so scales are read halved.
#pragma once
#include "codebooks.h"
#include "isa/decode.h"

namespace qt::QT_ISA {

inline constexpr NibbleTable fp4_values = nibble_table(codebook::fp4[0]);

// E8M0, a bare exponent: 2^(e - 127), halved; the two lowest are subnormal floats.
static inline float half_e8m0(uint8_t e) { return bits<float>(e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23); }

// UE4M3: the bits are those of a float whose exponent is rebased by a product; 0x7f, a NaN elsewhere, is zero.
static inline float half_ue4m3(uint8_t x) { return x == 0x7f ? 0.0f : bits<float>(uint32_t(x & 0x7f) << 20) * 0x1p119f; }

template <class Out>
static inline void decode(const block::MXFP4& b, Out y) {
    const float d = half_e8m0(b.e);
    int8_t q[32];
    nibble_values(fp4_values, b.qs, q);
    scale<16>(q, d, y);
    scale<16>(q + 16, d, y + 16);
}

template <class Out>
static inline void decode(const block::NVFP4& b, Out y) {
    for (int g = 0; g < 4; g += 2) {  // two groups of 16: the low halves of both, then the high ones
        int8_t q[32];
        nibble_values<true>(fp4_values, b.qs + 8 * g, q);
        scale<16>(q, half_ue4m3(b.d[g]), y + 16 * g);
        scale<16>(q + 16, half_ue4m3(b.d[g + 1]), y + 16 * g + 16);
    }
}
}  // namespace qt::QT_ISA
