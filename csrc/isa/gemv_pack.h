// Tokens as int8, for products with few of them: rounded as for many (round_token), so that a token's numbers do not depend on
// how many share its product. A column is one plane of one token.
#pragma once
#include "gemm_pack.h"

namespace qt::QT_ISA {

// The order of x that makes unpacking a block cheap. One of the 16 lanes of 32 bits holds values of one sub-block
// of the weights alone, in all four registers of 256 values: four vpdpbusd add up to it, and one vector holds its scales.
// That is at most 16 products of bytes and what they start at, below 2^20: no valid block can overflow a lane.
enum Order {
    nibble_pairs,   // Q4_K, Q5_K
    quarter_bytes,  // Q2_K, Q3_K
    six_bits,       // Q6_K
    half_blocks,    // IQ4_XS, Q4_1, Q5_0, Q5_1
    halves_of_eights,  // Q4_0, IQ4_NL, MXFP4
    lane_by_lane,   // TQ1_0
    turned_eights,  // Q8_0
    sixteens,       // NVFP4
    // 8 values of each group of 32: types with codebooks. Of 16 only within registers 0 and 1, and within 2 and 3.
    eights,
    // Byte i of register r is value r of the i-th four: a lane has 16 values of all four registers.
    fours,          // types with points of 8 values, looked up as bytes
    even_fours      // the same where points have 4: those of even index first
};

// Which value of 256 is the first of the four in a lane of register r.
constexpr int first_value(Order o, int r, int lane) {
    const int L = lane / 4, e = lane % 4;
    switch (o) {
        case nibble_pairs: return 32 * (2 * (L % 2 * 2 + L / 2) + e % 2) + 16 * (L % 2 ^ r / 2) + 4 * (e ^ r % 2);
        case quarter_bytes: return 128 * (L / 2) + 32 * e + 16 * (L % 2) + 4 * (e ^ r);
        case six_bits: return 128 * (e / 2) + 32 * (L / 2 + 2 * (e % 2)) + 16 * (L % 2) + 4 * (2 * (r % 2) + (e ^ r / 2) % 2);
        case half_blocks: return 32 * (L + 4 * (e / 2)) + 16 * (r % 2) + 4 * (e % 2 + 2 * (r / 2));
        case halves_of_eights: return 32 * (lane / 2) + 16 * (r % 2) + 8 * (r / 2) + 4 * (lane % 2);
        case lane_by_lane: return 16 * lane + 4 * r;
        case turned_eights: return 32 * (lane / 2) + 8 * (lane / 2 % 4 ^ r) + 4 * (lane % 2);
        case eights: return 32 * (lane / 2) + 8 * r + 4 * (lane % 2);
        default: return 128 * (lane % 2) + 16 * (lane / 2) + 8 * (r % 2) + 4 * (lane % 2 ^ r / 2);
    }
}
// Which value of 256 is byte i of register r.
constexpr int value_of(Order o, int r, int i) {
    return o == fours ? 4 * i + r : o == even_fours ? 8 * (i % 32) + i / 32 * 4 + r : first_value(o, r, i / 4) + i % 4;
}
// The sub-block of `per` values that a lane of a register belongs to.
constexpr int sub_of(Order o, int per, int lane, int r = 0) { return value_of(o, r, 4 * lane) / per; }
// Whether lanes keep to a sub-block in `n` registers from each n-th on, and every value has its place.
consteval bool lanes_keep_to(Order o, int per, int n) {
    bool seen[256] = {};
    for (int r = 0; r < 4; r++)
        for (int i = 0; i < 64; i++) {
            const int value = value_of(o, r, i);
            if (seen[value] || value / per != sub_of(o, per, i / 4, r / n * n)) return false;
            seen[value] = true;
        }
    return true;
}
static_assert(lanes_keep_to(nibble_pairs, 32, 4) && lanes_keep_to(quarter_bytes, 16, 4) && lanes_keep_to(six_bits, 16, 4));
static_assert(lanes_keep_to(half_blocks, 32, 4) && lanes_keep_to(halves_of_eights, 32, 4) && lanes_keep_to(lane_by_lane, 16, 4) && lanes_keep_to(turned_eights, 32, 4) && lanes_keep_to(eights, 32, 4) && lanes_keep_to(eights, 16, 2) && lanes_keep_to(sixteens, 16, 4) && lanes_keep_to(fours, 16, 4) && lanes_keep_to(even_fours, 32, 4));

// What undoes offsets and adds minima.
enum Rest {
    start,     // integers the dots start at: -offset times the sum of a lane's values
    sums16,    // sums over groups of 16: vector v holds those of groups 4 e + v of 4 blocks, over field_of(v)
    sums32     // sums over groups of 32: of the first four groups of 4 blocks, then of the last four
};

// Q2_K's minima stay where they lie, of groups 4 e + v of a block in byte v of its dword e; the last are shifted down.
constexpr float field_of(int v) { return v < 3 ? float(16 << 8 * v) : 1; }
// Bits that the codes of a lane lie above the lowest, from the four digits of `places`.
constexpr int place(int places, int lane) { return places >> 4 * (lane % 4) & 15; }

// 1024 values of a column, for types of 256 values a block.
struct alignas(64) Packed1024 {
    int8_t q[4][256];
    float unit[4][16];  // what 1 stands for in each lane, codes being where they lie
    union {
        int32_t start[4][16];
        float sums[4][16];
    };
};
// 256 values of a column: one scale serves all registers (n = 1), or one registers 0 and 1 and another 2 and 3.
template <int n>
struct alignas(64) Packed256 {
    int8_t q[256];
    float unit[n][16];
    union {
        int32_t start[n][16];
        float sums[n][16];  // for codes without an offset: minima meet them
    };
};

// Columns are multiplied 1, 2, 3, 4, 6 or 8 at a time; what is missing to that is zero.
constexpr int column_tile = 8;
QT_INLINE constexpr int padded_columns(int n) { return n % column_tile <= 4 || n % 2 == 0 ? n : n + 1; }

// One column's 256 values as round_token makes them.
struct Rounded {
    alignas(64) int8_t q[256];
    float unit[8];  // of each 32
};
QT_INLINE void round_plane(V (&v)[16], Rounded& out) {
    Row row;
    const float d = round_token<true>(v, row);
    file_order(row, out.q);
    for (int j = 0; j < 8; j++) out.unit[j] = d * float(1 << (row.up[lane_of(j)] >> 23));
}

// Each plane of each token's 256 columns from `from` on, as f(column, rounded); zero past the last token and the last column.
template <class F>
QT_INLINE void each_column(const float* x, size_t T, size_t in, int planes, size_t from, F f) {
    const size_t columns = padded_columns(int(T) * planes);
    for (size_t c = 0; c < columns; c += planes) {
        V v[16];
        QT_UNROLL for (int i = 0; i < 16; i++) {
            const size_t at = from + 16 * i, left = c < T * planes && at < in ? in - at : 0;
            v[i] = _mm512_maskz_loadu_ps(left >= 16 ? 0xffff : (1 << left) - 1, x + c / planes * in + at);
        }
        for (int p = 0; p < planes; p++) {
            Rounded r;
            round_plane(v, r);
            f(c + p, r);
        }
    }
}

// Sums of the values in each lane.
template <int n>
QT_INLINE Z lane_sums(const int8_t* q) {
    Z sum = _mm512_setzero_si512();
    QT_UNROLL for (int i = 0; i < n; i++) sum = _mm512_dpbusd_epi32(sum, b8(1), load512(q + 64 * i));
    return sum;
}
QT_INLINE Z minus_times(Z x, int offset) { return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_mullo_epi32(x, _mm512_set1_epi32(offset))); }

