// Products with stored weights: rows are decoded to floats in cache, then multiplied. Serves every type at any number of
// tokens; what is faster for one type or regime takes its place in the table.
#include "isa/dots.h"
#include "isa/ops.h"

namespace qt::QT_ISA {

// A chunk of `depth` columns of rows [r, r + n), as floats `ld` apart, zero up to whole vectors.
static const float* chunk(const LinearJob& j, size_t r, size_t n, size_t k, size_t depth, float* tile, size_t& ld) {
    const uint8_t* w = j.w + r * j.row_bytes + k / j.block_size * j.block_bytes;
    if (j.plain && depth % VL == 0 && reinterpret_cast<uintptr_t>(w) % sizeof(float) == 0) {
        ld = j.in;
        return reinterpret_cast<const float*>(w);
    }
    ld = padded(depth);
    for (size_t i = 0; i < n; i++, w += j.row_bytes) {
        j.decode(w, tile + i * ld, depth / j.block_size);
        for (size_t c = depth; c < ld; c++) tile[i * ld + c] = 0;
    }
    return tile;
}

static void multiply(const float* w, size_t ld, size_t n, const float* x, size_t ldx, int cols, size_t depth, float* y, size_t ldy, bool add) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) dots_up_to<4>(cols, w + i * ld, ld, x, ldx, depth, y + i, ldy, add);
    for (; i < n; i++) dots_up_to<1>(cols, w + i * ld, ld, x, ldx, depth, y + i, ldy, add);
}

void linear_decoded(const LinearJob& j, size_t r0, size_t r1, size_t t0, size_t t1, float* tile) {
    const size_t most = t1 - t0 == 1 ? 4 : linear_rows;  // a single token leaves the tile after one use: keep it in L1
    constexpr size_t ahead = 16384;                      // bytes; one sequential stream into L2
    const uint8_t* end = j.w + r1 * j.row_bytes;
    const uint8_t* next = j.w + r0 * j.row_bytes;
    for (size_t r = r0; r < r1; r += most) {
        const size_t n = r1 - r < most ? r1 - r : most;
        const uint8_t* from = j.w + (r + n) * j.row_bytes + ahead;
        for (from = from < end ? from : end; next < from; next += 64) __builtin_prefetch(next, 0, 1);
        for (size_t k = 0; k < j.in; k += linear_depth) {
            const size_t depth = j.in - k < linear_depth ? j.in - k : linear_depth;
            size_t ld;
            const float* w = chunk(j, r, n, k, depth, tile, ld);
            for (size_t t = t0; t < t1; t += tile_cols) {
                const int cols = t1 - t < tile_cols ? int(t1 - t) : tile_cols;
                multiply(w, ld, n, j.x + t * j.ldx + k, j.ldx, cols, (depth + VL - 1) / VL * VL, j.y + t * j.out + r, j.out, k > 0);
            }
        }
        if (j.bias)
            for (size_t t = t0; t < t1; t++)
                for (size_t i = r; i < r + n; i++) j.y[t * j.out + i] += j.bias[i];
    }
}
}  // namespace qt::QT_ISA
