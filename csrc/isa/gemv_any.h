// One row of any type without minima times 1 to 8 columns: each 256 values are decoded to codes in L1, then multiplied.
// For the types whose codes need tables or arithmetic that leave no room for the tricks of gemv_k.h.
#pragma once
#include "gemv_pack.h"
#include "panel.h"

namespace qt::QT_ISA {

template <class Block, int sub>
struct RowsAny {
    using Record = Packed256;
    static constexpr int record = panel_columns / Block::size, block_bytes = sizeof(Block), block_size = Block::size;
    Z spread[4];
    INLINE RowsAny() {
        UNROLL for (int i = 0; i < 4; i++) spread[i] = dwords([&](int lane) { return (64 * i + 4 * lane) / sub; });
    }

    template <int C>
    INLINE void dots(const uint8_t* w, const Record* a, int columns, int blocks, V* sum, const uint8_t*& ahead) const {
        constexpr int n_sub = panel_columns / sub;
        alignas(64) uint8_t q[panel_columns];
        alignas(64) float s[16] = {};
        for (int b = 0; b < blocks; b += record, w += record * block_bytes, a += columns) {
            const int n = blocks - b < record ? blocks - b : record;
            prefetch(ahead, n * block_bytes);
            for (int k = 0; k < n; k++) decode(((const Block*)w)[k], PanelAt<sub>{q, s, s} + k * Block::size);
            if (n < record) [[unlikely]] {
                const int used = n * Block::size;
                __builtin_memset(q + used, 0, panel_columns - used);
                for (int k = used / sub; k < n_sub; k++) s[k] = 0;
            }
            const V scales = _mm512_load_ps(s);
            V each[4];
            Z v[4];
            UNROLL for (int i = 0; i < 4; i++) each[i] = _mm512_permutexvar_ps(spread[i], scales), v[i] = once(q + 64 * i);
            UNROLL for (int c = 0; c < C; c++)
                UNROLL for (int i = 0; i < 4; i++) {
                    const Z dots = _mm512_dpbusd_epi32(load512(a[c].start[i]), v[i], load512(a[c].q + 64 * i));
                    sum[c] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_load_ps(a[c].unit[i])), each[i], sum[c]);
                }
        }
    }
};
}  // namespace qt::QT_ISA
