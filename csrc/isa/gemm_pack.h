// Activations as int8, 16 tokens x 256 columns a record, transposed so that a register holds 4 columns of 16 tokens.
// A scale for each 256 values of a token, and below it a power of two for each 32: outliers cost only their own 32.
// A second plane, where it is wanted, holds what the first one's rounding lost.
#pragma once
#include "panel.h"
#include "simd512.h"

namespace qt::QT_ISA {

constexpr int tokens = 16;

struct alignas(64) Acts {
    int8_t q[64][tokens][4];  // [column / 4][token][column % 4]
    float d[tokens];
    float zero[8][tokens];        // group j of 32 is in units of d 2^up: 1.5 * 2^(23 + up), whose last bit is such a unit
    int32_t from32[8][tokens];    // its bits - 128 * sums of q over 32 columns, which undo the offset of signed codes
    int32_t from16[16][tokens];   // the same over 16
    int32_t pairs32[4][tokens];   // int16 sums over columns 64 i .. 64 i + 31, and over the 32 after, in units of 16 d
    int32_t pairs16[8][tokens];   // over columns 32 i .. 32 i + 15, and over the 16 after, in units of 8 d
};

// 16 x 16 words of 32 bits.
QT_INLINE void transpose16(Z (&v)[16]) {
    Z u[16];
    QT_UNROLL for (int t = 0; t < 8; t++) {
        u[2 * t] = _mm512_unpacklo_epi32(v[2 * t], v[2 * t + 1]);
        u[2 * t + 1] = _mm512_unpackhi_epi32(v[2 * t], v[2 * t + 1]);
    }
    QT_UNROLL for (int t = 0; t < 4; t++) {
        v[4 * t] = _mm512_unpacklo_epi64(u[4 * t], u[4 * t + 2]);
        v[4 * t + 1] = _mm512_unpackhi_epi64(u[4 * t], u[4 * t + 2]);
        v[4 * t + 2] = _mm512_unpacklo_epi64(u[4 * t + 1], u[4 * t + 3]);
        v[4 * t + 3] = _mm512_unpackhi_epi64(u[4 * t + 1], u[4 * t + 3]);
    }
    QT_UNROLL for (int e = 0; e < 4; e++) {  // v[4g + e]: lane l holds column 4l + e of rows 4g .. 4g + 3
        Z p = _mm512_shuffle_i32x4(v[e], v[4 + e], 0x88), q = _mm512_shuffle_i32x4(v[e], v[4 + e], 0xdd);
        Z r = _mm512_shuffle_i32x4(v[8 + e], v[12 + e], 0x88), s = _mm512_shuffle_i32x4(v[8 + e], v[12 + e], 0xdd);
        u[e] = _mm512_shuffle_i32x4(p, r, 0x88), u[e + 8] = _mm512_shuffle_i32x4(p, r, 0xdd);
        u[e + 4] = _mm512_shuffle_i32x4(q, s, 0x88), u[e + 12] = _mm512_shuffle_i32x4(q, s, 0xdd);
    }
    QT_UNROLL for (int i = 0; i < 16; i++) v[i] = u[i];
}

QT_INLINE Z larger(Z a, Z b) { return _mm512_max_epi32(a, b); }

// The maxima of eight vectors: of vector j in lane_of(j), and the same two further.
constexpr int lane_of(int j) { return 4 * (j % 4) + j / 4; }
QT_INLINE Z maxima(const Z (&v)[8]) {
    Z p[4], q[2];
    QT_UNROLL for (int k = 0; k < 4; k++) p[k] = larger(_mm512_shuffle_i32x4(v[2 * k], v[2 * k + 1], 0x44), _mm512_shuffle_i32x4(v[2 * k], v[2 * k + 1], 0xee));
    QT_UNROLL for (int k = 0; k < 2; k++) q[k] = larger(_mm512_shuffle_i32x4(p[2 * k], p[2 * k + 1], 0x88), _mm512_shuffle_i32x4(p[2 * k], p[2 * k + 1], 0xdd));
    const Z r = larger(_mm512_unpacklo_epi32(q[0], q[1]), _mm512_unpackhi_epi32(q[0], q[1]));
    return larger(r, _mm512_shuffle_epi32(r, _MM_PERM_BADC));
}

// Where a token's bytes lie until they are transposed: columns 64 i + 16 g + 4 l .. + 3 at 64 i + 16 l + 4 g, as packing leaves them.
// Exponents, as in Acts, lie as `maxima` leaves them.
struct alignas(64) Row {
    int8_t q[256];
    int32_t up[16];
    float scale[16];
};

// One token's 256 columns: bytes, exponents and the unit, which is returned; what rounding loses stays in v where it is wanted.
template <bool keep_rest>
QT_INLINE float round_token(V (&v)[16], Row& row) {
    Z top[8];  // bits of absolute values: their order is that of floats, and infinities and NaN are the largest
    const Z sign = _mm512_set1_epi32(0x7fffffff);
    QT_UNROLL for (int j = 0; j < 8; j++) top[j] = larger(_mm512_and_si512(_mm512_castps_si512(v[2 * j]), sign), _mm512_and_si512(_mm512_castps_si512(v[2 * j + 1]), sign));
    const Z each = maxima(top);
    const uint32_t most_bits = uint32_t(_mm512_reduce_max_epi32(each));
    const float found = bits<float>(most_bits), most = found < 2e-34f ? 0 : found;  // its inverse would overflow
    const float inverse = most > 0 ? 127 / most : 0, d = most / (127 * 128);
    // Halvings of the unit while every value still fits, up to 7: the exponent of most / each, by which their bits differ but for
    // what the smaller one's lack.
    const Z apart = _mm512_srli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(int(bits<uint32_t>(most))), each), 23), seven = _mm512_set1_epi32(7);
    const Z halvings = _mm512_min_epu32(apart, seven);
    _mm512_store_si512(row.up, _mm512_slli_epi32(_mm512_sub_epi32(seven, halvings), 23));
    _mm512_store_si512(row.scale, _mm512_add_epi32(_mm512_castps_si512(_mm512_set1_ps(inverse)), _mm512_slli_epi32(halvings, 23)));
    QT_UNROLL for (int i = 0; i < 4; i++) {
        Z r[4];
        QT_UNROLL for (int g = 0; g < 4; g++) {
            const int lane = lane_of(2 * i + g / 2);
            r[g] = _mm512_cvtps_epi32(_mm512_mul_ps(v[4 * i + g], bcast(&row.scale[lane])));
            if constexpr (keep_rest) {
                const V unit = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(_mm512_set1_ps(d)), _mm512_set1_epi32(row.up[lane])));
                v[4 * i + g] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(r[g]), unit, v[4 * i + g]);
            }
        }
        _mm512_store_si512(row.q + 64 * i, _mm512_packs_epi16(_mm512_packs_epi32(r[0], r[1]), _mm512_packs_epi32(r[2], r[3])));
    }
    return most_bits < 0x7f800000 ? d : __builtin_nanf("");
}

