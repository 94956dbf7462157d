// Dot products of rows of two matrices in register tiles: what products with weights and attention scores share.
#pragma once
#include "isa/vec.h"

namespace qt::QT_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_cols = 6;  // 4 x 6 accumulators of 32 registers
#else
constexpr int tile_cols = 3;
#endif

// out[c][r] (+)= a[r] . b[c] over n columns, a multiple of the vector. One accumulator an element, lanes along the
// columns: the order of summation is the same for every R and C.
template <int R, int C>
QT_INLINE void dots(const float* a, size_t lda, const float* b, size_t ldb, size_t n, float* out, size_t ldo, bool add) {
    static_assert(R % 4 == 0 || R == 1);
    V acc[R][C] = {};
    for (size_t k = 0; k < n; k += VL) {
        V rows[R];
        for (int r = 0; r < R; r++) rows[r] = load(a + r * lda + k);
        for (int c = 0; c < C; c++) {
            V col = load(b + c * ldb + k);
            for (int r = 0; r < R; r++) acc[r][c] = fma(rows[r], col, acc[r][c]);
        }
    }
    for (int c = 0; c < C; c++) {
        float* y = out + c * ldo;
        if constexpr (R == 1) {
            float s = sum(acc[0][c]);
            *y = add ? *y + s : s;
        } else {
            for (int r = 0; r < R; r += 4) {
                F4 s = sums(acc[r][c], acc[r + 1][c], acc[r + 2][c], acc[r + 3][c]);
                put(y + r, add ? get<F4>(y + r) + s : s);
            }
        }
    }
}

// The same for `cols` rows of b, up to tile_cols.
template <int R>
QT_INLINE void dots_up_to(int cols, const float* a, size_t lda, const float* b, size_t ldb, size_t n, float* out, size_t ldo, bool add) {
    switch (cols) {
        case 1: return dots<R, 1>(a, lda, b, ldb, n, out, ldo, add);
        case 2: return dots<R, 2>(a, lda, b, ldb, n, out, ldo, add);
        case 3: return dots<R, 3>(a, lda, b, ldb, n, out, ldo, add);
#if defined(__AVX512F__) || defined(__aarch64__)
        case 4: return dots<R, 4>(a, lda, b, ldb, n, out, ldo, add);
        case 5: return dots<R, 5>(a, lda, b, ldb, n, out, ldo, add);
        case 6: return dots<R, 6>(a, lda, b, ldb, n, out, ldo, add);
#endif
    }
}
}  // namespace qt::QT_ISA
