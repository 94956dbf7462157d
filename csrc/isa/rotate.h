// Hadamard rotation of groups of 8, 16 or 32 values, and what a group's quantisation asks of it.
#pragma once
#include "isa/vec.h"

namespace qt::QT_ISA {

// One stage inside a vector: a + b where bit h of the lane is clear, a - b where it is set.
template <int h>
QT_INLINE V butterfly(V x) {
    I sign{};
    for (int i = 0; i < VL; i++) sign[i] = i & h ? INT32_MIN : 0;
    return swap_lanes<h>(x) + (V)((I)x ^ sign);
}

template <int n>
QT_INLINE void rotate_groups(float* x, size_t len) {
    constexpr int vectors = n > VL ? n / VL : 1;
    const V root = all(n == 8 ? 0.35355339f : n == 16 ? 0.25f : 0.17677669f);
    for (size_t i = 0; i < len; i += vectors * VL) {
        V g[vectors];
        for (int v = 0; v < vectors; v++) {
            g[v] = butterfly<2>(butterfly<1>(load(x + i + v * VL)));
            if constexpr (n >= 8 && VL >= 8) g[v] = butterfly<4>(g[v]);
            if constexpr (n >= 16 && VL >= 16) g[v] = butterfly<8>(g[v]);
        }
        for (int h = 1; h < vectors; h *= 2)
            for (int v = 0; v < vectors; v++)
                if (!(v & h)) {
                    const V a = g[v], b = g[v + h];
                    g[v] = a + b, g[v + h] = a - b;
                }
        for (int v = 0; v < vectors; v++) store(x + i + v * VL, g[v] * root);
    }
}

// x [len], a multiple of 16: every n values times a Hadamard matrix divided by its root. Its own inverse.
static inline void rotate(float* x, size_t len, size_t n) {
    if (n == 32) rotate_groups<32>(x, len);
    if (n == 16) rotate_groups<16>(x, len);
    if (n == 8) rotate_groups<8>(x, len);
}

struct Range {
    float low, high;
    bool finite;
};
// Of n = 8, 16 or 32 values and 0.
QT_INLINE Range range_of(const float* x, size_t n) {
    V low{}, high{}, zero{};
    for (size_t i = 0; i < n; i += VL) {
        const V v = n < VL ? load_part(x, n) : load(x + i);
        low = larger(-v, low), high = larger(v, high), zero += v * all(0.f);
    }
    return {-largest(low), largest(high), sum(zero) == 0};
}

// Whole numbers nearest to x, ties to even, for |x| < 2^22.
QT_INLINE I nearest(V x) {
    const V magic = all(12582912.f);
    return (I)(x + magic) - (I)magic;
}
}  // namespace qt::QT_ISA
