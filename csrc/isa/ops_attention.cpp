// Attention of a tile of query rows over one segment of keys, with a running softmax (arXiv:2205.14135).
#include <math.h>

#include "isa/dots.h"
#include "isa/ops.h"

namespace qt::QT_ISA {

// Keys or values [j0, j1) of the tile that starts at key `first`, in rows of `to`.
static void gather(const AttendJob& a, const uint8_t* store, size_t kv_head, size_t dim, size_t first, size_t j0, size_t j1, float* to) {
    const size_t row = dim * a.value_bytes;
    for (size_t j = j0; j < j1;) {
        const size_t page = (first + j) / a.page_tokens, slot = (first + j) % a.page_tokens;
        const uint8_t* from = store + ((size_t(a.pages[page]) * a.n_kv_heads + kv_head) * a.page_tokens + slot) * row;
        const size_t left = a.page_tokens - slot, run = left < j1 - j ? left : j1 - j;
        if (dim == padded(dim)) {
            a.decode(from, to + j * dim, run * dim);
        } else {
            for (size_t i = 0; i < run; i++) {
                float* out = to + (j + i) * padded(dim);
                a.decode(from + i * row, out, dim);
                for (size_t k = dim; k < padded(dim); k++) out[k] = 0;
            }
        }
        j += run;
    }
}

// scores[row][key] for rows of q and keys [j0, j1)
static void score(const float* q, size_t rows, const float* k, size_t d, size_t j0, size_t j1, float* scores) {
    for (size_t j = j0 / 4 * 4; j < j1; j += 4)
        for (size_t r = 0; r < rows; r += tile_cols) {
            const int cols = rows - r < tile_cols ? int(rows - r) : tile_cols;
            dots_up_to<4>(cols, k + j * padded(d), padded(d), q + r * padded(d), padded(d), padded(d), scores + r * attend_keys + j, attend_keys, false);
        }
}

static void cap(float* scores, size_t n, float softcap) {
    for (size_t i = 0; i < n; i += VL) store(scores + i, tanh(load(scores + i) / all(softcap)) * all(softcap));
}

// One row's scores become probabilities relative to its largest score so far; returns what its earlier sums shrink by.
static float soften(float* scores, size_t j0, size_t j1, float& top, float& total) {
    for (size_t j = 0; j < attend_keys; j++)
        if (j < j0 || j >= j1) scores[j] = -INFINITY;
    V m = load(scores);
    for (size_t j = VL; j < attend_keys; j += VL) m = larger(load(scores + j), m);
    const float here = largest(m), most = here > top ? here : top;
    V part{};
    for (size_t j = 0; j < attend_keys; j += VL) {
        V p = exp_negative(load(scores + j) - all(most));
        store(scores + j, p);
        part += p;
    }
    const float shrink = exp_negative(all(top - most))[0];
    total = total * shrink + sum(part);
    top = most;
    return shrink;
}

// out[r] += p[r] v over keys [j0, j1), N vectors wide
template <int R, int N>
QT_INLINE void blend(const float* p, const float* v, size_t ldv, size_t j0, size_t j1, float* out, size_t ldo) {
    V acc[R][N];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < N; i++) acc[r][i] = load(out + r * ldo + i * VL);
    for (size_t j = j0; j < j1; j++) {
        V row[N];
        for (int i = 0; i < N; i++) row[i] = load(v + j * ldv + i * VL);
        for (int r = 0; r < R; r++) {
            V w = all(p[r * attend_keys + j]);
            for (int i = 0; i < N; i++) acc[r][i] = fma(w, row[i], acc[r][i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < N; i++) store(out + r * ldo + i * VL, acc[r][i]);
}

template <int R>
QT_INLINE void blend_rows(const float* p, const float* v, size_t ldv, size_t j0, size_t j1, float* out, size_t ldo) {
    constexpr int N = VL == 16 ? 4 : 2;
    size_t i = 0;
    for (; i + N * VL <= ldv; i += N * VL) blend<R, N>(p, v + i, ldv, j0, j1, out + i, ldo);
    for (; i < ldv; i += VL) blend<R, 1>(p, v + i, ldv, j0, j1, out + i, ldo);
}

static void blend_all(size_t rows, const float* p, const float* v, size_t ldv, size_t j0, size_t j1, float* out, size_t ldo) {
    size_t r = 0;
    for (; r + 4 <= rows; r += 4) blend_rows<4>(p + r * attend_keys, v, ldv, j0, j1, out + r * ldo, ldo);
    for (; r < rows; r++) blend_rows<1>(p + r * attend_keys, v, ldv, j0, j1, out + r * ldo, ldo);
}

// Keys of a tile that a token sees.
struct Span {
    size_t begin, end;
    bool empty() const { return begin >= end; }
};
static Span visible(const AttendJob& a, size_t token, size_t first, size_t keys) {
    const size_t begin = a.begin(token), end = a.end(token);
    return {begin > first ? begin - first : 0, end < first + keys ? (end > first ? end - first : 0) : keys};
}

void attend(const AttendJob& a, size_t kv_head, size_t row, size_t n, size_t segment, float* state, float* scratch) {
    const size_t group = a.group(), dp = padded(a.d), vp = padded(a.dv), ld = a.state_floats();
    float *q = scratch, *scores = q + attend_rows * dp, *k = scores + attend_rows * attend_keys, *v = k + attend_keys * dp;
    for (size_t r = 0; r < n; r++) {
        const float* from = a.q + ((row + r) / group * a.n_heads + kv_head * group + (row + r) % group) * a.d;
        for (size_t i = 0; i < dp; i++) q[r * dp + i] = i < a.d ? from[i] * a.scale : 0;
        for (size_t i = 0; i < ld; i++) state[r * ld + i] = 0;
        state[r * ld + vp] = -INFINITY;
    }
    const size_t t0 = row / group, t1 = (row + n - 1) / group + 1;  // positions rise with tokens
    const size_t begin = a.begin(t0), end = a.end(t1 - 1), from = segment * attend_segment, to = from + attend_segment;
    for (size_t first = from; first < to && first < end; first += attend_keys) {
        if (first + attend_keys <= begin) continue;
        const size_t j0 = begin > first ? begin - first : 0, j1 = end - first < attend_keys ? end - first : attend_keys;
        gather(a, a.k_pages, kv_head, a.d, first, j0, j1, k);
        gather(a, a.v_pages, kv_head, a.dv, first, j0, j1, v);
        score(q, n, k, a.d, j0, j1, scores);
        if (a.softcap) cap(scores, n * attend_keys, a.softcap);
        // Rows of a token share what they see; a token must not touch values it does not see, were they NaN.
        bool whole = true;
        for (size_t r = 0; r < n; r++) {
            const Span s = visible(a, (row + r) / group, first, attend_keys);
            whole = whole && s.begin == 0 && s.end == attend_keys;
            if (s.empty()) continue;
            float* o = state + r * ld;
            const float shrink = soften(scores + r * attend_keys, s.begin, s.end, o[vp], o[vp + 1]);
            if (shrink != 1)
                for (size_t i = 0; i < vp; i += VL) store(o + i, load(o + i) * all(shrink));
        }
        if (whole) {
            blend_all(n, scores, v, vp, 0, attend_keys, state, ld);
            continue;
        }
        for (size_t r = 0; r < n;) {
            const size_t token = (row + r) / group, next = (token + 1) * group - row, stop = next < n ? next : n;
            const Span s = visible(a, token, first, attend_keys);
            if (!s.empty()) blend_all(stop - r, scores + r * attend_keys, v, vp, s.begin, s.end, state + r * ld, ld);
            r = stop;
        }
    }
}
}  // namespace qt::QT_ISA
