// Products with many tokens. Lanes are tokens and weights are broadcast, so decoded rows stay in file order and only x is
// transposed, once. 48 rows x 256 columns are decoded to codes in L1 (12 KB), then used by all tokens.
#include "gemm.h"

#ifdef QT_ISA_avx512
#include "decode_iq.h"
#include "decode_k.h"
#include "decode_legacy.h"
#include "decode_microscaling.h"
#include "decode_ternary.h"
#include "gemm_pack.h"

namespace qt::QT_ISA {

constexpr int panel_rows = int(gemm_rows);

template <int sub>
struct alignas(64) Panel {
    uint8_t q[panel_rows][panel_columns];
    float s[panel_rows][panel_columns / sub], m[panel_rows][panel_columns / sub];
};

INLINE Z bcast4(const void* p) { return _mm512_set1_epi32(load<int32_t>(p)); }

// R rows x C groups of 16 tokens, 256 columns, added to out[group][row][16].
template <int sub, bool minima, int R, int C>
static __attribute__((noinline)) void tile_product(const Panel<sub>& p, int row, const Acts* a, float* out) {
    Z acc[R][C];
    V total[R][C];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) total[r][c] = _mm512_setzero_ps();
    const uint8_t* w = p.q[row];
    for (int j = 0; j < panel_columns / sub; j++) {
        UNROLL for (int c = 0; c < C; c++) {
            const Z start = minima ? _mm512_setzero_si512() : load512(sub == 16 ? a[c].minus16[j] : a[c].minus32[j]);
            UNROLL for (int r = 0; r < R; r++) acc[r][c] = start;
        }
        UNROLL for (int k = 0; k < sub / 4; k++) {
            Z x[C];
            UNROLL for (int c = 0; c < C; c++) x[c] = load512(a[c].q[j * sub / 4 + k]);
            UNROLL for (int r = 0; r < R; r++) {
                const Z b = bcast4(w + r * panel_columns + j * sub + 4 * k);
                UNROLL for (int c = 0; c < C; c++) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], b, x[c]);
            }
        }
        UNROLL for (int r = 0; r < R; r++) {
            const V s = bcast(&p.s[row + r][j]);
            UNROLL for (int c = 0; c < C; c++) {
                // Times a power of two by adding exponents: a multiply would cost a slot of vpdpbusd. A zero becomes 1e-36.
                const V t = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(acc[r][c])), load512(a[c].up[j * sub / 32])));
                total[r][c] = _mm512_fmadd_ps(t, s, total[r][c]);
            }
            if constexpr (minima) {
                const V m = bcast(&p.m[row + r][j]);
                UNROLL for (int c = 0; c < C; c++)
                    total[r][c] = _mm512_fnmadd_ps(_mm512_load_ps(sub == 16 ? a[c].sum16[j] : a[c].sum32[j]), m, total[r][c]);
            }
        }
    }
    UNROLL for (int c = 0; c < C; c++) {
        const V d = _mm512_load_ps(a[c].d);
        UNROLL for (int r = 0; r < R; r++) {
            float* o = out + (size_t(c) * panel_rows + r) * tokens;
            _mm512_store_ps(o, _mm512_fmadd_ps(total[r][c], d, _mm512_load_ps(o)));
        }
    }
}

// All rows of a panel against C groups.
template <int sub, bool minima, int C>
static void sweep(const Panel<sub>& p, int rows, const Acts* a, float* out) {
    int r = 0;
    for (; r + 6 <= rows; r += 6) tile_product<sub, minima, 6, C>(p, r, a, out + r * tokens);
    for (; r < rows; r++) tile_product<sub, minima, 1, C>(p, r, a, out + r * tokens);
}

// out[group][row][16] to y[token][row], plus the bias.
static void flush(const float* tile, const GemmJob& j, size_t r0, int rows) {
    for (size_t t0 = 0; t0 < j.T; t0 += tokens)
        for (int r = 0; r < rows; r += 16) {
            const float* from = tile + (t0 / tokens * panel_rows + r) * tokens;
            const int n = rows - r < 16 ? rows - r : 16, n_tokens = j.T - t0 < tokens ? int(j.T - t0) : tokens;
            Z o[16];
            UNROLL for (int i = 0; i < 16; i++) o[i] = i < n ? load512(from + i * tokens) : _mm512_setzero_si512();
            transpose16(o);
            const __mmask16 exists = __mmask16((1u << n) - 1);
            const V bias = j.bias ? _mm512_maskz_loadu_ps(exists, j.bias + r0 + r) : _mm512_setzero_ps();
            for (int t = 0; t < n_tokens; t++)
                _mm512_mask_storeu_ps(j.y + (t0 + t) * j.out + r0 + r, exists, _mm512_add_ps(_mm512_castsi512_ps(o[t]), bias));
        }
}

