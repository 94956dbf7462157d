// Products with few tokens where there is no AVX-512: each 256 columns of a row are unpacked once, to registers, for up to
// four columns of x. The instructions are those of dot8.h, the layouts of blocks those of unpack.h.
#include "gemv.h"

#ifndef QT_ISA_avx512
#include "acts.h"
#include "unpack.h"

namespace qt::QT_ISA {

// 256 values of one plane of one token, in file order.
struct alignas(64) RowActs {
    Act q[act_columns];
    int32_t up[8];                // see up_word
    float sum32[8], sum16[16];    // sums of 32 and of 16 values, in units of d
    float d;
};

static void arrange(const Rounded& from, RowActs& a) {
    a.d = from.d;
    for (int j = 0; j < 8; j++) {
        const int power = 1 << from.up[j];
        for (int i = 32 * j; i < 32 * j + 32; i++) a.q[i] = Act(sizeof(Act) == 1 ? from.q[i] : from.q[i] * power);
        a.up[j] = up_word(from.up[j]);
        for (int g = 2 * j; g < 2 * j + 2; g++) {
            int sum = 0;
            for (int i = 0; i < 16; i++) sum += from.q[16 * g + i];
            a.sum16[g] = float(sum * power);
        }
        a.sum32[j] = a.sum16[2 * j] + a.sum16[2 * j + 1];
    }
}

static size_t blocks_of(size_t in) { return (in + act_columns - 1) / act_columns; }
static size_t packed_bytes(size_t T, size_t in, int planes) { return T * size_t(planes) * blocks_of(in) * sizeof(RowActs); }

// [block][token][plane]; values past the end are zero.
static void pack(const float* x, size_t ldx, size_t T, size_t in, int planes, void* packed) {
    RowActs* a = (RowActs*)packed;
    for (size_t k = 0; k < in; k += act_columns)
        for (size_t t = 0; t < T; t++) {
            alignas(64) float v[act_columns];
            take_acts(x + t * ldx + k, in - k < act_columns ? int(in - k) : act_columns, v);
            for (int p = 0; p < planes; p++) {
                Rounded rounded;
                round_acts(v, rounded);
                arrange(rounded, *a++);
            }
        }
}

// The scale of each lane of row_sums of 32 columns.
template <int sub>
struct LaneScales {
    V at[sub == 16 ? Codes::parts : 1];
    QT_INLINE LaneScales(const float* s, int j) {
        if constexpr (sub == 32) at[0] = all(s[j]);
#if defined(__AVX2__)
        else at[0] = _mm256_blend_ps(_mm256_broadcast_ss(s + 2 * j), _mm256_broadcast_ss(s + 2 * j + 1), 0xf0);
#else
        else
            for (int i = 0; i < 2; i++) at[i] = all(s[2 * j + i]);
#endif
    }
};

template <bool is_signed, int sub>
QT_INLINE V add_products(V sum, Codes c, const RowActs& a, int j, const LaneScales<sub>& s) {
    const Act* x = a.q + 32 * j;
    if constexpr (Codes::parts == 1) return fma(__builtin_convertvector(settle_row(row_sums<is_signed>(c.at[0], x), &a.up[j]), V), s.at[0], sum);
    else {
        const RowSums first = row_sums<is_signed>(c.at[0], x), second = row_sums<is_signed>(c.at[1], x + 16);
        if constexpr (sub == 32) return fma(__builtin_convertvector(settle_row(first + second, &a.up[j]), V), s.at[0], sum);
        sum = fma(__builtin_convertvector(settle_row(first, &a.up[j]), V), s.at[0], sum);
        return fma(__builtin_convertvector(settle_row(second, &a.up[j]), V), s.at[sub == 16], sum);
    }
}

constexpr size_t ahead_bytes = 12288;  // one sequential stream a thread, fetched into L2 this far ahead

// One row times C columns of x; those of a block lie `stride` records after those of the last.
template <class Block, int C>
static __attribute__((noinline)) void dot_row(const Block* w, const RowActs* a, size_t stride, size_t blocks, float* y) {
    using Of = CodingOf<Block>;
    constexpr size_t per = panel_columns / Block::size;
    constexpr int n_sub = panel_columns / Of::sub;
    V total[C] = {};
    for (size_t b = 0; b < blocks; b += per, w += per, a += stride) {
        for (size_t k = 0; k < per * sizeof(Block); k += 64) __builtin_prefetch((const uint8_t*)w + ahead_bytes + k, 0, 1);
        alignas(32) float s[n_sub], m[n_sub];
        V part[C][2] = {};
        const auto use = [&](int j, Codes c) __attribute__((always_inline)) {
            const LaneScales<Of::sub> scales(s, j);
            for (int t = 0; t < C; t++) part[t][j % 2] = add_products<Of::is_signed>(part[t][j % 2], c, a[t], j, scales);
        };
        if (blocks - b < per) [[unlikely]] {  // the row ends inside: zero blocks, which meet zeros of x
            Block rest[per];
            __builtin_memset(rest, 0, sizeof rest);
            __builtin_memcpy(rest, w, (blocks - b) * sizeof(Block));
            unpack(rest, s, m, use);
        } else {
            unpack(w, s, m, use);
        }
        if constexpr (Of::minima || Of::offset > 0)
            for (int i = 0; i < n_sub; i += VL) {
                const V low = Of::minima ? load(m + i) : load(s + i) * all(Of::offset);
                for (int t = 0; t < C; t++) part[t][i / VL % 2] = fma(load((Of::sub == 32 ? a[t].sum32 : a[t].sum16) + i), -low, part[t][i / VL % 2]);
            }
        for (int t = 0; t < C; t++) total[t] = fma(part[t][0] + part[t][1], all(a[t].d), total[t]);
    }
    for (int t = 0; t < C; t++) y[t] = sum(total[t]);
}

template <class Block>
static void gemv_rows_of(const GemvJob& j, size_t r0, size_t r1) {
    const size_t columns = j.T * size_t(j.planes), blocks = j.in / Block::size;
    for (size_t r = r0; r < r1; r += gemv_group)
        for (size_t c = 0; c < columns;) {
            const size_t n = columns - c >= 4 ? 4 : columns - c >= 2 ? 2 : 1;
            for (size_t i = r; i < r1 && i < r + gemv_group; i++) {
                const Block* w = (const Block*)(j.w + i * j.row_bytes);
                const RowActs* a = (const RowActs*)j.packed + c;
                float y[4];
                n == 4 ? dot_row<Block, 4>(w, a, columns, blocks, y) : n == 2 ? dot_row<Block, 2>(w, a, columns, blocks, y) : dot_row<Block, 1>(w, a, columns, blocks, y);
                for (size_t k = 0; k < n; k++) {
                    const size_t t = (c + k) / size_t(j.planes);
                    float& to = j.y[t * j.out + i];
                    to = y[k] + ((c + k) % size_t(j.planes) ? to : j.bias ? j.bias[i] : 0);
                }
            }
            c += n;
        }
}

static consteval GemvTable list() {
    GemvTable t{};
#define QT_GEMV(name, ...) t.of[id::name] = {packed_bytes, pack, gemv_rows_of<block::name>};
    QT_INTEGER_TYPES(QT_GEMV)
#undef QT_GEMV
    return t;
}
extern const GemvTable gemv_table;
constinit const GemvTable gemv_table = list();
}  // namespace qt::QT_ISA
#endif
