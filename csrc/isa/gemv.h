// Products with few tokens: x is packed once, in parts on any thread, then any rows are multiplied by it, on any thread.
#pragma once
#include <cstddef>
#include <cstdint>

#include "blocks.h"

namespace qt {

struct GemvJob {
    const uint8_t* w;  // [out] rows of row_bytes
    size_t row_bytes, in, out, T;
    int planes;          // int8 planes of a token: 1, or 2 for nearly exact products
    const void* packed;  // by Gemv::pack
    const float* bias;   // [out] or null
    float* y;            // [T][out]
};
struct Gemv {
    size_t (*packed_bytes)(size_t T, size_t in, int planes);                                    // 64-byte aligned
    void (*pack)(const float* x, size_t T, size_t in, int planes, size_t block, void* packed);  // one block of 256 columns; types of one `pack` share it
    void (*rows)(const GemvJob&, size_t r0, size_t r1);
};
inline constexpr size_t gemv_group = 8;  // rows whose weights are used by all tokens in turn
struct GemvTable { Gemv of[max_types]; };  // by type id, null pointers where there is none
}  // namespace qt
