// Three values a digit.
#pragma once
#include "isa/decode.h"

namespace qt::QT_ISA {

// A byte is a fraction of 256 in base three: times three, the next digit is what passes 256. Minus one: the value.
static inline void digits(uint8_t* rest, int n, int n_digits, int8_t* q) {
    for (int k = 0; k < n_digits; k++)
        for (int i = 0; i < n; i++) {
            const uint8_t r = rest[i];
            q[k * n + i] = int8_t((r > 85) + (r > 170) - 1);
            rest[i] = uint8_t(r * 3);
        }
}

template <class Out>
static inline void decode(const block::TQ1_0& b, Out y) {
    uint8_t rest[52];
    int8_t q[256];
    __builtin_memcpy(rest, &b, 52);  // qs and qh follow each other
    digits(rest, 32, 5, q);
    digits(rest + 32, 16, 5, q + 160);
    digits(rest + 48, 4, 4, q + 240);
    scale<256>(q, widen(b.d), y);
}

template <class Out>
static inline void decode(const block::TQ2_0& b, Out y) {
    uint8_t u[256];
    int8_t q[256];
    two_bits(b.qs, u);
    for (int i = 0; i < 256; i++) q[i] = int8_t(u[i] - 1);
    scale<256>(q, widen(b.d), y);
}
}  // namespace qt::QT_ISA
