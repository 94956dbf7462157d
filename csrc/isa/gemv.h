// Products with one token: x is packed once, then any rows are multiplied by it, on any thread.
#pragma once
#include <cstddef>
#include <cstdint>

#include "blocks.h"

namespace qt {

struct Gemv {
    size_t (*packed_bytes)(int in);                                                            // 64-byte aligned
    bool (*pack)(const float* x, int in, void* packed);                                        // false: x cannot be packed (inf, NaN)
    void (*rows)(const uint8_t* w, const void* packed, int in, int rows, float* y);            // y[rows] = w[rows, in] x[in]
};
struct GemvTable { Gemv of[max_types]; };  // by type id, null pointers where there is none
}  // namespace qt
