// The encoders of one instruction set.
#pragma once
#include <cstddef>
#include <cstdint>

#include "jobs.h"

#define QT_ENCODED_TYPES(X) X(F32) X(F16) X(Q8_0) X(BF16) QT_SEARCHED_TYPES(X)
#define QT_SEARCHED_TYPES(X) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) \
    X(Q1_0) X(Q2_0) X(TQ1_0) X(TQ2_0) X(IQ4_NL) X(IQ4_XS) X(MXFP4) X(NVFP4) \
    X(IQ2_XXS) X(IQ2_XS) X(IQ2_S) X(IQ3_XXS) X(IQ3_S) X(IQ1_S) X(IQ1_M)

namespace qt::QT_ISA {
#define QT_DECLARE(name) size_t encode_##name(const EncodeJob& job, size_t first, size_t last);
QT_ENCODED_TYPES(QT_DECLARE)
#undef QT_DECLARE
void narrow_row(const float* x, uint16_t* halves, size_t n);
}  // namespace qt::QT_ISA
