// Products with many tokens: x is packed once, in parts on any thread, then rows are multiplied by it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "blocks.h"
#include "jobs.h"

namespace qt {

struct GemmJob {
    const uint8_t* w;  // [out] rows of row_bytes
    size_t row_bytes, in, out, T;
    int planes;          // 1, or 2 for nearly exact products at twice the cost
    const void* packed;  // [blocks of 256 columns][planes][groups of 16 tokens]
    const float* bias;   // [out] or null
    float* y;            // [T][out], or null: what comes out stays in the tile, for no more than gemm_rows rows
    const float* gate = nullptr;  // the tile of the product that gates this one, of the same rows
    Gate act = nullptr;
};
struct Gemm {
    size_t (*packed_bytes)(size_t T, size_t in, int planes);                                        // 64-byte aligned
    void (*pack)(const float* x, size_t T, size_t in, int planes, size_t block, void* packed);      // one block of 256 columns
    size_t (*tile_floats)(size_t T);                                                                // scratch of a thread, 64-byte aligned
    void (*rows)(const GemmJob&, size_t r0, size_t r1, float* tile);
    int most_planes = 2;  // with more, floats are faster, and exact
    bool bf16 = false;    // needs products of bfloat16, which not every machine of its instruction set has
};
inline constexpr size_t gemm_rows = 48, gemm_strip = 16;  // rows are best a multiple of the first, or else of the second
struct GemmTable { Gemm of[max_types]; };  // by type id, null pointers where there is none
}  // namespace qt
