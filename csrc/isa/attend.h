// What the passes over a page of keys and a page of values share.
#pragma once
#include "isa/vec.h"
#include "jobs.h"

namespace qt::QT_ISA {

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

// Pages are scattered, so the hardware's own prefetching starts anew on each: a pass fetches what comes after it, into L2.
struct Ahead {
    const uint8_t *p, *end;
    size_t each = 1;  // lines a step
    Ahead(const uint8_t* from, size_t bytes) : p(from), end(from + bytes) {}
    // Spread evenly over the steps of the pass: faster than memory delivers, prefetches only wait for each other.
    QT_INLINE void pace(size_t steps) { each = ((end - p) / 64 + steps - 1) / steps; }
    QT_INLINE void step() {
        if (p >= end) return;
        for (size_t i = 0; i < each; i++, p += 64) __builtin_prefetch(p, 0, 2);
    }
};

// scores[row][page_tokens] for the keys of a page that some row sees (and some beside them).
using Score = void (*)(const Queries&, size_t d, const uint8_t* keys, const Rows&, float* scores, float* room, Ahead&);
// state[row] += p[row][page_tokens] times the values of a page. p is 0 where a row sees nothing, and is not kept.
using Blend = void (*)(float* p, size_t d, const uint8_t* values, const Rows&, float* state, size_t ld, float* room, Ahead&);

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
}  // namespace qt::QT_ISA
