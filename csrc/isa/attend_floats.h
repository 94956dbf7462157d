// Passes over keys and values that are floats: in the page, or decoded from it a block of keys at a time.
#pragma once
#include "isa/attend.h"

namespace qt::QT_ISA {

struct F32 {
    static constexpr size_t bytes = 4;
    static QT_INLINE V get(const uint8_t* p) { return QT_ISA::get<V>(p); }
};
struct F16 {
    static constexpr size_t bytes = 2;
    static QT_INLINE V get(const uint8_t* p) { return load_halves(p); }
};

// R rows of q times N vectors of keys, the first being key t of `keys`, tiles [16] of [depth][16]. Every score is one
// chain of sums over the dimensions, whatever R and N are.
template <class L, int R, int N>
QT_INLINE void score_few(const float* q, size_t ld, const uint8_t* keys, size_t depth, size_t t, float* scores, Ahead& next) {
    const uint8_t* from[N];
    for (int v = 0; v < N; v++) from[v] = keys + ((t + v * VL) / tile_tokens * depth * tile_tokens + (t + v * VL) % tile_tokens) * L::bytes;
    V acc[R][N] = {};
    for (size_t d = 0; d < depth; d += 4) {
#pragma GCC unroll 4
        for (size_t i = d; i < d + 4; i++) {
            V k[N];
            for (int v = 0; v < N; v++) k[v] = L::get(from[v] + i * tile_tokens * L::bytes);
            for (int r = 0; r < R; r++) {
                const V w = all(q[r * ld + i]);
                for (int v = 0; v < N; v++) acc[r][v] = fma(w, k[v], acc[r][v]);
            }
        }
        next.step();
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) store(scores + r * page_tokens + t + v * VL, acc[r][v]);
}

// A block of keys; `keys` and `scores` begin with it.
template <class L>
QT_INLINE void score_block(const Queries& q, size_t depth, const uint8_t* keys, size_t n, float* scores, Ahead& next) {
    by_rows(q.n, [&]<int R>(size_t r) {
        constexpr int N = R < 3 ? 4 : 2;
        for (size_t t = 0; t < n; t += N * VL) score_few<L, R, N>(q.x + r * q.ld, q.ld, keys, depth, t, scores + r * page_tokens, next);
    });
}

// out[r] += p[r] v over tokens [begin, end), N vectors wide
template <class L, int R, int N>
QT_INLINE void blend_few(const float* p, const uint8_t* v, size_t width, size_t begin, size_t end, float* out, size_t ld, Ahead& next) {
    V acc[R][N];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < N; i++) acc[r][i] = load(out + r * ld + i * VL);
    for (size_t t = begin; t < end; t++) {
        V row[N];
        for (int i = 0; i < N; i++) row[i] = L::get(v + (t * width + i * VL) * L::bytes);
        for (int r = 0; r < R; r++) {
            const V w = all(p[r * page_tokens + t]);
            for (int i = 0; i < N; i++) acc[r][i] = fma(w, row[i], acc[r][i]);
        }
        next.step();
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < N; i++) store(out + r * ld + i * VL, acc[r][i]);
}

template <class L>
static void blend_rows(size_t n, const float* p, const uint8_t* v, size_t width, size_t begin, size_t end, float* out, size_t ld, Ahead& next) {
    if (begin >= end) return;
    by_rows(n, [&]<int R>(size_t r) {
        constexpr int N = (VL == 16 && R <= 4) || R == 1 ? 4 : 2;
        const float* w = p + r * page_tokens;
        float* o = out + r * ld;
        size_t i = 0;
        for (; i + N * VL <= width; i += N * VL) blend_few<L, R, N>(w, v + i * L::bytes, width, begin, end, o + i, ld, next);
        for (; i < width; i += VL) blend_few<L, R, 1>(w, v + i * L::bytes, width, begin, end, o + i, ld, next);
    });
}

// Tokens [begin, end) of a page; `v` and `p` begin with token `from`. A row must not touch values that it does not see, were they NaN:
// what all rows see goes in one piece, what is before and behind it token by token.
template <class L>
QT_INLINE void blend_block(const Rows& rows, const float* p, const uint8_t* v, size_t width, size_t from, size_t begin, size_t end, float* state, size_t ld, Ahead& next) {
    auto within = [&](size_t t) { return t < begin ? begin : t > end ? end : t; };
    const bool shared = rows.all_begin < rows.all_end;
    const size_t b = within(rows.all_begin), e = within(rows.all_end);
    auto ragged = [&](bool behind) {
        if (shared && rows.all_begin == rows.any_begin && rows.all_end == rows.any_end) return;
        for (size_t i = 0; i < rows.tokens; i++) {
            size_t tb = within(rows.begin[i]), te = within(rows.end[i]);
            if (shared) (behind ? tb : te) = behind ? (tb > e ? tb : e) : (te < b ? te : b);
            else if (behind) return;
            const size_t r = rows.first[i];
            if (tb < te) blend_rows<L>(rows.first[i + 1] - r, p + r * page_tokens, v, width, tb - from, te - from, state + r * ld, ld, next);
        }
    };
    ragged(false);
    if (shared && b < e) blend_rows<L>(rows.n, p, v, width, b - from, e - from, state, ld, next);
    ragged(true);
}

template <class L>
static void score_floats(const Queries& q, size_t d, const uint8_t* keys, const Rows& rows, float* scores, float*, Ahead& next) {
    const size_t depth = round_up(d, 4);
    size_t blocks = 0;
    by_rows(q.n, [&]<int R>(size_t) { blocks += R < 3 ? 1 : 2; });
    next.pace(score_share, page_tokens / (4 * VL) * blocks * depth / 4);
    for (size_t b = rows.any_begin / attend_block * attend_block; b < rows.any_end; b += attend_block)
        score_block<L>(q, depth, keys + b * depth * L::bytes, rows.any_end - b < attend_block ? rows.any_end - b : attend_block, scores + b, next);
}

template <class L>
static void blend_floats(float* p, size_t d, const uint8_t* values, const Rows& rows, float softcap, float* state, size_t ld, float*, Ahead& next) {
    soften_rows(p, d, rows, softcap, state, ld, next);
    next.pace(blend_share, page_tokens * (d / 64 + 1) / 2);
    blend_block<L>(rows, p, values, padded(d), 0, rows.any_begin, rows.any_end, state, ld, next);
}
}  // namespace qt::QT_ISA
