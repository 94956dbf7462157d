// Rows of halves and of bfloat16 times many tokens, as bfloat16 with sums in float32: x is rounded to 8 bits, F16 weights too.
// Laid out as codes are (gemm_tile.h): lanes are tokens, pairs of weights are broadcast.
#pragma once
#include "gemm_pack.h"

#define QT_BF16 __attribute__((target("avx512bf16")))

namespace qt::QT_ISA {
constexpr int bf16_columns = 128;  // of 48 rows, and of 64 tokens: both stay in L1

// Columns of 16 tokens: [pair of columns][token]. Records stand by columns, then by tokens: what a panel meets is one stream.
struct alignas(64) Bf16Acts { uint32_t pairs[bf16_columns / 2][tokens]; };
struct alignas(64) Bf16Panel { uint32_t pairs[gemm_rows][bf16_columns / 2]; };

static size_t bf16_packed_bytes(size_t T, size_t in, int) { return (T + tokens - 1) / tokens * ((in + 255) / 256 * 2) * sizeof(Bf16Acts); }

// Floats 16 to 31 above floats 0 to 15, those past `n` as zeros.
QT_BF16 QT_INLINE Z bf16_pairs(V low, V high) { return (Z)_mm512_cvtne2ps_pbh(high, low); }
QT_INLINE __mmask16 first_of_16(int n) { return __mmask16(n >= 16 ? 0xffff : n > 0 ? (1 << n) - 1 : 0); }

QT_BF16 static void bf16_pack(const float* x, size_t T, size_t in, int, size_t block, void* packed) {
    const size_t groups = (T + tokens - 1) / tokens, from = block * 256;
    Bf16Acts* a = (Bf16Acts*)packed + 2 * block * groups;
    for (size_t g = 0; g < groups; g++, a++)
        for (int k = 0; k < 8; k++) {  // 32 columns at a time
            const int n = int(in - from < 256 ? in - from : 256) - 32 * k;
            Z v[tokens];
            QT_UNROLL for (int t = 0; t < tokens; t++) {
                const size_t token = g * tokens + t;
                const int left = token < T ? n : 0;
                const float* p = x + token * in + from + 32 * k;
                v[t] = bf16_pairs(_mm512_maskz_loadu_ps(first_of_16(left), p), _mm512_maskz_loadu_ps(first_of_16(left - 16), p + 16));
            }
            transpose16(v);
            uint32_t (*to)[tokens] = a[k / 4 * groups].pairs + k % 4 * 16;
            QT_UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(to[i], v[i]);
        }
}

struct AsBF16 {
    static QT_INLINE Z load(const uint16_t* w, __mmask32 m) { return _mm512_maskz_loadu_epi16(m, w); }
};
struct AsF16 {
    QT_BF16 static QT_INLINE Z load(const uint16_t* w, __mmask32 m) {
        const Z x = _mm512_maskz_loadu_epi16(m, w);
        return bf16_pairs(_mm512_cvtph_ps(_mm512_castsi512_si256(x)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)));
    }
};

// Adds R rows times C groups to out[group][row][16].
template <int R, int C>
QT_BF16 static __attribute__((noinline)) void bf16_tile(const uint32_t (*w)[bf16_columns / 2], const Bf16Acts* x, float* out) {
    V sum[R][C];
    QT_UNROLL for (int r = 0; r < R; r++) QT_UNROLL for (int c = 0; c < C; c++) sum[r][c] = _mm512_load_ps(out + (c * gemm_rows + r) * tokens);
    for (int k = 0; k < bf16_columns / 2; k++) {
        Z a[C];
        QT_UNROLL for (int c = 0; c < C; c++) a[c] = _mm512_load_si512(x[c].pairs[k]);
        QT_UNROLL for (int r = 0; r < R; r++) {
            const Z b = _mm512_set1_epi32(int(w[r][k]));
            QT_UNROLL for (int c = 0; c < C; c++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], (__m512bh)a[c], (__m512bh)b);
        }
    }
    QT_UNROLL for (int r = 0; r < R; r++) QT_UNROLL for (int c = 0; c < C; c++) _mm512_store_ps(out + (c * gemm_rows + r) * tokens, sum[r][c]);
}

template <int R, int C>
static void bf16_strips(const Bf16Panel& p, int rows, const Bf16Acts* x, float* out) {
    for (int r = 0; r < rows; r += R) bf16_tile<R, C>(p.pairs + r, x, out + r * tokens);
}

// Up to 48 rows into tile[group][row][16]; finish(group, n) is told of groups that are complete.
template <class Type, class Finish>
QT_BF16 static void bf16_rows_into(const GemmJob& j, size_t r0, int rows, float* tile, Finish finish) {
    const size_t groups = (j.T + tokens - 1) / tokens;
    Bf16Panel p{};  // rows past the last are multiplied too, up to a strip
    __builtin_memset(tile, 0, groups * gemm_rows * tokens * sizeof(float));
    for (size_t k = 0; k < j.in; k += bf16_columns) {
        const int n = j.in - k < bf16_columns ? int(j.in - k) : bf16_columns;
        for (int r = 0; r < rows; r++) {
            const uint16_t* w = (const uint16_t*)(j.w + (r0 + r) * j.row_bytes) + k;
            QT_UNROLL for (int i = 0; i < bf16_columns / 32; i++) {
                const int left = n - 32 * i;
                _mm_prefetch((const char*)(w + bf16_columns + 32 * i), _MM_HINT_T1);
                _mm512_store_si512(p.pairs[r] + 16 * i, Type::load(w + 32 * i, __mmask32(left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0)));
            }
        }
        const Bf16Acts* a = (const Bf16Acts*)j.packed + k / bf16_columns * groups;
        const bool last = k + bf16_columns >= j.in;
        for (size_t g = 0, c; g < groups; g += c) {
            c = groups - g < 4 ? groups - g : 4;
            const Bf16Acts* x = a + g;
            float* out = tile + g * gemm_rows * tokens;
            switch (c) {
                case 4: bf16_strips<6, 4>(p, rows, x, out); break;
                case 3: bf16_strips<6, 3>(p, rows, x, out); break;
                case 2: bf16_strips<12, 2>(p, rows, x, out); break;
                default: bf16_strips<12, 1>(p, rows, x, out);
            }
            if (last) finish(g, c);
        }
    }
}
}  // namespace qt::QT_ISA
