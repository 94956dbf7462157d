// Products with many tokens where there is no AVX-512. Lanes are tokens and codes are broadcast, so decoded rows stay in file
// order and only x is transposed, once; the instructions are those of dot8.h.
#include "gemm.h"

#if defined(__aarch64__) || (defined(__AVX2__) && !defined(QT_ISA_avx512))
#include "acts.h"
#include "unpack_books.h"

namespace qt::QT_ISA {
constexpr int tokens = VL, panel_rows = int(gemm_rows);
#if defined(__aarch64__)
constexpr int rows_at_once(bool) { return 4; }  // of 32 registers
#elif defined(__AVX512VL__)
constexpr int rows_at_once(bool) { return 6; }  // the same
#else
constexpr int rows_at_once(bool is_signed) { return is_signed ? 3 : 4; }  // of 16
#endif
constexpr int groups_at_once = 2;

// 256 columns of VL tokens.
struct alignas(64) Acts {
    int8_t q[64][tokens][4];  // [column / 4][token][column % 4]
    float d[tokens];
    int32_t up[8][tokens];    // see up_word
    Sums ones[16];            // sums of q over 16 columns
    float sum32[8][tokens];   // in units of d
};

template <int sub>
struct alignas(64) Panel {
    uint8_t q[panel_rows][panel_columns];
    float s[panel_rows][panel_columns / sub], m[panel_rows][panel_columns / sub];
};

constexpr int log2_of(int x) { return x > 1 ? 1 + log2_of(x / 2) : 0; }

// R rows x C groups of tokens, 256 columns, added to out[group][row][tokens].
template <class Of, int R, int C>
static __attribute__((noinline)) void tile_product(const Panel<Of::sub>& p, int row, const Acts* a, float* out) {
    constexpr int sub = Of::sub, at_once = Of::is_signed && span < sub ? span : sub;
    V total[R][C] = {};
    const uint8_t* w = p.q[row];
    for (int j = 0; j < panel_columns / sub; j++) {
        I sum[R][C];
        I up[C];
        QT_UNROLL for (int c = 0; c < C; c++) up[c] = get<I>(a[c].up[j * sub / 32]);
        QT_UNROLL for (int part = 0; part < sub; part += at_once) {
            Sums acc[R][C] = {};
            if constexpr (Of::offset > 0) QT_UNROLL for (int c = 0; c < C; c++) {
                const Sums ones = sub == 16 ? a[c].ones[j] : plus(a[c].ones[2 * j % 16], a[c].ones[(2 * j + 1) % 16]);
                const Sums start = offset_start(ones, log2_of(Of::offset));
                QT_UNROLL for (int r = 0; r < R; r++) acc[r][c] = start;
            }
            QT_UNROLL for (int k = 0; k < at_once; k += 4) {
                Quad x[C];
                QT_UNROLL for (int c = 0; c < C; c++) x[c] = get<Quad>(a[c].q[(j * sub + part + k) / 4]);
                QT_UNROLL for (int r = 0; r < R; r++) {
                    const Weights b = four_codes(w + r * panel_columns + j * sub + part + k);
                    QT_UNROLL for (int c = 0; c < C; c++) acc[r][c] = step<Of::is_signed>(acc[r][c], b, x[c]);
                }
            }
            QT_UNROLL for (int r = 0; r < R; r++) QT_UNROLL for (int c = 0; c < C; c++) {
                const I settled = settle(acc[r][c], up[c]);
                sum[r][c] = part ? in_order(sum[r][c] + settled) : settled;
            }
        }
        V low[C];
        if constexpr (Of::minima && Of::offset > 0) QT_UNROLL for (int c = 0; c < C; c++) {  // centred codes were for the sums only
            const I back = settle(plus(a[c].ones[2 * j], a[c].ones[2 * j + 1]), up[c]) << log2_of(Of::offset);
            QT_UNROLL for (int r = 0; r < R; r++) sum[r][c] += back;
        }
        if constexpr (Of::minima) QT_UNROLL for (int c = 0; c < C; c++)
            low[c] = sub == 32 ? load(a[c].sum32[j % 8]) : __builtin_convertvector(settle(a[c].ones[j], up[c]), V);
        QT_UNROLL for (int r = 0; r < R; r++) {
            const V s = all(p.s[row + r][j]), m = all(Of::minima ? -p.m[row + r][j] : 0);
            QT_UNROLL for (int c = 0; c < C; c++) {
                total[r][c] = fma(__builtin_convertvector(sum[r][c], V), s, total[r][c]);
                if constexpr (Of::minima) total[r][c] = fma(low[c], m, total[r][c]);
            }
        }
    }
    QT_UNROLL for (int c = 0; c < C; c++) {
        const V d = load(a[c].d);
        QT_UNROLL for (int r = 0; r < R; r++) {
            float* o = out + (size_t(c) * panel_rows + r) * tokens;
            store(o, fma(total[r][c], d, load(o)));
        }
    }
}

// All rows of a panel against C groups.
template <class Of, int C>
static void sweep(const Panel<Of::sub>& p, int rows, const Acts* a, float* out) {
    constexpr int R = rows_at_once(Of::is_signed);
    int r = 0;
    for (; r + R <= rows; r += R) tile_product<Of, R, C>(p, r, a, out + r * tokens);
    for (; r < rows; r++) tile_product<Of, 1, C>(p, r, a, out + r * tokens);
}

// 4 x 4 floats.
QT_INLINE void transpose4(F4 (&v)[4]) {
#if defined(__x86_64__)
    _MM_TRANSPOSE4_PS(v[0], v[1], v[2], v[3]);
#else
    const F4 a = v[0], b = v[1], c = v[2], d = v[3];
    for (int i = 0; i < 4; i++) v[i] = F4{a[i], b[i], c[i], d[i]};
#endif
}

// Groups [g, g + n) of tile[group][row][tokens] to y[token][row].
static void flush(const float* tile, const GemmJob& j, size_t r0, int rows, size_t g, size_t n) {
    const size_t end = (g + n) * tokens < j.T ? (g + n) * tokens : j.T;
    for (size_t t0 = g * tokens; t0 < end; t0 += 4)
        for (int r = 0; r < rows; r += 4) {
            const float* from = tile + (t0 / tokens * panel_rows + r) * tokens + t0 % tokens;
            const size_t n_rows = rows - r < 4 ? size_t(rows - r) : 4;
            F4 v[4];
            for (int i = 0; i < 4; i++) v[i] = get<F4>(from + i * tokens);  // rows past the last are there, and not wanted
            transpose4(v);
            for (size_t i = 0; i < 4 && t0 + i < end; i++) {
                float* y = j.y + (t0 + i) * j.out + r0 + r;
                if (n_rows == 4) put(y, v[i]);
                else __builtin_memcpy(y, &v[i], n_rows * sizeof(float));
            }
        }
}

// Groups [g, g + n) are complete, and still in L1: bias, gate, and out.
static void finish(float* tile, const GemmJob& j, size_t r0, int rows, size_t g, size_t n) {
    float* done = tile + g * panel_rows * tokens;
    if (j.bias)
        for (size_t k = 0; k < n; k++)
            for (int r = 0; r < rows; r++) {
                float* o = done + (k * panel_rows + size_t(r)) * tokens;
                store(o, load(o) + all(j.bias[r0 + size_t(r)]));
            }
    if (j.act) j.act(j.gate + g * panel_rows * tokens, done, done, n * panel_rows * tokens);
    if (j.y) flush(tile, j, r0, rows, g, n);
}

// How the codes of a panel are multiplied: one kernel for all types alike.
template <class Of>
#if defined(QT_VNNI)  // signed codes become bytes, too; and no sum needs to be centred
using KindOf = Coding<Of::sub, Of::minima ? 0 : Of::is_signed ? 128 : Of::offset, Of::minima>;
#else
using KindOf = Coding<Of::sub, Of::offset, Of::minima>;
#endif

// 256 columns, or the last n blocks, of one row.
template <class Block>
QT_INLINE void fill_panel(const Block* from, size_t n, uint8_t* q, float* s, float* m) {
    using Of = CodingOf<Block>;
    constexpr int lift = KindOf<Of>::offset - (Of::minima ? 0 : Of::offset);
    const auto put_codes = [&](int j, Codes c) __attribute__((always_inline)) { store_codes(q + 32 * j, lift == 128 ? c ^ every(128) : c); };
    if (n < panel_columns / Block::size) unpack(Rest<Block>(from, n).blocks, s, m, put_codes);
    else unpack(from, s, m, put_codes);
}

template <class Block>
static void gemm_rows_of(const GemmJob& j, size_t r0, size_t r1, float* tile) {
    using Kind = KindOf<CodingOf<Block>>;
    Panel<Kind::sub> p;
    const size_t groups = (j.T + tokens - 1) / tokens, blocks = j.in / Block::size;
    constexpr size_t per = panel_columns / Block::size;
    for (size_t r = r0; r < r1; r += panel_rows) {
        const int rows = r1 - r < size_t(panel_rows) ? int(r1 - r) : panel_rows;
        __builtin_memset(tile, 0, groups * panel_rows * tokens * sizeof(float));
        for (size_t b = 0; b < blocks; b += per) {
            const size_t n = blocks - b < per ? blocks - b : per;
            for (int i = 0; i < rows; i++) fill_panel((const Block*)(j.w + (r + size_t(i)) * j.row_bytes) + b, n, p.q[i], p.s[i], p.m[i]);
            const Acts* a = (const Acts*)j.packed + b / per * size_t(j.planes) * groups;
            for (size_t g = 0; g < groups; g += groups_at_once) {
                const bool whole = g + groups_at_once <= groups;
                float* out = tile + g * panel_rows * tokens;
                for (size_t plane = 0; plane < size_t(j.planes); plane++)
                    whole ? sweep<Kind, groups_at_once>(p, rows, a + plane * groups + g, out) : sweep<Kind, 1>(p, rows, a + plane * groups + g, out);
                if (b + per >= blocks) finish(tile, j, r, rows, g, whole ? groups_at_once : 1);
            }
        }
    }
}

static size_t groups_of(size_t T) { return (T + tokens - 1) / tokens; }
static size_t packed_bytes(size_t T, size_t in, int planes) { return planes * groups_of(T) * ((in + panel_columns - 1) / panel_columns) * sizeof(Acts); }
static size_t tile_floats(size_t T) { return groups_of(T) * tokens * panel_rows; }

// Transposes rounded tokens, and sums.
static void arrange(const Rounded* from, Acts& a) {
    const uint8_t one[4] = {1, 1, 1, 1};
    for (int t = 0; t < tokens; t++) {
        a.d[t] = from[t].d;
        for (int j = 0; j < 8; j++) a.up[j][t] = up_word(from[t].up[j]);
        for (int k = 0; k < 64; k++) __builtin_memcpy(a.q[k][t], from[t].q + 4 * k, 4);
    }
    for (int g = 0; g < 16; g++) {
        Sums sums{};
        for (int k = 4 * g; k < 4 * g + 4; k++) sums = step<false>(sums, four_codes(one), get<Quad>(a.q[k]));
        a.ones[g] = sums;
    }
    for (int j = 0; j < 8; j++) store(a.sum32[j], __builtin_convertvector(settle(plus(a.ones[2 * j], a.ones[2 * j + 1]), get<I>(a.up[j])), V));
}

static void pack(const float* x, size_t T, size_t in, int planes, size_t block, void* packed) {
    const size_t groups = groups_of(T), from = block * panel_columns;
    Acts* a = (Acts*)packed + block * planes * groups;
    const int n = in - from < panel_columns ? int(in - from) : panel_columns;
    Rounded rounded[2][tokens];
    for (size_t g = 0; g < groups; g++) {
        for (size_t t = 0; t < tokens; t++) {
            const size_t token = g * tokens + t;
            alignas(64) float v[panel_columns];
            take_acts(x + (token < T ? token * in + from : 0), token < T ? n : 0, v);
            for (int p = 0; p < planes; p++) round_acts(v, rounded[p][t]);
        }
        for (int p = 0; p < planes; p++) arrange(rounded[p], a[p * groups + g]);
    }
}

static consteval GemmTable list() {
    GemmTable t{};
#if defined(__AVX2__) && !defined(QT_VNNI)
    constexpr int most_signed = 1;  // signed codes cost twice the multiplications
#else
    constexpr int most_signed = 2;
#endif
#define QT_GEMM(name, ...) t.of[id::name] = {packed_bytes, pack, tile_floats, gemm_rows_of<block::name>, CodingOf<block::name>::is_signed ? most_signed : 2};
    QT_INTEGER_TYPES(QT_GEMM)
#undef QT_GEMM
    return t;
}
extern const GemmTable gemm_table;
constinit const GemmTable gemm_table = list();
}  // namespace qt::QT_ISA
#endif
