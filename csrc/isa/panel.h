// A decoder's other target: the integer codes and their scales, for kernels that multiply integers.
#pragma once
#include "isa/decode.h"

namespace qt::QT_ISA {

constexpr int panel_columns = 256;

// Where one row's codes go: bytes, and a scale (and a minimum) per `sub` of them.
// The value is s (q - offset), or s q - m for types with minima.
template <int sub, int offset = 128>
struct PanelAt {
    uint8_t* q;
    float *s, *m;
    PanelAt operator+(int n) const { return {q + n, s + n / sub, m + n / sub}; }
};

template <int n, int sub, int offset>
static inline void scale(const int8_t* q, float d, PanelAt<sub, offset> to) {
    static_assert(n % sub == 0 || sub % n == 0);  // a part of `sub` sets its scale again
    for (int i = 0; i < n; i++) to.q[i] = uint8_t(q[i] + offset);
    for (int i = 0; i < (n + sub - 1) / sub; i++) to.s[i] = d;
}

template <int n, int sub, int offset>
static inline void scale_min(const uint8_t* q, float d, float m, PanelAt<sub, offset> to) {
    static_assert(n % sub == 0 || sub % n == 0);
    for (int i = 0; i < n; i++) to.q[i] = q[i];
    for (int i = 0; i < (n + sub - 1) / sub; i++) to.s[i] = d, to.m[i] = m;
}
}  // namespace qt::QT_ISA