template <class Block, int sub, bool minima>
static void gemm_rows_of(const GemmJob& j, size_t r0, size_t r1, float* tile) {
    Panel<sub> p;
    const size_t groups = (j.T + tokens - 1) / tokens, blocks = j.in / Block::size;
    constexpr size_t per = panel_columns / Block::size;
    for (size_t r = r0; r < r1; r += panel_rows) {
        const int rows = r1 - r < size_t(panel_rows) ? int(r1 - r) : panel_rows;
        __builtin_memset(tile, 0, groups * panel_rows * tokens * sizeof(float));
        for (size_t b = 0; b < blocks; b += per) {
            const size_t n = blocks - b < per ? blocks - b : per;
            for (int i = 0; i < rows; i++) {
                auto* from = (const Block*)(j.w + (r + i) * j.row_bytes) + b;
                const PanelAt<sub> to{p.q[i], p.s[i], p.m[i]};
                for (size_t k = 0; k < n; k++) decode(from[k], to + int(k) * Block::size);
                if (n < per) {  // columns past the end: codes of zero, which meet an x of zero
                    const int used = int(n) * Block::size;
                    __builtin_memset(to.q + used, 0, panel_columns - used);
                    for (int k = used / sub; k < panel_columns / sub; k++) to.s[k] = to.m[k] = 0;
                }
            }
            for (int plane = 0; plane < j.planes; plane++) {
                const Acts* a = (const Acts*)j.packed + (b / per * j.planes + plane) * groups;
                size_t g = 0;
                for (; g + 2 <= groups; g += 2) sweep<sub, minima, 2>(p, rows, a + g, tile + g * panel_rows * tokens);
                for (; g < groups; g++) sweep<sub, minima, 1>(p, rows, a + g, tile + g * panel_rows * tokens);
            }
        }
        flush(tile, j, r, rows);
    }
}

static size_t groups_of(size_t T) { return (T + tokens - 1) / tokens; }
static size_t packed_bytes(size_t T, size_t in, int planes) { return planes * groups_of(T) * ((in + panel_columns - 1) / panel_columns) * sizeof(Acts); }
static size_t tile_floats(size_t T) { return groups_of(T) * tokens * panel_rows; }
static void pack(const float* x, size_t T, size_t in, int planes, size_t block, void* packed) {
    const size_t groups = groups_of(T), from = block * panel_columns;
    Acts* a = (Acts*)packed + block * planes * groups;
    const int n = in - from < panel_columns ? int(in - from) : panel_columns;
    for (size_t g = 0; g < groups; g++) {
        const size_t t = g * tokens;
        pack_acts(x + t * in + from, in, T - t < tokens ? int(T - t) : tokens, n, a + g, planes, groups);
    }
}

template <class Block, int sub, bool minima = false>
constexpr Gemm gemm_of = {packed_bytes, pack, tile_floats, gemm_rows_of<Block, sub, minima>};

static consteval GemmTable list() {
    using namespace block;
    GemmTable t{};
    t.of[id::Q4_0] = gemm_of<Q4_0, 32>;
    t.of[id::Q4_1] = gemm_of<Q4_1, 32, true>;
    t.of[id::Q5_0] = gemm_of<Q5_0, 32>;
    t.of[id::Q5_1] = gemm_of<Q5_1, 32, true>;
    t.of[id::Q8_0] = gemm_of<Q8_0, 32>;
    t.of[id::Q2_K] = gemm_of<Q2_K, 16, true>;
    t.of[id::Q3_K] = gemm_of<Q3_K, 16>;
    t.of[id::Q4_K] = gemm_of<Q4_K, 32, true>;
    t.of[id::Q5_K] = gemm_of<Q5_K, 32, true>;
    t.of[id::Q6_K] = gemm_of<Q6_K, 16>;
    t.of[id::IQ2_XXS] = gemm_of<IQ2_XXS, 32>;
    t.of[id::IQ2_XS] = gemm_of<IQ2_XS, 16>;
    t.of[id::IQ3_XXS] = gemm_of<IQ3_XXS, 32>;
    t.of[id::IQ1_S] = gemm_of<IQ1_S, 32>;
    t.of[id::IQ4_NL] = gemm_of<IQ4_NL, 32>;
    t.of[id::IQ3_S] = gemm_of<IQ3_S, 32>;
    t.of[id::IQ2_S] = gemm_of<IQ2_S, 16>;
    t.of[id::IQ4_XS] = gemm_of<IQ4_XS, 32>;
    t.of[id::IQ1_M] = gemm_of<IQ1_M, 16>;
    t.of[id::TQ1_0] = gemm_of<TQ1_0, 32>;
    t.of[id::TQ2_0] = gemm_of<TQ2_0, 32>;
    t.of[id::MXFP4] = gemm_of<MXFP4, 32>;
    t.of[id::NVFP4] = gemm_of<NVFP4, 16>;
    t.of[id::Q1_0] = gemm_of<Q1_0, 32>;
    t.of[id::Q2_0] = gemm_of<Q2_0, 32>;
    return t;
}
extern const GemmTable gemm_table;
constinit const GemmTable gemm_table = list();
}  // namespace qt::QT_ISA
#endif
