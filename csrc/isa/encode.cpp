// Encoding of the formats that need no search. Each function returns how many blocks it wrote:
// it stops before the first one that its format cannot hold.
#include "isa/encode.h"

#include "isa/decode.h"

namespace qt::QT_ISA {

// Float to half, to nearest even; too large becomes infinity, NaN stays NaN.
static inline f16 narrow(float value) {
#ifdef __F16C__
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    const uint32_t x = bits<uint32_t>(value), a = x & 0x7fffffff;
    const uint32_t subnormal = bits<uint32_t>(bits<float>(a) + 0.5f) - 0x3f000000;  // the sum's last bit is a half's
    const uint32_t normal = (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
    const uint32_t special = a > 0x7f800000 ? 0x7e00 | (a >> 13 & 0x3ff) : 0x7c00;
    return f16((x >> 16 & 0x8000) | (a >= 0x477ff000 ? special : a < 0x38800000 ? subnormal : normal));
#endif
}

size_t encode_F32(const float* x, uint8_t* blocks, size_t n_blocks) {
    __builtin_memcpy(blocks, x, 4 * n_blocks);
    return n_blocks;
}

size_t encode_F16(const float* x, uint8_t* blocks, size_t n_blocks) {
    size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n_blocks; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(blocks + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    auto* out = reinterpret_cast<block::F16*>(blocks);
    for (; i < n_blocks; i++) out[i].x = narrow(x[i]);
    return n_blocks;
}

size_t encode_BF16(const float* x, uint8_t* blocks, size_t n_blocks) {
    auto* out = reinterpret_cast<block::BF16*>(blocks);
    for (size_t i = 0; i < n_blocks; i++) {
        const uint32_t a = bits<uint32_t>(x[i]);
        const bool nan = (a & 0x7fffffff) > 0x7f800000;
        out[i].x = uint16_t((nan ? a | 0x400000 : a + 0x7fff + (a >> 16 & 1)) >> 16);
    }
    return n_blocks;
}

// Half away from zero. Less than a half is added, so that the sum never rounds up over the edge.
static inline int8_t round_away(float x) { return int8_t(int(x + __builtin_copysignf(0x1.fffffep-2f, x))); }

size_t encode_Q8_0(const float* x, uint8_t* blocks, size_t n_blocks) {
    auto* out = reinterpret_cast<block::Q8_0*>(blocks);
    for (size_t b = 0; b < n_blocks; b++, x += 32) {
        uint32_t largest = 0;  // magnitudes order like their bits, NaN above all
        for (int i = 0; i < 32; i++) {
            const uint32_t a = bits<uint32_t>(x[i]) & 0x7fffffff;
            largest = a > largest ? a : largest;
        }
        const float d = bits<float>(largest) / 127;
        if (!(d < 65520.0f)) return b;  // from there on a half is infinite
        const float inverse = d <= 0x1p-128f ? 0 : 1 / d;  // below, the inverse is infinite
        out[b].d = narrow(d);
        for (int i = 0; i < 32; i++) out[b].qs[i] = round_away(x[i] * inverse);
    }
    return n_blocks;
}
}  // namespace qt::QT_ISA
