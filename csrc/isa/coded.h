// The integer types as kernels see them: how many codes share a scale, and how codes become small unsigned bytes.
#pragma once
#include "blocks.h"
#include "isa.h"

namespace qt::QT_ISA {

// sub: codes to a scale. minima: codes are unsigned, the value is s q - m; else signed, the value is s q.
// offset: added to a signed code to make it a byte from 0 to 127; of unsigned codes, what sums are centred at where they
// would not fit 16 bits. Both are undone through sums of x. 0: codes stay as they are. wild: scales differ by so much that
// offsets must be undone before they meet them, for a code of zero is to count for nothing.
template <int sub_, int offset_, bool minima_ = false, bool wild_ = false>
struct Coding {
    static constexpr int sub = sub_, offset = offset_;
    static constexpr bool minima = minima_, is_signed = !minima && offset == 0, wild = wild_;
};

template <class Block>
struct CodingOf;
#define QT_INTEGER_TYPES(X)                                                                                       \
    X(Q4_0, 32, 8, false) X(Q4_1, 32, 0, true) X(Q5_0, 32, 16, false) X(Q5_1, 32, 16, true) X(Q8_0, 32, 0, false)  \
    X(Q2_K, 16, 0, true) X(Q3_K, 16, 4, false) X(Q4_K, 32, 0, true) X(Q5_K, 32, 16, true) X(Q6_K, 16, 32, false)   \
    X(IQ2_XXS, 32, 0, false) X(IQ2_XS, 16, 0, false) X(IQ2_S, 16, 0, false) X(IQ3_XXS, 32, 0, false)              \
    X(IQ3_S, 32, 16, false) X(IQ1_S, 32, 16, false) X(IQ1_M, 16, 16, false) X(IQ4_NL, 32, 0, false)               \
    X(IQ4_XS, 32, 0, false) X(TQ1_0, 32, 1, false) X(TQ2_0, 32, 1, false) X(MXFP4, 32, 16, false, true)                 \
    X(NVFP4, 16, 16, false, true) X(Q1_0, 32, 1, false) X(Q2_0, 32, 1, false)
#define QT_CODING(name, ...) \
    template <>              \
    struct CodingOf<block::name> : Coding<__VA_ARGS__> {};
QT_INTEGER_TYPES(QT_CODING)
#undef QT_CODING
}  // namespace qt::QT_ISA
