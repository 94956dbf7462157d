// The IQ types whose neighbours are together a point of a codebook: the search of quants/points.py, operation by operation, so that
// both have the same bits. Lanes are points near a place of the codebook; sums run over values one after the other.
#pragma once
#include "isa/lanes.h"

namespace qt::QT_ISA {
enum class Signs { even, free, none };
enum class Shifts { none, group, cell };
inline constexpr int near_points = 16;

// The rows of BOOKS in quants/points.py.
template <class Block>
struct BookOf;
#define QT_BOOK(type, values_, group_, signs_, unit_, odd_, first_, step_, tries_, shifts_, ...)                   \
    template <>                                                                                                    \
    struct BookOf<block::type> {                                                                                   \
        static constexpr int values = values_, group = group_, groups = 256 / group, cells = group / values;       \
        static constexpr Signs signs = Signs::signs_;                                                              \
        static constexpr Shifts shifts = Shifts::shifts_;                                                          \
        static constexpr float unit = unit_, first = first_, step = step_;                                         \
        static constexpr int odd = odd_, tries = tries_;                                                           \
        static constexpr int levels[] = {__VA_ARGS__}, n_levels = sizeof levels / sizeof *levels;                  \
    };
QT_BOOK(IQ2_XXS, 8, 32, even, 0.125f, 31, 0.6f, 0.12f, 7, none, 8, 25, 43)
QT_BOOK(IQ2_XS, 8, 16, even, 0.125f, 31, 0.6f, 0.12f, 7, none, 8, 25, 43)
QT_BOOK(IQ2_S, 8, 16, free, 0.125f, 31, 0.6f, 0.12f, 7, none, 8, 25, 43)
QT_BOOK(IQ3_XXS, 4, 32, even, 0.25f, 31, 0.6f, 0.12f, 7, none, 4, 12, 20, 28, 36, 44, 52, 62)
QT_BOOK(IQ3_S, 4, 32, free, 1, 31, 0.6f, 0.12f, 7, none, 1, 3, 5, 7, 9, 11, 13, 15)
QT_BOOK(IQ1_S, 8, 32, none, 1, 15, 0.5f, 0.25f, 6, group, -1, 0, 1)
QT_BOOK(IQ1_M, 8, 16, none, 1, 15, 0.5f, 0.25f, 6, cell, -1, 0, 1)
#undef QT_BOOK
inline constexpr float shift_up = 0.125f;

// Of the values of 16 / values cells in a row.
template <class K>
struct DigitValues {
    int of[16];
};
template <class K>
consteval DigitValues<K> list_digits() {
    DigitValues<K> d{};
    for (int i = 0; i < 16; i++) {
        d.of[i] = 1;
        for (int k = 0; k < i % K::values; k++) d.of[i] *= K::n_levels;
    }
    return d;
}
template <class K>
static constexpr DigitValues<K> digit_values = list_digits<K>();

struct Point {
    uint32_t at;  // among the near ones of all places
    bool down;
    float qq, qx;  // weighted sums of its squared values, and of its values times x
};

QT_INLINE float ratio(float a, float b) { return b > tiny ? a / b : 0; }
QT_INLINE float inverse(float s) { return __builtin_fabsf(s) > tiny ? 1 / s : 0; }
QT_INLINE float half_of(float v) {
    v = v > -largest_half ? v : -largest_half;
    return widen(narrow(v < largest_half ? v : largest_half)) + 0.0f;
}
QT_INLINE float whole(float v) { return (v + 12582912.0f) - 12582912.0f; }

// Where the least of 16 numbers stands first.
QT_INLINE int least_of(const V* v) {
    V low = v[0];
    for (int i = 1; i < near_points / VL; i++) low = smaller(low, v[i]);
#if defined(__AVX512F__)
    low = smaller(low, swap_lanes<8>(low));
#endif
    if constexpr (VL > 4) low = smaller(low, swap_lanes<4>(low));
    low = smaller(low, swap_lanes<2>(low)), low = smaller(low, swap_lanes<1>(low));
#if defined(__AVX512F__)
    return __builtin_ctz(_mm512_cmp_ps_mask(v[0], low, _CMP_EQ_OQ) | 0x8000);
#elif defined(__AVX2__)
    const int first = _mm256_movemask_ps(_mm256_cmp_ps(v[0], low, _CMP_EQ_OQ)), next = _mm256_movemask_ps(_mm256_cmp_ps(v[1], low, _CMP_EQ_OQ));
    return __builtin_ctz(first | next << 8 | 0x8000);
#else
    for (int i = 0; i < near_points - 1; i++)
        if (v[i / VL][i % VL] == low[0]) return i;
    return near_points - 1;
#endif
}

// Small whole numbers as floats.
QT_INLINE V widened(const int8_t* p) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    return V{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
}

// Where the values of a group round to one by one: for each its level, as a digit of its cell's place.
template <class K>
QT_INLINE void digits_of(const float* x, float per_value, float shift, int* digits) {
    for (int i = 0; i < K::group; i += VL) {
        const V v = get<V>(x + i) * per_value - shift;
        I level{};
        QT_UNROLL
        for (int k = 1; k < K::n_levels; k++) level -= v > (K::levels[k - 1] + K::levels[k]) / 2.0f;
        put(digits + i, level * get<I>(digit_values<K>.of + i % K::values));
    }
}

// The nearest point of a cell at a scale.
template <class K>
QT_INLINE Point point_at(const EncodeJob& job, const float* x, const float* w, const int* digits, float scale, float shift) {
    constexpr int parts = near_points / VL;
    int place = 0;
    QT_UNROLL
    for (int i = 0; i < K::values; i++) place += digits[i];
    const int8_t* near = job.near_values + size_t(place) * K::values * near_points;
    V qq[parts]{}, qx[parts]{}, cost[parts];
    QT_UNROLL
    for (int i = 0; i < K::values; i++)
        for (int p = 0; p < parts; p++) {
            V q = widened(near + i * near_points + p * VL);
            if (K::shifts != Shifts::none) q += shift;
            const V wq = w[i] * q;
            qq[p] += wq * q;
            qx[p] += wq * x[i];
        }
    for (int p = 0; p < parts; p++) cost[p] = scale * (scale * qq[p] - 2 * qx[p]);
    const int best = least_of(cost);
    return {uint32_t(place * near_points + best), false, qq[best / VL][best % VL], qx[best / VL][best % VL]};
}

struct Pair {
    float qq, qx;
};

// The nearest points of a group at a scale, and their sums.
template <class K>
static Pair points_at(const EncodeJob& job, const float* x, const float* w, float scale, Point* to) {
    const float per_value = inverse(scale);
    auto cost = [&](float qq, float qx) { return scale * (scale * qq - 2 * qx); };
    auto at = [&](float shift, Point* points) {
        int digits[K::group];
        digits_of<K>(x, per_value, shift, digits);
        Pair sum{};
#pragma GCC unroll 1
        for (int c = 0; c < K::cells; c++) {
            points[c] = point_at<K>(job, x + c * K::values, w + c * K::values, digits + c * K::values, scale, shift);
            points[c].down = shift < 0;
            sum.qq += points[c].qq, sum.qx += points[c].qx;
        }
        return sum;
    };
    if constexpr (K::shifts == Shifts::none) return at(0, to);
    Point down[K::cells];
    const Pair up_sum = at(shift_up, to), down_sum = at(-shift_up, down);
    if constexpr (K::shifts == Shifts::group) {
        if (!(cost(down_sum.qq, down_sum.qx) < cost(up_sum.qq, up_sum.qx))) return up_sum;
        for (int c = 0; c < K::cells; c++) to[c] = down[c];
        return down_sum;
    }
    Pair sum{};
    for (int c = 0; c < K::cells; c++) {
        if (cost(down[c].qq, down[c].qx) < cost(to[c].qq, to[c].qx)) to[c] = down[c];
        sum.qq += to[c].qq, sum.qx += to[c].qx;
    }
    return sum;
}

// The scale of a group on its own.
template <class K>
static float group_scale(const EncodeJob& job, const float* x, const float* w) {
    float reach = 0, scale = 0, gain = 0;
    for (int i = 0; i < K::group; i++) reach = __builtin_fabsf(x[i]) > reach ? __builtin_fabsf(x[i]) : reach;
    Point points[K::cells];
    auto attempt = [&](float at) {
        const Pair found = points_at<K>(job, x, w, at, points);
        const float s = ratio(found.qx, found.qq), g = s * found.qx;
        if (g > gain && s > 0) scale = s, gain = g;
    };
    constexpr float top = float(K::levels[K::n_levels - 1]) + (K::shifts == Shifts::none ? 0 : shift_up);
    for (int t = 0; t < K::tries; t++) attempt(reach * ((K::first + K::step * float(t)) / top));
    attempt(scale);
    return scale;
}

template <class K>
QT_INLINE float odd_of(float v) {
    v = (v - 1) * 0.5f;
    v = v > 0 ? v : 0;
    return 2 * whole(v < (K::odd - 1) / 2 ? v : (K::odd - 1) / 2) + 1;
}

template <class K>
struct Chosen {
    float d;
    int scale[K::groups];  // from 0
    uint8_t signs[32];
    uint16_t id[256 / K::values];
    bool down[256 / K::values];
};

// Takes the signs off, where they stand apart.
template <class K>
static void take_signs(float* x, const float* w, uint8_t* signs) {
    if (K::signs == Signs::none) return;
    for (int k = 0; k < 32; k++, x += 8, w += 8) {
        int minus = 0, cheapest = 0;
        for (int i = 0; i < 8; i++) {
            minus |= (x[i] < 0) << i;
            if (w[i] * x[i] * x[i] < w[cheapest] * x[cheapest] * x[cheapest]) cheapest = i;
        }
        if (K::signs == Signs::even && __builtin_popcount(unsigned(minus)) % 2) minus ^= 1 << cheapest;
        for (int i = 0; i < 8; i++)
            if (minus >> i & 1) x[i] = -x[i];
        signs[k] = uint8_t(minus);
    }
}

template <class K>
static float round_scales(const float* scale, const float* curvature) {
    float extreme = scale[0], gain = 0;
    for (int g = 1; g < K::groups; g++) extreme = scale[g] > extreme ? scale[g] : extreme;
    float best = extreme / (K::odd * K::unit);
    const float per_extreme = inverse(extreme);
    for (int t = 0; t < 9; t++) {
        float a = 0, p = 0;
        for (int g = 0; g < K::groups; g++) {
            const float v = odd_of<K>(scale[g] * ((K::odd + (-4.0f + float(t))) * per_extreme)) * K::unit, cv = curvature[g] * v;
            a += cv * v, p += cv * scale[g];
        }
        const float d = ratio(p, a);
        if (d * p > gain) best = d, gain = d * p;
    }
    return half_of(best);
}

template <class K>
static void choose(const EncodeJob& job, float* x, const float* w, Chosen<K>& to) {
    float scale[K::groups], curvature[K::groups], sc[K::groups];
    Point points[K::cells];
    take_signs<K>(x, w, to.signs);
    for (int g = 0; g < K::groups; g++) {
        scale[g] = group_scale<K>(job, x + g * K::group, w + g * K::group);
        curvature[g] = points_at<K>(job, x + g * K::group, w + g * K::group, scale[g], points).qq;
    }
    float d = round_scales<K>(scale, curvature);
    for (int g = 0; g < K::groups; g++) sc[g] = odd_of<K>(scale[g] * inverse(d * K::unit));
    for (int round = 0; round < 2; round++) {
        constexpr int steps[] = {0, -2, 2, -4, 4};
        float a = 0, p = 0;
        for (int g = 0; g < K::groups; g++) {
            const float old = sc[g];
            float error = __builtin_inff(), qq = scale[g], qx = scale[g];
            for (int k = 0; k < (round ? 3 : 5); k++) {
                float trial = old + float(steps[k]);
                trial = trial > 1 ? trial : 1;
                trial = trial < K::odd ? trial : K::odd;
                const float s = trial * (d * K::unit);
                const Pair found = points_at<K>(job, x + g * K::group, w + g * K::group, s, points);
                const float e = s * (s * found.qq - 2 * found.qx);
                if (e < error) error = e, sc[g] = trial, qq = found.qq, qx = found.qx;
            }
            const float t = sc[g] * K::unit;
            a += t * t * qq, p += t * qx;
        }
        const float now = half_of(ratio(p, a));
        if (now > 0 && now * (now * a - 2 * p) < d * (d * a - 2 * p)) d = now;
    }
    to.d = d;
    for (int g = 0; g < K::groups; g++) {
        points_at<K>(job, x + g * K::group, w + g * K::group, sc[g] * (d * K::unit), points);
        for (int c = 0; c < K::cells; c++) to.id[g * K::cells + c] = job.near_ids[points[c].at], to.down[g * K::cells + c] = points[c].down;
        to.scale[g] = int((sc[g] - 1) / 2);
    }
}
}  // namespace qt::QT_ISA
