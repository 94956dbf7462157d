// The encoders of one instruction set.
#pragma once
#include <cstddef>
#include <cstdint>

#define QT_ENCODED_TYPES(X) X(F32) X(F16) X(Q8_0) X(BF16)

namespace qt::QT_ISA {
#define QT_DECLARE(name) size_t encode_##name(const float* x, uint8_t* blocks, size_t n_blocks);
QT_ENCODED_TYPES(QT_DECLARE)
#undef QT_DECLARE
}  // namespace qt::QT_ISA
