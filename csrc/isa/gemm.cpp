// Products with many tokens. Lanes are tokens and weights are broadcast, so decoded rows stay in file order and only x is
// transposed, once. 48 rows x 256 columns are decoded to codes in L1 (12 KB), then used by all tokens.
#include "gemm.h"

#ifdef QT_ISA_avx512
#include "gemm_bf16.h"
#include "gemm_unpack.h"

namespace qt::QT_ISA {
static_assert(panel_rows == gemm_rows);

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

// Rows past the last are multiplied too, up to 3.
template <Form f>
static void clear_from(int row, Panel<f>& p) {
    auto clear = [row](auto& of) { __builtin_memset(of[row], 0, (panel_rows - row) * sizeof of[0]); };
    clear(p.q), clear(p.s), clear(p.m), clear(p.words);
}

QT_INLINE void fetch(const void* from, size_t bytes) {
    for (size_t k = 0; k < bytes + 63; k += 64) _mm_prefetch((const char*)from + k, _MM_HINT_T1);
}

// Up to 48 rows into tile[group][row][16]; finish(group, n) is told of groups that are complete, while they are in L1.
template <class Block, Form f, class Finish>
static void rows_into(const GemmJob& j, size_t r0, int rows, float* tile, Finish finish) {
    constexpr size_t per = panel_columns / Block::size;
    const size_t groups = groups_of(j.T), blocks = j.in / Block::size;
    const bool ahead = packed_bytes(j.T, j.in, j.planes) > (size_t(1) << 20);
    const Unpacker<Block, f> unpack;
    Panel<f> p;
    clear_from(rows, p);
    __builtin_memset(tile, 0, groups * panel_rows * tokens * sizeof(float));
    for (size_t b = 0; b < blocks; b += per) {
        const size_t n = blocks - b < per ? blocks - b : per;
        for (int i = 0; i < rows; i++) {
            auto* from = (const Block*)(j.w + (r0 + i) * j.row_bytes) + b;
            fetch(b + per < blocks ? (const void*)(from + per) : j.w + (r0 + i + panel_rows) * j.row_bytes, per * sizeof(Block));
            if (n == per) {
                unpack(from, p, i);
            } else {  // the row ends inside: blocks of zeros follow, which meet zeros of x
                Block whole[per];
                __builtin_memset(whole, 0, sizeof whole);
                __builtin_memcpy(whole, from, n * sizeof(Block));
                unpack(whole, p, i);
            }
        }
        const Acts* a = (const Acts*)j.packed + b / per * j.planes * groups;
        for (size_t g = 0; g < groups; g += 2) {
            const size_t pair = groups - g < 2 ? 1 : 2;
            float* out = tile + g * panel_rows * tokens;
            for (int plane = 0; plane < j.planes; plane++) sweep(p, rows, a + plane * groups + g, pair, ahead, out);
            if (b + per >= blocks) finish(g, pair);
        }
    }
}

static void add_bias(const float* bias, int rows, float* tile, size_t groups) {
    for (size_t g = 0; g < groups; g++)
        for (int r = 0; r < rows; r++) {
            float* o = tile + (g * panel_rows + r) * tokens;
            _mm512_store_ps(o, _mm512_add_ps(_mm512_load_ps(o), _mm512_set1_ps(bias[r])));
        }
}

// Groups [g, g + n) of tile[group][row][16] to y[token][row].
static void flush(const float* tile, const GemmJob& j, size_t r0, int rows, size_t g, size_t n) {
    for (; n; g++, n--)
        for (int r = 0; r < rows; r += 16) {
            const size_t t0 = g * tokens;
            const float* from = tile + (g * panel_rows + r) * tokens;
            const int n_rows = rows - r < 16 ? rows - r : 16, n_tokens = j.T - t0 < tokens ? int(j.T - t0) : tokens;
            Z o[16];
            QT_UNROLL for (int i = 0; i < 16; i++) o[i] = load512(from + i * tokens);
            transpose16(o);
            const __mmask16 exists = __mmask16((1u << n_rows) - 1);
            float* y = j.y + t0 * j.out + r0 + r;
            for (int t = 0; t < n_tokens; t++) _mm512_mask_storeu_ps(y + t * j.out, exists, _mm512_castsi512_ps(o[t]));
        }
}

// What becomes of sums: the bias, the gate, and their place in y.
struct Finish {
    const GemmJob& j;
    size_t r0;
    int rows;
    float* tile;
    void operator()(size_t g, size_t n) const {
        float* done = tile + g * panel_rows * tokens;
        if (j.bias) add_bias(j.bias + r0, rows, done, n);
        if (j.act) j.act(j.gate + g * panel_rows * tokens, done, done, n * panel_rows * tokens);
        if (j.y) flush(tile, j, r0, rows, g, n);
    }
};

// `fine` is the form for two planes: integers cannot hold the sums that minima multiply then.
template <class Block, Form fast, Form fine>
static void rows(const GemmJob& j, size_t r0, size_t r1, float* tile) {
    for (size_t r = r0; r < r1; r += panel_rows) {
        const int n = r1 - r < size_t(panel_rows) ? int(r1 - r) : panel_rows;
        if (j.planes == 1) rows_into<Block, fast>(j, r, n, tile, Finish{j, r, n, tile});
        else rows_into<Block, fine>(j, r, n, tile, Finish{j, r, n, tile});
    }
}
template <class Type>
static void bf16_rows(const GemmJob& j, size_t r0, size_t r1, float* tile) {
    for (size_t r = r0; r < r1; r += panel_rows) {
        const int n = r1 - r < size_t(panel_rows) ? int(r1 - r) : panel_rows;
        bf16_rows_into<Type>(j, r, n, tile, Finish{j, r, n, tile});
    }
}

template <class Block, Form fast, Form fine = fast>
constexpr Gemm gemm_of = {packed_bytes, pack, tile_floats, rows<Block, fast, fine>};
template <class Type>
constexpr Gemm bf16_of = {bf16_packed_bytes, bf16_pack, tile_floats, bf16_rows<Type>, 1, true};

static consteval GemmTable list() {
    using namespace block;
    GemmTable t{};
    t.of[id::F16] = bf16_of<AsF16>;
    t.of[id::BF16] = bf16_of<AsBF16>;
    t.of[id::Q4_0] = gemm_of<Q4_0, plain32>;
    t.of[id::Q4_1] = gemm_of<Q4_1, minima32>;
    t.of[id::Q5_0] = gemm_of<Q5_0, plain32>;
    t.of[id::Q5_1] = gemm_of<Q5_1, minima32>;
    t.of[id::Q8_0] = gemm_of<Q8_0, plain32>;
    t.of[id::Q2_K] = gemm_of<Q2_K, folded_with_words, minima16>;
    t.of[id::Q3_K] = gemm_of<Q3_K, folded>;
    t.of[id::Q4_K] = gemm_of<Q4_K, with_words, minima32>;
    t.of[id::Q5_K] = gemm_of<Q5_K, with_words, minima32>;
    t.of[id::Q6_K] = gemm_of<Q6_K, plain16>;
    t.of[id::IQ2_XXS] = gemm_of<IQ2_XXS, plain32>;
    t.of[id::IQ2_XS] = gemm_of<IQ2_XS, plain16>;
    t.of[id::IQ3_XXS] = gemm_of<IQ3_XXS, plain32>;
    t.of[id::IQ1_S] = gemm_of<IQ1_S, plain32>;
    t.of[id::IQ4_NL] = gemm_of<IQ4_NL, plain32>;
    t.of[id::IQ3_S] = gemm_of<IQ3_S, plain32>;
    t.of[id::IQ2_S] = gemm_of<IQ2_S, plain16>;
    t.of[id::IQ4_XS] = gemm_of<IQ4_XS, plain32>;
    t.of[id::IQ1_M] = gemm_of<IQ1_M, plain16>;
    t.of[id::TQ1_0] = gemm_of<TQ1_0, plain256>;
    t.of[id::TQ2_0] = gemm_of<TQ2_0, plain256>;
    t.of[id::MXFP4] = gemm_of<MXFP4, plain32>;
    t.of[id::NVFP4] = gemm_of<NVFP4, plain16>;
    t.of[id::Q1_0] = gemm_of<Q1_0, plain32>;
    t.of[id::Q2_0] = gemm_of<Q2_0, plain32>;
    return t;
}
extern const GemmTable gemm_table;
constinit const GemmTable gemm_table = list();
}  // namespace qt::QT_ISA
#endif