QT_INLINE void file_order(const Row& row, int8_t* q) {
    const Z order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    QT_UNROLL for (int i = 0; i < 4; i++) _mm512_storeu_si512(q + 64 * i, _mm512_permutexvar_epi32(order, _mm512_load_si512(row.q + 64 * i)));
}

QT_INLINE Z int16_pairs(Z low, Z high) { return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16)); }

// Sums in units of d 2^n: at most 127 * 2^7 * 2^(n + 1), so that they fit 16 bits. n is 3 for 16 columns and 4 for 32.
template <int n>
QT_INLINE Z in_units(Z sum, Z up) {
    return _mm512_srai_epi32(_mm512_add_epi32(_mm512_sllv_epi32(sum, up), _mm512_set1_epi32(1 << (n - 1))), n);
}

QT_INLINE Z lowered(const float* zero, Z sum) { return _mm512_sub_epi32(_mm512_load_si512(zero), _mm512_slli_epi32(sum, 7)); }

// Transposes 16 rounded tokens, and sums.
static void arrange(const Row* rows, Acts& a) {
    const Z one = b8(1), zero = _mm512_setzero_si512();
    Z v[16];
    QT_UNROLL for (int t = 0; t < 16; t++) v[t] = _mm512_load_si512(rows[t].up);
    transpose16(v);
    alignas(64) int32_t ups[8][tokens];
    QT_UNROLL for (int j = 0; j < 8; j++) {
        _mm512_store_si512(ups[j], _mm512_srli_epi32(v[lane_of(j)], 23));
        _mm512_store_si512(a.zero[j], _mm512_add_epi32(v[lane_of(j)], _mm512_castps_si512(_mm512_set1_ps(0x1.8p23f))));
    }
    for (int i = 0; i < 4; i++) {
        QT_UNROLL for (int t = 0; t < 16; t++) v[t] = _mm512_load_si512(rows[t].q + 64 * i);
        transpose16(v);
        Z sum16[4], sum32[2];
        QT_UNROLL for (int g = 0; g < 4; g++) {
            sum16[g] = zero;
            QT_UNROLL for (int l = 0; l < 4; l++) {
                _mm512_store_si512(a.q[16 * i + 4 * g + l], v[4 * l + g]);
                sum16[g] = _mm512_dpbusd_epi32(sum16[g], one, v[4 * l + g]);
            }
            _mm512_store_si512(a.from16[4 * i + g], lowered(a.zero[2 * i + g / 2], sum16[g]));
        }
        QT_UNROLL for (int h = 0; h < 2; h++) {
            const Z up = _mm512_load_si512(ups[2 * i + h]), sum = _mm512_add_epi32(sum16[2 * h], sum16[2 * h + 1]);
            _mm512_store_si512(a.from32[2 * i + h], lowered(a.zero[2 * i + h], sum));
            _mm512_store_si512(a.pairs16[2 * i + h], int16_pairs(in_units<3>(sum16[2 * h], up), in_units<3>(sum16[2 * h + 1], up)));
            sum32[h] = in_units<4>(sum, up);
        }
        _mm512_store_si512(a.pairs32[i], int16_pairs(sum32[0], sum32[1]));
    }
}

// Columns [0, n) of up to 16 tokens, `ld` apart, into `planes` records `stride` apart.
static void pack_acts(const float* x, size_t ld, int n_tokens, int n, Acts* a, int planes, size_t stride) {
    Row rows[2][tokens];
    for (int t = 0; t < tokens; t++) {
        V v[16];
        QT_UNROLL for (int i = 0; i < 16; i++) {
            const int left = t < n_tokens ? n - 16 * i : 0;
            _mm_prefetch((const char*)(x + (t + tokens) * ld + 16 * i), _MM_HINT_T0);  // of the next group: rows lie far apart
            v[i] = _mm512_maskz_loadu_ps(left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0, x + t * ld + 16 * i);
        }
        if (planes == 1) {
            a->d[t] = round_token<false>(v, rows[0][t]);
        } else {
            a->d[t] = round_token<true>(v, rows[0][t]);
            a[stride].d[t] = round_token<false>(v, rows[1][t]);
        }
    }
    for (int p = 0; p < planes; p++) arrange(rows[p], a[p * stride]);
}
}  // namespace qt::QT_ISA
