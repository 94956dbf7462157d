// Blocks side by side in the lanes of vectors: nothing is ever summed across lanes, so every instruction set has the same bits.
#pragma once
#include "isa/encode.h"
#include "isa/narrow.h"
#include "isa/vec.h"

namespace qt::QT_ISA {
inline constexpr float tiny = 1e-30f;        // what is smaller is not divided by
inline constexpr float largest_half = 65504;

QT_INLINE V clip(V v, float low, float high) { return smaller(larger(v, all(low)), all(high)); }
// To the nearest whole number, halves to even, of magnitudes below 2^22.
QT_INLINE V whole(V v) { return (v + 12582912.0f) - 12582912.0f; }
// a / b, or 0 where b is not above tiny.
QT_INLINE V ratio(V a, V b) {
    const I usable = b > tiny;
    return usable ? a / (usable ? b : all(1)) : V{};
}
QT_INLINE V inverse(V s) {
    const I usable = magnitude(s) > tiny;
    return usable ? 1 / (usable ? s : all(1)) : V{};
}
// To the nearest half, at most the largest, and no zero below zero.
QT_INLINE V to_half(V v) {
    v = clip(v, -largest_half, largest_half);
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)) + V{};
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)) + V{};
#else
    for (int i = 0; i < VL; i++) v[i] = widen(narrow(v[i]));
    return v + V{};
#endif
}
QT_INLINE V root(V v) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(v);
#else
    for (int i = 0; i < VL; i++) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
}

// How much errors count; the rows of WEIGHTS in quants/weights.py.
enum class Plainly { one, magnitude, rms, shifted, even };
struct Weighting {
    Plainly plainly;
    float spread;
    bool rows;
};

// Rows become columns.
template <int h = VL / 2>
QT_INLINE void transpose(V* t) {
    constexpr auto lanes = [] {
        I v{};
        for (int i = 0; i < VL; i++) v[i] = i & h ? -1 : 0;
        return v;
    };
    const I other = lanes();
    QT_UNROLL
    for (int i = 0; i < VL; i++)
        if (!(i & h)) {
            const V a = t[i], b = t[i | h];
            t[i] = other ? swap_lanes<h>(b) : a;
            t[i | h] = other ? b : swap_lanes<h>(a);
        }
    if constexpr (h > 1) transpose<h / 2>(t);
}

// Values and weights of up to VL blocks from `first` on; lanes past the last are zero. Returns n, or how many come before the first
// that holds what no half can.
template <int size>
QT_INLINE int load_lanes(const EncodeJob& job, size_t first, int n, V* x, V* w) {
    auto column = [&](auto from, V* to) {
        for (int i = 0; i < size; i += VL) {
            for (int lane = 0; lane < VL; lane++) to[i + lane] = lane < n ? load(from(lane) + i) : V{};
            transpose(to + i);
        }
    };
    column([&](int lane) { return job.x + (first + lane) * size; }, x);
    I most{};  // magnitudes order like their bits, NaN above all
    for (int i = 0; i < size; i++) {
        const I bits = (I)magnitude(x[i]);
        most = bits > most ? bits : most;
    }
    for (int lane = 0; lane < n; lane++)
        if (most[lane] > bits<int>(largest_half)) return lane;
    if (job.importance) column([&](int lane) { return job.importance + (first + lane) % job.per_row * size; }, w);
    return n;
}

// Codes of blocks in lanes on their way to bytes in a row for each block.
template <int size>
struct Codes {
    V words[(size / 4 + VL - 1) / VL * VL]{};
    QT_INLINE void set(int i, I code) { words[i / 4] = (V)((I)words[i / 4] | code << 8 * (i % 4)); }
    QT_INLINE void to_rows(uint8_t (*rows)[size < 64 ? 64 : size]) {
        for (int i = 0; i < size / 4; i += VL) {
            transpose(words + i);
            for (int lane = 0; lane < VL; lane++) put(rows[lane] + 4 * i, words[i + lane]);
        }
    }
};

// Weights of the values, where w holds the importance before.
template <int size>
QT_INLINE void weigh(const EncodeJob& job, size_t first, int n, Weighting rule, const V* x, V* w) {
    if (job.importance && rule.spread == 0) return;
    V mean{};
    if (job.importance && rule.rows) {
        for (int lane = 0; lane < n; lane++) mean[lane] = job.power[(first + lane) / job.per_row];
    } else if (job.importance || rule.plainly == Plainly::shifted || rule.plainly == Plainly::even) {
        for (int i = 0; i < size; i++) mean += x[i] * x[i];
        mean *= (!job.importance && rule.plainly == Plainly::shifted ? 0.5f : 1.0f) / size;
    }
    if (job.importance) {
        for (int i = 0; i < size; i++) w[i] *= root(rule.spread * mean + x[i] * x[i]);
        return;
    }
    for (int i = 0; i < size; i++) {
        if (rule.plainly == Plainly::rms && i % 32 == 0) {
            mean = V{};
            for (int k = i; k < i + 32; k++) mean += x[k] * x[k];
            mean = root(mean * (1.0f / 32));
        }
        switch (rule.plainly) {
            case Plainly::one: w[i] = all(1); break;
            case Plainly::magnitude: w[i] = magnitude(x[i]); break;
            case Plainly::rms: w[i] = magnitude(x[i]) + mean; break;
            case Plainly::shifted: w[i] = mean + x[i] * x[i]; break;
            case Plainly::even: w[i] = root(rule.spread * mean + x[i] * x[i]); break;
        }
    }
}

// VL blocks at a time: one(x, w, blocks, n) of their values and weights.
template <class Block, class F>
QT_INLINE size_t encode_lanes(const EncodeJob& job, size_t first, size_t last, Weighting rule, F one) {
    V x[Block::size], w[Block::size];
    auto* blocks = reinterpret_cast<Block*>(job.blocks);
    for (size_t b = first; b < last; b += VL) {
        const int n = last - b < VL ? int(last - b) : VL, good = load_lanes<Block::size>(job, b, n, x, w);
        if (good < n) return b + good;
        weigh<Block::size>(job, b, n, rule, x, w);
        one(x, w, blocks + b, n);
    }
    return last;
}
}  // namespace qt::QT_ISA
