// The encoders of one instruction set.
#pragma once
#include <cstddef>
#include <cstdint>

#define QT_ENCODED_TYPES(X) X(0, F32) X(1, F16) X(8, Q8_0) X(30, BF16)

namespace qt::QT_ISA {
#define QT_DECLARE(id, name) size_t encode_##name(const float* x, uint8_t* blocks, size_t n_blocks);
QT_ENCODED_TYPES(QT_DECLARE)
#undef QT_DECLARE
}  // namespace qt::QT_ISA
