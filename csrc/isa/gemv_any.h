// One row of any type without minima times one packed input: each 256 columns are decoded to codes in L1, then multiplied.
// For the types whose codes need tables or arithmetic that leave no room for the tricks of gemv_k.h.
#pragma once
#include "gemv_pack.h"
#include "panel.h"

namespace qt::QT_ISA {

// One plane of 256 values in file order.
struct alignas(64) Packed256 {
    int8_t q[256];
    int32_t minus[4][16];  // -128 * sums of the 4 values each dot lane sees: undoes the offset of signed codes
    float d;
};

// [record][plane]; values past the end are zero.
static void pack_256(const float* x, int in, Packed256* a) {
    const Z one = b8(1), zero = _mm512_setzero_si512();
    for (int b = 0; b < in; b += 256) {
        V v[16];
        UNROLL for (int i = 0; i < 16; i++) v[i] = b + 16 * i < in ? _mm512_loadu_ps(x + b + 16 * i) : _mm512_setzero_ps();
        for (int p = 0; p < planes; p++, a++) {
            __m128i q[16];
            a->d = round_plane(v, q);
            UNROLL for (int i = 0; i < 16; i++) _mm_store_si128((__m128i*)(a->q + 16 * i), q[i]);
            for (int i = 0; i < 4; i++) {
                const Z sums = _mm512_dpbusd_epi32(zero, one, load512(a->q + 64 * i));
                _mm512_store_si512(a->minus[i], _mm512_sub_epi32(zero, _mm512_slli_epi32(sums, 7)));
            }
        }
    }
}

template <class Block, int sub>
INLINE float dot_any(const Block* w, const Packed256* a, int blocks, const uint8_t*& ahead) {
    constexpr int per = panel_columns / Block::size, n_sub = panel_columns / sub;
    alignas(64) uint8_t q[panel_columns];
    alignas(64) float s[16] = {};
    Z spread[4];
    UNROLL for (int i = 0; i < 4; i++) spread[i] = dwords([&](int lane) { return (64 * i + 4 * lane) / sub; });
    V sum[planes] = {};
    for (int b = 0; b < blocks; b += per, w += per, a += planes) {
        const int n = blocks - b < per ? blocks - b : per;
        prefetch(ahead, n * int(sizeof(Block)));
        for (int k = 0; k < n; k++) decode(w[k], PanelAt<sub>{q, s, s} + k * Block::size);
        if (n < per) [[unlikely]] {
            const int used = n * Block::size;
            __builtin_memset(q + used, 0, panel_columns - used);
            for (int k = used / sub; k < n_sub; k++) s[k] = 0;
        }
        const V scales = _mm512_load_ps(s);
        V each[4];
        UNROLL for (int i = 0; i < 4; i++) each[i] = _mm512_permutexvar_ps(spread[i], scales);
        UNROLL for (int p = 0; p < planes; p++) {
            V total = _mm512_setzero_ps();
            UNROLL for (int i = 0; i < 4; i++) {
                const Z dots = _mm512_dpbusd_epi32(load512(a[p].minus[i]), load512(q + 64 * i), load512(a[p].q + 64 * i));
                total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), each[i], total);
            }
            sum[p] = _mm512_fmadd_ps(total, _mm512_set1_ps(a[p].d), sum[p]);
        }
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}
}  // namespace qt::QT_ISA
