// Rows of codes times rows of activations.
#pragma once
#include "acts.h"
#include "unpack_books.h"

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
static size_t rows_packed_bytes(size_t T, size_t in, int planes) { return T * size_t(planes) * blocks_of(in) * sizeof(RowActs); }

// One block of 256 columns: [token][plane]; values past the end are zero.
static void pack_rows(const float* x, size_t T, size_t in, int planes, size_t block, void* packed) {
    const size_t from = block * act_columns;
    RowActs* a = (RowActs*)packed + block * T * size_t(planes);
    for (size_t t = 0; t < T; t++) {
        alignas(64) float v[act_columns];
        take_acts(x + t * in + from, in - from < act_columns ? int(in - from) : act_columns, v);
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
};
template <int sub>
QT_INLINE LaneScales<sub> lane_scales(const float* s, int j) {
    if constexpr (sub == 32) return {{all(s[j])}};
#if defined(__AVX2__)
    else return {{_mm256_blend_ps(_mm256_broadcast_ss(s + 2 * j), _mm256_broadcast_ss(s + 2 * j + 1), 0xf0)}};
#else
    else return {{all(s[2 * j]), all(s[2 * j + 1])}};
#endif
}

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

// Sums of one block of 256 columns for C columns of x, in two chains each.
template <class Of, int C>
struct BlockSums {
    V part[C][2] = {};

    __attribute__((always_inline)) void add(const RowActs* a, const float* s, int j, Codes c) {
        const LaneScales<Of::sub> scales = lane_scales<Of::sub>(s, j);
        if constexpr (Of::wild) c = less(c, Of::offset);
        for (int t = 0; t < C; t++) part[t][j % 2] = add_products<Of::is_signed || Of::wild>(part[t][j % 2], c, a[t], j, scales);
    }
    // Undoes offsets, takes minima off, and adds to the totals of the row.
    __attribute__((always_inline)) void finish(const RowActs* a, const float* s, const float* m, V* total) {
        if constexpr (Of::minima || (Of::offset > 0 && !Of::wild))
            for (int i = 0; i < panel_columns / Of::sub; i += VL) {
                const V low = Of::minima ? load(m + i) : load(s + i) * all(Of::offset);
                for (int t = 0; t < C; t++) part[t][i / VL % 2] = fma(load((Of::sub == 32 ? a[t].sum32 : a[t].sum16) + i), -low, part[t][i / VL % 2]);
            }
        for (int t = 0; t < C; t++) total[t] = fma(part[t][0] + part[t][1], all(a[t].d), total[t]);
    }
};
}  // namespace qt::QT_ISA
