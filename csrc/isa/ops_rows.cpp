// Operations on rows of floats: norm, gate, rotation.
#include <math.h>

#include "isa/ops.h"
#include "isa/vec.h"

namespace qt::QT_ISA {

QT_INLINE D wide(const float* p) { return __builtin_convertvector(get<Half>(p), D); }

// In doubles: no square overflows, and the sum keeps all its digits.
void rms_norm(const float* x, const float* weight, double eps, float* out, size_t rows, size_t n) {
    constexpr size_t step = VL / 2;
    for (size_t r = 0; r < rows; r++, x += n, out += n) {
        D a{}, b{};
        size_t i = 0;
        for (; i + 2 * step <= n; i += 2 * step) {
            D u = wide(x + i), v = wide(x + i + step);
            a += u * u;
            b += v * v;
        }
        double total = 0;
        a += b;
        for (size_t l = 0; l < step; l++) total += a[l];
        for (; i < n; i++) total += double(x[i]) * double(x[i]);
        const double scale = 1 / __builtin_sqrt(total / double(n) + eps);
        for (i = 0; i + step <= n; i += step) put(out + i, __builtin_convertvector(wide(x + i) * scale * wide(weight + i), Half));
        for (; i < n; i++) out[i] = float(double(x[i]) * scale * double(weight[i]));
    }
}

// In doubles, and the variance about the mean: nothing cancels.
void layer_norm(const float* x, const float* weight, const float* bias, double eps, float* out, size_t rows, size_t n) {
    constexpr size_t step = VL / 2;
    for (size_t r = 0; r < rows; r++, x += n, out += n) {
        D a{};
        size_t i = 0;
        for (; i + step <= n; i += step) a += wide(x + i);
        double total = 0;
        for (size_t l = 0; l < step; l++) total += a[l];
        for (; i < n; i++) total += double(x[i]);
        const double mean = total / double(n);
        a = D{};
        for (i = 0; i + step <= n; i += step) {
            D u = wide(x + i) - mean;
            a += u * u;
        }
        total = 0;
        for (size_t l = 0; l < step; l++) total += a[l];
        for (; i < n; i++) total += (double(x[i]) - mean) * (double(x[i]) - mean);
        const double scale = 1 / __builtin_sqrt(total / double(n) + eps);
        for (i = 0; i + step <= n; i += step) {
            D y = (wide(x + i) - mean) * scale * wide(weight + i);
            if (bias) y += wide(bias + i);
            put(out + i, __builtin_convertvector(y, Half));
        }
        for (; i < n; i++) out[i] = float((double(x[i]) - mean) * scale * double(weight[i]) + (bias ? double(bias[i]) : 0));
    }
}

// x / (1 + exp(-z)) as x e / (1 + e') with e = exp(min(z, 0)) and e' = exp(-|z|): nothing overflows, small results keep their digits.
QT_INLINE V times_sigmoid(V x, V z) {
    const I sign = I{} + INT32_MIN, negative = (I)z >> 31;
    V e = exp_negative((V)((I)z | sign));
    V one = all(1.f);
    V top = (V)(((I)e & negative) | ((I)one & ~negative));
    return x * top / (one + e);
}

template <V (*one)(V gate, V up)>
QT_INLINE void gate_all(const float* gate, const float* up, float* out, size_t n) {
    size_t i = 0;
    for (; i + VL <= n; i += VL) store(out + i, one(load(gate + i), load(up + i)));
    if (i < n) store_part(out + i, one(load_part(gate + i, n - i), load_part(up + i, n - i)), n - i);
}

QT_INLINE V silu_of(V g, V up) { return times_sigmoid(g, g) * up; }
void gate_silu(const float* gate, const float* up, float* out, size_t n) { gate_all<silu_of>(gate, up, out, n); }

// 1 + tanh(z) is 2 / (1 + exp(-2 z)).
QT_INLINE V gelu_of(V g, V up) { return times_sigmoid(g, all(1.5957691216f) * fma(all(0.044715f) * g * g, g, g)) * up; }
void gate_gelu(const float* gate, const float* up, float* out, size_t n) { gate_all<gelu_of>(gate, up, out, n); }

QT_INLINE V gpt_oss_of(V g, V up) {
    const V most = all(7.f);
    g = g > most ? most : g;
    up = up > most ? most : up;
    up = up < -most ? -most : up;
    return times_sigmoid(g, all(1.702f) * g) * (up + all(1.f));
}
void gate_gpt_oss(const float* gate, const float* up, float* out, size_t n) { gate_all<gpt_oss_of>(gate, up, out, n); }

// Twice the share of a normal distribution beyond z >= 0, within 2e-7 of itself: Press et al., Numerical Recipes, erfcc.
QT_INLINE V erfc_positive(V z) {
    const V t = all(1.f) / (all(1.f) + z * all(.5f));
    V p = all(.17087277f);
    constexpr float c[] = {-.82215223f, 1.48851587f, -1.13520398f, .27886807f, -.18628806f, .09678418f, .37409196f, 1.00002368f, -1.26551223f};
    for (int i = 0; i < 9; i++) p = fma(p, t, all(c[i]));
    return t * exp_negative(p - z * z);
}
template <int kind>
QT_INLINE V activated(V x) {
    const V one = all(1.f);
    if constexpr (kind == act_silu) return silu_of(x, one);
    if constexpr (kind == act_gelu) return gelu_of(x, one);
    if constexpr (kind == act_sigmoid) return times_sigmoid(one, x);
    if constexpr (kind == act_tanh) return tanh(x);
    const V half = all(.5f) * erfc_positive(magnitude(x) * all(.70710678f));
    return x * choose((I)x >> 31, half, one - half);
}
template <int kind>
static void activate_all(const float* x, const float* up, float* out, size_t n) {
    size_t i = 0;
    for (; i + VL <= n; i += VL) {
        V y = activated<kind>(load(x + i));
        store(out + i, up ? y * load(up + i) : y);
    }
    if (i == n) return;
    V y = activated<kind>(load_part(x + i, n - i));
    store_part(out + i, up ? y * load_part(up + i, n - i) : y, n - i);
}
void activate(int kind, const float* x, const float* up, float* out, size_t n) {
    switch (kind) {
        case act_silu: return activate_all<act_silu>(x, up, out, n);
        case act_gelu_erf: return activate_all<act_gelu_erf>(x, up, out, n);
        case act_gelu: return activate_all<act_gelu>(x, up, out, n);
        case act_sigmoid: return activate_all<act_sigmoid>(x, up, out, n);
        default: return activate_all<act_tanh>(x, up, out, n);
    }
}

// Cosine and sine of angles in radians, of which a million is a common one: reduced in doubles by pi / 2 in three parts,
// the first two short enough for exact products. Error about 1e-16 beside that of the angle itself.
static void turn(const double* angle, float* cosine, float* sine, int n) {
    constexpr double limit = 1 << 20;
    for (int i = 0; i < n; i++) {
        const double magic = 6755399441055744.0, x = angle[i];  // 1.5 * 2^52
        const double shifted = x * 0.63661977236758134308 + magic, whole = shifted - magic;
        int64_t quarter;
        __builtin_memcpy(&quarter, &shifted, 8);
        const double r = ((x - whole * 0x1.921fb544p+0) - whole * 0x1.0b4611a6p-34) - whole * 0x1.3198a2e037073p-69, z = r * r;
        const double s = r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 - z * (1.0 / 39916800)))));
        const double c = 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z * (1.0 / 3628800 - z * (1.0 / 479001600))))));
        const double first = quarter & 1 ? s : c, second = quarter & 1 ? c : s;
        cosine[i] = float((quarter + 1) & 2 ? -first : first);
        sine[i] = float(quarter & 2 ? -second : second);
    }
    for (int i = 0; i < n; i++)
        if (!(angle[i] < limit && angle[i] > -limit)) {
            cosine[i] = float(::cos(angle[i]));
            sine[i] = float(::sin(angle[i]));
        }
}

