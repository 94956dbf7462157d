// The innermost product: R rows of decoded weights times C groups of 16 tokens, over 256 columns.
// Every multiplication takes a slot of vpdpbusd, while sums, shifts, conversions and loads are free, so multiplications are
// what is counted: 64 of 256 columns for the codes, and as few as the type allows for its scales and minima.
#pragma once
#include "gemm_pack.h"

namespace qt::QT_ISA {

enum Minima {
    none,
    floats,   // one for each scale, multiplied as a float: for any type, and for two planes
    words16,  // integers for 16 or 32 columns, multiplied in pairs by sums of x that are rounded to 16 bits
    words32
};

// How a type's values are written: scale * (code - offset) - minimum.
struct Form {
    int sub;  // columns that share a scale: 16, 32, or all 256
    Minima minima = none;
    int offset = 128;  // 128, 127, or 0 with minima
};

constexpr int panel_rows = 48;

template <Form f>
struct alignas(64) Panel {
    static constexpr int scales = panel_columns / f.sub, pairs = f.minima == words16 ? 8 : 4;
    uint8_t q[panel_rows][panel_columns];
    float s[panel_rows][scales];
    float m[panel_rows][f.minima == floats ? scales : 1];        // minima, or the unit of those that are integers
    int32_t words[panel_rows][f.minima > floats ? pairs : 1];  // pairs of int16
};

QT_INLINE Z bcast4(const void* p) { return _mm512_set1_epi32(load<int32_t>(p)); }

// Sums start at floats of so high an exponent that their last bit is a unit of x: what codes add to the bits is added to the
// value, and a conversion and a power of two take no more than a subtraction, which leaves vpdpbusd its slots.
QT_INLINE V settled(Z sum, V zero) { return _mm512_sub_ps(_mm512_castsi512_ps(sum), zero); }

// What sums of codes start at, to be sums of values in the end.
template <Form f>
QT_INLINE Z sums_from(const Acts& a, int group) {
    const Z zero = load512(a.zero[group * (f.sub == 16 ? 16 : 32) / 32]);
    if (f.offset == 0) return zero;
    const Z from = load512(f.sub == 16 ? a.from16[group] : a.from32[group]);
    return f.offset == 127 ? _mm512_sub_epi32(from, _mm512_srai_epi32(_mm512_sub_epi32(from, zero), 7)) : from;
}

// Adds to out[group][row][16].
template <Form f, int R, int C>
static __attribute__((noinline)) void tile_product(const Panel<f>& p, int row, const Acts* a, float* out) {
    constexpr int sub = f.sub == 16 ? 16 : 32;  // columns summed as integers
    Z acc[R][C];
    V total[R][C];
    QT_UNROLL for (int r = 0; r < R; r++) QT_UNROLL for (int c = 0; c < C; c++) total[r][c] = _mm512_setzero_ps();
    const uint8_t* w = p.q[row];
    for (int j = 0; j < panel_columns / sub; j++) {
        QT_UNROLL for (int c = 0; c < C; c++) {
            const Z from = sums_from<f>(a[c], j);
            QT_UNROLL for (int r = 0; r < R; r++) acc[r][c] = from;
        }
        QT_UNROLL for (int k = 0; k < sub / 4; k++) {
            Z x[C];
            QT_UNROLL for (int c = 0; c < C; c++) x[c] = load512(a[c].q[j * sub / 4 + k]);
            QT_UNROLL for (int r = 0; r < R; r++) {
                const Z b = bcast4(w + r * panel_columns + j * sub + 4 * k);
                QT_UNROLL for (int c = 0; c < C; c++) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], b, x[c]);
            }
        }
        QT_UNROLL for (int c = 0; c < C; c++) {
            const V zero = _mm512_load_ps(a[c].zero[j * sub / 32]);
            QT_UNROLL for (int r = 0; r < R; r++) {
                const V t = settled(acc[r][c], zero);
                total[r][c] = f.sub == panel_columns ? _mm512_add_ps(total[r][c], t) : _mm512_fmadd_ps(t, bcast(&p.s[row + r][j]), total[r][c]);
            }
            if constexpr (f.minima == floats) {  // m is a 128th: the sums are -128 of theirs
                const V sum = settled(load512(sub == 16 ? a[c].from16[j] : a[c].from32[j]), zero);
                QT_UNROLL for (int r = 0; r < R; r++) total[r][c] = _mm512_fmadd_ps(sum, bcast(&p.m[row + r][j]), total[r][c]);
            }
        }
    }
    if constexpr (f.sub == panel_columns)
        QT_UNROLL for (int r = 0; r < R; r++) QT_UNROLL for (int c = 0; c < C; c++) total[r][c] = _mm512_mul_ps(total[r][c], bcast(p.s[row + r]));
    if constexpr (f.minima > floats) {
        QT_UNROLL for (int r = 0; r < R; r++) QT_UNROLL for (int c = 0; c < C; c++) acc[r][c] = _mm512_setzero_si512();
        for (int j = 0; j < Panel<f>::pairs; j++)
            QT_UNROLL for (int c = 0; c < C; c++) {
                const Z sums = load512(f.minima == words16 ? a[c].pairs16[j] : a[c].pairs32[j]);
                QT_UNROLL for (int r = 0; r < R; r++) acc[r][c] = _mm512_dpwssd_epi32(acc[r][c], sums, bcast4(&p.words[row + r][j]));
            }
        QT_UNROLL for (int r = 0; r < R; r++) QT_UNROLL for (int c = 0; c < C; c++)
            total[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][c]), bcast(p.m[row + r]), total[r][c]);
    }
    QT_UNROLL for (int c = 0; c < C; c++) {
        const V d = _mm512_load_ps(a[c].d);
        QT_UNROLL for (int r = 0; r < R; r++) {
            float* o = out + (size_t(c) * panel_rows + r) * tokens;
            _mm512_store_ps(o, _mm512_fmadd_ps(total[r][c], d, _mm512_load_ps(o)));
        }
    }
}

// The first `rows` of a panel, and up to 3 after them, against C groups. Where all x exceeds L2, what follows of it is fetched
// meanwhile, a part with each tile: waiting for it costs up to a quarter of the time.
template <Form f, int R, int C>
QT_INLINE void strips(const Panel<f>& p, int rows, const Acts* a, bool ahead, float* out) {
    constexpr int part = C * sizeof(Acts) * R / panel_rows, rest = 4;
    static_assert(panel_rows % R == 0 && (R - 2 + rest - 1) / rest * rest <= R, "no tile ends past the panel");
    const char* next = (const char*)(a + C);
    int r = 0;
    for (; r + R - 1 <= rows; r += R, next += part) {  // where one lacks, tiles of four would end past the panel
        if (ahead) QT_UNROLL for (int k = 0; k < part; k += 64) _mm_prefetch(next + k, _MM_HINT_T1);
        tile_product<f, R, C>(p, r, a, out + r * tokens);
    }
    for (; r < rows; r += rest) tile_product<f, rest, C>(p, r, a, out + r * tokens);
}

// Any number of groups.
template <Form f>
static void sweep(const Panel<f>& p, int rows, const Acts* a, size_t groups, bool ahead, float* out) {
    size_t g = 0;
    for (; g + 2 <= groups; g += 2, out += 2 * panel_rows * tokens) strips<f, 6, 2>(p, rows, a + g, ahead, out);
    if (g < groups) strips<f, 12, 1>(p, rows, a + g, ahead, out);
}
}  // namespace qt::QT_ISA
