// Encoding of the formats that need no search.
#include "isa/encode.h"

#include "isa/decode.h"
#include "isa/narrow.h"

namespace qt::QT_ISA {

size_t encode_F32(const EncodeJob& job, size_t first, size_t last) {
    __builtin_memcpy(job.blocks + 4 * first, job.x + first, 4 * (last - first));
    return last;
}

void narrow_row(const float* x, uint16_t* halves, size_t n) {
    size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(halves + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) halves[i] = narrow(x[i]);
}

size_t encode_F16(const EncodeJob& job, size_t first, size_t last) {
    narrow_row(job.x + first, reinterpret_cast<uint16_t*>(job.blocks) + first, last - first);
    return last;
}

size_t encode_BF16(const EncodeJob& job, size_t first, size_t last) {
    auto* out = reinterpret_cast<block::BF16*>(job.blocks);
    for (size_t i = first; i < last; i++) {
        const uint32_t a = bits<uint32_t>(job.x[i]);
        const bool nan = (a & 0x7fffffff) > 0x7f800000;
        out[i].x = uint16_t((nan ? a | 0x400000 : a + 0x7fff + (a >> 16 & 1)) >> 16);
    }
    return last;
}

// Half away from zero. Less than a half is added, so that the sum never rounds up over the edge.
static inline int8_t round_away(float x) { return int8_t(int(x + __builtin_copysignf(0x1.fffffep-2f, x))); }

size_t encode_Q8_0(const EncodeJob& job, size_t first, size_t last) {
    auto* out = reinterpret_cast<block::Q8_0*>(job.blocks);
    const float* x = job.x + 32 * first;
    for (size_t b = first; b < last; b++, x += 32) {
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
    return last;
}
}  // namespace qt::QT_ISA