// Pairs (i, i + half).
static void rotate_halves(const float* x, float* out, const float* c, const float* s, size_t half) {
    size_t i = 0;
    for (; i + VL <= half; i += VL) {
        V a = load(x + i), b = load(x + half + i), cos = load(c + i), sin = load(s + i);
        store(out + i, a * cos - b * sin);
        store(out + half + i, b * cos + a * sin);
    }
    for (; i < half; i++) {
        const float a = x[i], b = x[half + i];
        out[i] = a * c[i] - b * s[i];
        out[half + i] = b * c[i] + a * s[i];
    }
}

// Pairs (2i, 2i + 1); c and s hold every value twice, s with the sign of its place.
static void rotate_pairs(const float* x, float* out, const float* c, const float* s, size_t half) {
    size_t i = 0;
    for (; i + VL <= 2 * half; i += VL) {
        V a = load(x + i);
        store(out + i, a * load(c + i) + swap_pairs(a) * load(s + i));
    }
    for (; i < 2 * half; i += 2) {
        const float a = x[i], b = x[i + 1];
        out[i] = a * c[i] + b * s[i];
        out[i + 1] = b * c[i + 1] + a * s[i + 1];
    }
}

void rope(const RopeJob& j, size_t t0, size_t t1, float* turns) {
    float *c = turns, *s = turns + 2 * j.half;
    for (size_t t = t0; t < t1; t++) {
        constexpr int step = 32;
        for (size_t i = 0; i < j.half; i += step) {
            const int n = j.half - i < step ? int(j.half - i) : step;
            double angle[step];
            float cosine[step], sine[step];
            for (int k = 0; k < n; k++) angle[k] = j.positions[t] * j.freqs[i + k];
            turn(angle, cosine, sine, n);
            for (int k = 0; k < n; k++) {
                cosine[k] *= j.magnitude;
                sine[k] *= j.magnitude;
            }
            for (int k = 0; k < n; k++) {
                const size_t p = i + k;
                if (j.interleaved) {
                    c[2 * p] = c[2 * p + 1] = cosine[k];
                    s[2 * p] = -(s[2 * p + 1] = sine[k]);
                } else {
                    c[p] = cosine[k];
                    s[p] = sine[k];
                }
            }
        }
        for (size_t h = 0; h < j.heads; h++) {
            const float* x = j.x + (t * j.heads + h) * j.dim;
            float* out = j.out + (t * j.heads + h) * j.dim;
            (j.interleaved ? rotate_pairs : rotate_halves)(x, out, c, s, j.half);
            __builtin_memcpy(out + 2 * j.half, x + 2 * j.half, 4 * (j.dim - 2 * j.half));
        }
    }
}
}  // namespace qt::QT_ISA
