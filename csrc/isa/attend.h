// What the passes over a page of keys and a page of values share.
#pragma once
#include <math.h>

#include "isa/vec.h"
#include "jobs.h"

namespace qt::QT_ISA {

constexpr float log2_e = 1.44269504f;

// Query rows as the passes over keys want them: floats, and where keys are codes the whole numbers they were rounded to.
struct Queries {
    float* x;  // [n], ld apart, zero from d on
    size_t n, ld;
    int8_t *low, *high;  // [n][ld]: 256 * high + low, or low alone
    float* step;         // [n][groups]
    int32_t* offset;     // [n][groups]: what the code of 0 adds up to, negated
};

// Rows of a tile and what their tokens see of a page. Rows of a token see the same.
struct Rows {
    size_t n, tokens;
    size_t first[attend_rows + 1];  // row of each token
    size_t begin[attend_rows], end[attend_rows];
    size_t all_begin, all_end;  // seen by every row
    size_t any_begin, any_end;  // seen by some row
};

// Pages are scattered, so the hardware's own prefetching starts anew on each: the work on one fetches the next into L2, and
// evenly, as memory can deliver: what comes in bursts is waited for.
struct Ahead {
    const uint8_t* p;
    size_t lines;  // of 64 bytes
    size_t each = 0, due = 0;  // 256ths of a line
    Ahead(const uint8_t* from, size_t bytes) : p(from), lines(bytes / 64) {}
    // `share` of all lines, in 16ths, over the next `steps` steps
    QT_INLINE void pace(size_t share, size_t steps) { each = steps ? (lines * share * 16 + steps - 1) / steps : 0; }
    QT_INLINE void step() {
        for (due += each; due >= 256; due -= 256, p += 64) __builtin_prefetch(p, 0, 2);
    }
};
enum { score_share = 7, soften_share = 2, blend_share = 7 };

// scores[row][page_tokens], times log2(e), for the keys of a page that some row sees (and some beside them).
using Score = void (*)(const Queries&, size_t d, const uint8_t* keys, const Rows&, float* scores, float* room, Ahead&);
// The running softmax (of base 2) of scores[row][page_tokens], and its sum of the values of a page, into `state`; scores are not kept.
using Blend = void (*)(float* scores, size_t d, const uint8_t* values, const Rows&, float softcap, float* state, size_t ld, float* room, Ahead&);

// f.template operator()<R>(row) for blocks of R rows.
template <class F>
QT_INLINE void by_rows(size_t n, F&& f) {
    size_t r = 0;
#if defined(__AVX512F__) || defined(__aarch64__)
    for (; r + 8 <= n; r += 8) f.template operator()<8>(r);
#endif
    for (; r + 4 <= n; r += 4) f.template operator()<4>(r);
    if (n - r == 3) f.template operator()<3>(r);
    if (n - r == 2) f.template operator()<2>(r);
    if (n - r == 1) f.template operator()<1>(r);
}

struct Seen {
    size_t begin, end;  // tokens of a page
};

// Minus infinity where a row sees nothing.
QT_INLINE void hide(float* scores, Seen seen) {
    for (size_t j = 0; j < seen.begin; j++) scores[j] = -INFINITY;
    for (size_t j = seen.end; j < page_tokens; j++) scores[j] = -INFINITY;
}

// 2^x for x <= 0, within 2 units of the last place; NaN stays NaN.
QT_INLINE V exp2_negative(V x) {
#if defined(__AVX512F__)
    alignas(64) static constexpr float sixteenths[16] = {1.f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f, 1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f};  // 2^(i / 16)
    const V magic = all(786432.f);  // 1.5 * 2^19: adding it rounds to 16ths
    x = larger(all(-160.f), x);
    const V t = x + magic, whole = t - magic, r = x - whole;
    V p = fma(r, all(0.0555041087f), all(0.240226507f));
    p = fma(p, r, all(0.693147181f));
    p = fma(p, r, all(1.f));
    return _mm512_scalef_ps(p * (V)_mm512_permutexvar_ps((__m512i)t, load(sixteenths)), whole);
#else
    return exp_negative(x * all(0.693147181f));
#endif
}

// The largest score so far, with those of [begin, end), multiples of VL; returns what earlier sums shrink by.
QT_INLINE float raise(const float* scores, size_t begin, size_t end, float& top) {
    V m = load(scores + begin);
    for (size_t j = begin + VL; j < end; j += VL) m = larger(load(scores + j), m);
    const float here = largest(m), most = here > top ? here : top, shrink = top == most ? 1 : exp2_negative(all(top - most))[0];
    top = most;
    return shrink;
}

// Hidden scores become probabilities relative to the row's largest score so far, 0 where it sees nothing.
QT_INLINE float soften(float* scores, Seen seen, float& top, float& total) {
    const size_t b = seen.begin / VL * VL, e = round_up(seen.end, VL);
    const float shrink = raise(scores, b, e, top);
    for (size_t j = 0; j < b; j += VL) store(scores + j, V{});
    for (size_t j = e; j < page_tokens; j += VL) store(scores + j, V{});
    V part{};
    for (size_t j = b; j < e; j += VL) {
        const V p = exp2_negative(load(scores + j) - all(top));
        store(scores + j, p);
        part += p;
    }
    total = total * shrink + sum(part);
    return shrink;
}

// Scores as the softmax wants them: capped, and minus infinity where a row sees nothing.
QT_INLINE void cap_and_hide(float* scores, const Rows& rows, float softcap) {
    for (size_t i = 0; i < rows.tokens; i++)
        for (size_t r = rows.first[i]; r < rows.first[i + 1]; r++) {
            float* s = scores + r * page_tokens;
            if (softcap)
                for (size_t j = rows.begin[i] / VL * VL; j < rows.end[i]; j += VL) store(s + j, tanh(load(s + j) / all(softcap * log2_e)) * all(softcap * log2_e));
            hide(s, {rows.begin[i], rows.end[i]});
        }
}

QT_INLINE void soften_rows(float* scores, size_t d, const Rows& rows, float softcap, float* state, size_t ld, Ahead& next) {
    cap_and_hide(scores, rows, softcap);
    next.pace(soften_share, rows.n);
    for (size_t i = 0; i < rows.tokens; i++) {
        const Seen seen{rows.begin[i], rows.end[i]};
        for (size_t r = rows.first[i]; r < rows.first[i + 1]; r++, next.step()) {
            float *s = scores + r * page_tokens, *o = state + r * ld;
            if (seen.begin >= seen.end) {
                for (size_t j = 0; j < page_tokens; j += VL) store(s + j, V{});
                continue;
            }
            const float shrink = soften(s, seen, o[padded(d)], o[padded(d) + 1]);
            if (shrink != 1)
                for (size_t j = 0; j < padded(d); j += VL) store(o + j, load(o + j) * all(shrink));
        }
    }
}
}  // namespace qt::QT_ISA
