// Activations as int8: a unit for each 256 values of a token, and below it a power of two for each 32, so that an outlier
// costs only its own 32. The same bytes, units and powers on every instruction set.
#pragma once
#include "isa/decode.h"
#include "isa/vec.h"

namespace qt::QT_ISA {

constexpr int act_columns = 256;

struct Rounded {
    int8_t q[act_columns];
    float d;        // NaN where a value is not finite
    int32_t up[8];  // group j of 32 is in units of d 2^up
};

// Rounds 256 values of x; what rounding loses stays there.
static void round_acts(float* x, Rounded& to) {
    constexpr int per = 32 / VL;
    float top[8];
    V most{}, bad{};
    for (int j = 0; j < 8; j++) {
        V t{};
        for (int i = 0; i < per; i++) {
            const V v = load(x + 32 * j + i * VL);
            t = larger((V)((I)v & 0x7fffffff), t);
            bad += v - v;  // NaN for infinities and NaN
        }
        top[j] = largest(t);
        most = larger(t, most);
    }
    float all_top = largest(most);
    if (all_top < 2e-34f) all_top = 0;  // its inverse would overflow
    const float inverse = all_top > 0 ? 127 / all_top : 0;
    bad = bad == bad ? V{} : all(1);
    to.d = largest(bad) > 0 ? __builtin_nanf("") : all_top / (127 * 128);
    const V magic = all(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    int32_t wide[act_columns];
    for (int j = 0; j < 8; j++) {
        const int exponent = int(bits<uint32_t>(all_top / top[j]) >> 23) - 127;  // halvings while every value still fits
        const int halvings = all_top > 0 && top[j] > 0 && exponent < 7 ? exponent : 7;
        to.up[j] = 7 - halvings;
        const V scale = all(inverse * float(1 << halvings)), unit = all(-(all_top / (127 * 128)) * float(1 << (7 - halvings)));
        for (int i = 0; i < per; i++) {
            float* at = x + 32 * j + i * VL;
            const V v = load(at), t = v * scale + magic;
            put(wide + 32 * j + i * VL, (I)t);
            store(at, fma(t - magic, unit, v));
        }
    }
    for (int i = 0; i < act_columns; i++) to.q[i] = int8_t(wide[i]);
}

// The first n of 256 values of x, and zeros.
QT_INLINE void take_acts(const float* x, int n, float* to) {
    __builtin_memcpy(to, x, size_t(n) * sizeof(float));
    __builtin_memset(to + n, 0, size_t(act_columns - n) * sizeof(float));
}
}  // namespace qt::QT_ISA