template <Order order>
QT_INLINE void arrange_lanes(const int8_t* from, int8_t* to) {
    for (int r = 0; r < 4; r++)
        if constexpr (order == fours)
            for (int i = 0; i < 4; i++) _mm_store_si128((__m128i*)(to + 64 * r + 16 * i), _mm512_cvtepi32_epi8(_mm512_srli_epi32(load512(from + 64 * i), unsigned(8 * r))));
        else if constexpr (order == even_fours)
            for (int i = 0; i < 8; i++) _mm_storel_epi64((__m128i*)(to + 64 * r + 32 * (i / 4) + 8 * (i % 4)), _mm512_cvtepi64_epi8(_mm512_srli_epi64(load512(from + 64 * (i % 4)), unsigned(32 * (i / 4) + 8 * r))));
        else
            for (int lane = 0; lane < 16; lane++) __builtin_memcpy(to + 64 * r + 4 * lane, from + first_value(order, r, lane), 4);
}

// [records of 1024][columns]
template <Order order, Rest rest, int offset, int places>
static void pack_1024(const float* x, size_t T, size_t in, int planes, size_t block, void* packed) {
    const int columns = padded_columns(int(T) * planes);
    const size_t last = 256 * (block + 1) < in ? block : (in + 1023) / 1024 * 4 - 1;  // who packs the last fills its record
    for (size_t b = block; b <= last; b++)
        each_column(x, T, in, planes, 256 * b, [&](size_t c, const Rounded& from) __attribute__((always_inline)) {
            Packed1024& to = ((Packed1024*)packed)[b / 4 * columns + c];
            const int k = b % 4;
            arrange_lanes<order>(from.q, to.q[k]);
            for (int lane = 0; lane < 16; lane++) to.unit[k][lane] = from.unit[sub_of(order, 32, lane)] / float(1 << place(places, lane));
            if constexpr (rest == start) {
                _mm512_store_si512(to.start[k], minus_times(lane_sums<4>(to.q[k]), offset));
                for (int lane = 0; lane < 16; lane++) to.start[k][lane] *= 1 << place(places, lane);
            } else if constexpr (rest == sums16) {
                alignas(64) int32_t sums[16];
                _mm512_store_si512(sums, lane_sums<4>(to.q[k]));
                for (int lane = 0; lane < 16; lane++) {
                    const int group = sub_of(order, 16, lane), v = group % 4;
                    to.sums[v][4 * k + group / 4] = from.unit[group / 2] / field_of(v) * float(sums[lane]);
                }
            } else {
                for (int g = 0; g < 8; g++) {
                    const Z half = _mm512_maskz_loadu_epi64(0xf, from.q + 32 * g);
                    to.sums[g / 4][4 * k + g % 4] = from.unit[g] * float(_mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), b8(1), half)));
                }
            }
        });
}

// [records of 256][columns]
template <Order order, int offset, int n>
static void pack_256(const float* x, size_t T, size_t in, int planes, size_t block, void* packed) {
    const int columns = padded_columns(int(T) * planes);
    each_column(x, T, in, planes, 256 * block, [&](size_t c, const Rounded& from) __attribute__((always_inline)) {
        Packed256<n>& to = ((Packed256<n>*)packed)[block * columns + c];
        arrange_lanes<order>(from.q, to.q);
        for (int h = 0; h < n; h++) {
            for (int lane = 0; lane < 16; lane++) to.unit[h][lane] = from.unit[sub_of(order, 32, lane, 2 * h)];
            const Z sums = lane_sums<4 / n>(to.q + 128 * h);
            if constexpr (offset) {
                _mm512_store_si512(to.start[h], minus_times(sums, offset));
            } else {
                _mm512_store_ps(to.sums[h], _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_load_ps(to.unit[h])));
            }
        }
    });
}
}  // namespace qt::QT_ISA
