// Layers that remember a sequence in a state of fixed size.
#include "isa/ops.h"
#include "isa/vec.h"

namespace qt::QT_ISA {
constexpr int parts = 2;  // vectors of a row of the state that one pass holds: the sums of q and k fill the pipeline, and 16 KB of state the first cache

QT_INLINE size_t clip(size_t n, size_t at) { return n < at ? 0 : n - at < VL ? n - at : VL; }

struct Columns {
    V at[parts];
};
QT_INLINE Columns load_columns(const float* p, size_t n) {
    Columns c;
    for (int i = 0; i < parts; i++) c.at[i] = n == parts * VL ? load(p + i * VL) : load_part(p + i * VL, clip(n, i * VL));
    return c;
}
QT_INLINE void store_columns(float* p, const Columns& c, size_t n) {
    for (int i = 0; i < parts; i++) {
        if (n == parts * VL) store(p + i * VL, c.at[i]);
        else store_part(p + i * VL, c.at[i], clip(n, i * VL));
    }
}

static float dot(const float* a, const float* b, size_t n) {
    V total{};
    size_t i = 0;
    for (; i + VL <= n; i += VL) total = fma(load(a + i), load(b + i), total);
    if (i < n) total = fma(load_part(a + i, n - i), load_part(b + i, n - i), total);
    return sum(total);
}

// Up to parts * VL columns of a state whose rows are `apart` floats apart. What a token writes and the next one reads is one pass.
QT_INLINE void delta_columns(const DeltaJob& j, size_t head, size_t c0, size_t n, float* state, size_t apart) {
    const size_t stride = j.n_k * j.d_k, first = head / (j.n_v / j.n_k) * j.d_k;
    const float *q = j.q + first, *k = j.k + first;
    Columns at_q{}, at_k{};  // of the state, seen by the token to come
    for (size_t r = 0; r < j.d_k; r++) {
        const Columns s = load_columns(state + r * apart, n);
        for (int i = 0; i < parts; i++) at_q.at[i] = fma(all(q[r]), s.at[i], at_q.at[i]), at_k.at[i] = fma(all(k[r]), s.at[i], at_k.at[i]);
    }
    for (size_t t = 0; t < j.tokens; t++, q += stride, k += stride) {
        const size_t row = t * j.n_v + head, column = row * j.d_v + c0;
        const V fade = all(j.fade[row]), beta = all(j.beta[row]), both = all(dot(q, k, j.d_k));
        const Columns v = load_columns(j.v + column, n);
        Columns written, y;
        for (int i = 0; i < parts; i++) {
            written.at[i] = beta * (v.at[i] - fade * at_k.at[i]);
            y.at[i] = fma(both, written.at[i], fade * at_q.at[i]);
        }
        store_columns(j.y + column, y, n);
        const bool last = t + 1 == j.tokens;
        const float *next_q = last ? q : q + stride, *next_k = last ? k : k + stride;
        at_q = at_k = Columns{};
        for (size_t r = 0; r < j.d_k; r++) {
            float* p = state + r * apart;
            Columns s = load_columns(p, n);
            for (int i = 0; i < parts; i++) {
                s.at[i] = fma(all(k[r]), written.at[i], fade * s.at[i]);
                at_q.at[i] = fma(all(next_q[r]), s.at[i], at_q.at[i]), at_k.at[i] = fma(all(next_k[r]), s.at[i], at_k.at[i]);
            }
            store_columns(p, s, n);
        }
    }
}

// Columns of rows that are a power of two apart fall on few places of a cache: several tokens have them copied together.
void delta(const DeltaJob& j, size_t head, size_t c0, size_t c1, float* state, float* scratch) {
    constexpr size_t whole = parts * VL;
    for (; c0 < c1; c0 += whole) {
        const size_t n = c1 - c0 < whole ? c1 - c0 : whole;
        if (j.tokens < 3) {
            if (n == whole) delta_columns(j, head, c0, whole, state + c0, j.d_v);
            else delta_columns(j, head, c0, n, state + c0, j.d_v);
            continue;
        }
        for (size_t r = 0; r < j.d_k; r++) __builtin_memcpy(scratch + r * whole, state + r * j.d_v + c0, n * sizeof(float));
        if (n == whole) delta_columns(j, head, c0, whole, scratch, whole);
        else delta_columns(j, head, c0, n, scratch, whole);
        for (size_t r = 0; r < j.d_k; r++) __builtin_memcpy(state + r * j.d_v + c0, scratch + r * whole, n * sizeof(float));
    }
}

void conv(const ConvJob& j, size_t t0, size_t t1, size_t c0, size_t c1, float* scratch) {
    const size_t n = c1 - c0, before = j.width - 1;
    for (size_t c = 0; c < n; c++)
        for (size_t i = 0; i < j.width; i++) scratch[i * n + c] = j.kernel[(c0 + c) * j.width + i];
    for (size_t t = t0; t < t1; t++) {
        const size_t from_past = before > t ? before - t : 0;  // rows before the first token
        const float *past = j.past + t * j.channels + c0, *x = j.x + c0;
        float* y = j.y + t * j.channels + c0;
        size_t c = 0;
        for (; c + VL <= n; c += VL) {
            V total{};
            for (size_t i = 0; i < from_past; i++) total = fma(load(past + i * j.channels + c), load(scratch + i * n + c), total);
            for (size_t i = from_past; i < j.width; i++) total = fma(load(x + (t + i - before) * j.channels + c), load(scratch + i * n + c), total);
            store(y + c, total);
        }
        for (; c < n; c++) {
            V total{};  // the same sum for a channel wherever it stands
            for (size_t i = 0; i < from_past; i++) total = fma(all(past[i * j.channels + c]), all(scratch[i * n + c]), total);
            for (size_t i = from_past; i < j.width; i++) total = fma(all(x[(t + i - before) * j.channels + c]), all(scratch[i * n + c]), total);
            y[c] = total[0];
        }
    }
}
}  // namespace qt::QT_ISA
