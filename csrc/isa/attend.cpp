// Attention of a tile of query rows over one segment of keys, page by page, with a running softmax (arXiv:2205.14135).
#include <math.h>

#include "isa/attend_floats.h"
#include "isa/ops.h"
#include "isa/rotate.h"
#ifdef QT_ISA_avx512
#include "isa/attend_vnni.h"
#else
#include "isa/attend_expand.h"
#endif

namespace qt::QT_ISA {

struct Passes {
    Score score;
    Blend blend;
};
#ifdef QT_ISA_avx512
constexpr bool integer_queries = true;
#define QT_PASSES(kind) {score_codes<kind>, blend_codes<kind>}
#else
constexpr bool integer_queries = false;
#define QT_PASSES(kind) {score_expanded<kind>, blend_expanded<kind>}
#endif
constexpr Passes passes[n_kv_kinds] = {{score_floats<F32>, blend_floats<F32>}, {score_floats<F16>, blend_floats<F16>}, QT_PASSES(kv_q8), QT_PASSES(kv_q6), QT_PASSES(kv_q4)};

typedef int8_t S __attribute__((vector_size(VL)));

// A row of queries becomes whole numbers up to `limit` in every group, and x what they stand for.
static void round_query(const Queries& q, size_t row, size_t d, const KvKind& kind) {
    const size_t n = kv_group(d), groups = d / n;
    float* x = q.x + row * q.ld;
    int8_t *low = q.low + row * q.ld, *high = q.high + row * q.ld;
    for (size_t g = 0; g < groups; g++, x += n) {
        const Range r = range_of(x, n);
        const float most = -r.low > r.high ? -r.low : r.high, inverse = most == 0 ? 0 : kind.query / most;
        const float step = r.finite ? most / kind.query * log2_e : NAN;
        I total{};
        for (size_t i = 0; i < n; i += VL) {  // where groups are shorter than a vector, the next group writes over what is too much
            const V part = n < VL ? load_part(x, n) : load(x + i);
            const I codes = r.finite ? nearest(part * all(inverse)) : I{};
            total += codes;
            if constexpr (integer_queries) {
                const I upper = kind.query > 127 ? (codes + 128) >> 8 : I{};
                put(low + g * n + i, __builtin_convertvector(codes - upper * 256, S));
                put(high + g * n + i, __builtin_convertvector(upper, S));
            } else {
                put(x + i, __builtin_convertvector(codes, V) * all(step));
            }
        }
        int32_t sum = 0;
        for (int i = 0; i < VL; i++) sum += total[i];
        q.step[row * groups + g] = step;
        q.offset[row * groups + g] = -kind.half() * sum;
    }
}

static Queries prepare(const AttendJob& a, size_t kv_head, size_t row, size_t n, float* scratch) {
    const size_t ld = padded(a.d), groups = a.d / kv_group(a.d), group = a.group();
    Queries q{.x = scratch, .n = n, .ld = ld, .low = reinterpret_cast<int8_t*>(scratch + n * ld)};
    q.high = q.low + n * ld;
    q.step = reinterpret_cast<float*>(q.high + n * ld);
    q.offset = reinterpret_cast<int32_t*>(q.step + n * groups);
    for (size_t r = 0; r < n; r++) {
        const float* from = a.q + ((row + r) / group * a.n_heads + kv_head * group + (row + r) % group) * a.d;
        float* to = q.x + r * ld;
        const bool coded = kv_kinds[a.keys].coded();  // those are scaled when they are rounded
        for (size_t i = 0; i < ld; i++) to[i] = i < a.d ? from[i] * a.scale * (coded ? 1 : log2_e) : 0;
        if (!coded) continue;
        rotate(to, ld, kv_group(a.d));
        round_query(q, r, a.d, kv_kinds[a.keys]);
    }
    return q;
}

// What the rows' tokens see of the page that begins with key `first`.
static Rows look(const AttendJob& a, size_t row, size_t n, size_t first) {
    const size_t group = a.group(), t0 = row / group;
    Rows rows{.n = n, .tokens = (row + n - 1) / group + 1 - t0, .all_begin = 0, .all_end = page_tokens, .any_begin = page_tokens, .any_end = 0};
    for (size_t i = 0; i < rows.tokens; i++) {
        const size_t begin = a.begin(t0 + i), end = a.end(t0 + i);
        size_t b = begin > first ? begin - first : 0, e = end > first ? end - first : 0;
        if (e > page_tokens) e = page_tokens;
        if (b >= e) b = e = 0;
        rows.first[i] = i ? (t0 + i) * group - row : 0;
        rows.begin[i] = b, rows.end[i] = e;
        if (b > rows.all_begin) rows.all_begin = b;
        if (e < rows.all_end) rows.all_end = e;
        if (b < e && b < rows.any_begin) rows.any_begin = b;
        if (e > rows.any_end) rows.any_end = e;
    }
    rows.first[rows.tokens] = n;
    return rows;
}

void attend(const AttendJob& a, size_t kv_head, size_t row, size_t n, size_t begin_segment, size_t end_segment, float* state, float* scratch) {
    const size_t vp = padded(a.dv), ld = a.state_floats();
    float *scores = scratch + attend_rows * 2 * padded(a.d), *room = scores + attend_rows * page_tokens;
    const Queries q = prepare(a, kv_head, row, n, scratch);
    const size_t begin = a.begin(row / a.group()), end = a.end((row + n - 1) / a.group());  // positions rise with tokens
    constexpr size_t pages = attend_segment / page_tokens;
    for (size_t page = begin_segment * pages; page < end_segment * pages; page++) {
        if (page % pages == 0) {
            if (page != begin_segment * pages) state += n * ld;
            for (size_t r = 0; r < n; r++) {
                for (size_t i = 0; i < ld; i++) state[r * ld + i] = 0;
                state[r * ld + vp] = -INFINITY;
            }
        }
        const size_t first = page * page_tokens;
        if (first >= end || first + page_tokens <= begin) continue;
        const Rows rows = look(a, row, n, first);
        const uint8_t *keys = a.head(page, kv_head), *values = keys + a.key_bytes;
        const bool more = first + page_tokens < end;
        Ahead next(more ? a.head(page + 1, kv_head) : keys, more ? a.head_bytes : 0);
        passes[a.keys].score(q, a.d, keys, rows, scores, room, next);
        passes[a.values].blend(scores, a.dv, values, rows, a.softcap, state, ld, room, next);
    }
}

void attend_finish(const AttendJob& a, size_t kv_head, size_t row, size_t n, const float* state, float* out) {
    const size_t group = a.group(), vp = padded(a.dv);
    for (size_t r = 0; r < n; r++, state += a.state_floats()) {
        const size_t head = kv_head * group + (row + r) % group;
        float* to = out + ((row + r) / group * a.n_heads + head) * a.dv;
        float top = state[vp], total = state[vp + 1], up = 1;
        if (a.sinks) {
            const float sink = a.sinks[head] * log2_e, most = sink > top ? sink : top;
            up = exp2_negative(all(top - most))[0];
            total = total * up + exp2_negative(all(sink - most))[0];
        }
        const V scale = all(up), sum = all(total);
        constexpr size_t room = 1024;  // rotated that many at a time: a multiple of every group
        alignas(64) float x[room];
        for (size_t at = 0; at < vp; at += room) {
            const size_t m = vp - at < room ? vp - at : room;
            for (size_t i = 0; i < m; i += VL) store(x + i, load(state + at + i) * scale / sum);
            if (kv_kinds[a.values].coded()) rotate(x, m, kv_group(a.dv));
            for (size_t i = 0; i < m && at + i < a.dv; i++) to[at + i] = x[i];
        }
    }
}
}  // namespace qt::QT_ISA
