// Float to half.
#pragma once
#include "isa/decode.h"

namespace qt::QT_ISA {
// To nearest even; too large becomes infinity, NaN stays NaN.
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
}  // namespace qt::QT_ISA
