// Passes over keys and values in codes by integer dot products. Keys: 16 scores grow in a register, four dimensions an
// instruction. Values: probabilities times scales are rounded to one byte, or two, and four tokens go at a time.
#pragma once
#include "isa/attend.h"

namespace qt::QT_ISA {
using Z = __m512i;

QT_INLINE Z read(const void* p) { return _mm512_loadu_si512(p); }
QT_INLINE Z both(Z a, int mask16) { return _mm512_and_si512(a, _mm512_set1_epi16((short)mask16)); }

// Codes of 8 dimensions of a tile's 16 keys, [2][16][4] bytes; `c` counts such eights.
template <int kind>
QT_INLINE void key_codes(const uint8_t* low, const uint8_t* high, size_t c, Z* k) {
    if constexpr (kind == kv_q8) {
        k[0] = read(low + 128 * c), k[1] = read(low + 128 * c + 64);
        return;
    }
    const Z x = read(low + 64 * c);
    k[0] = both(x, 0x0f0f), k[1] = both(_mm512_srli_epi16(x, 4), 0x0f0f);
    if constexpr (kind == kv_q6) {
        Z h = read(high + 64 * (c / 2));
        if (c % 2) h = _mm512_srli_epi16(h, 4);
        k[0] = _mm512_or_si512(k[0], both(_mm512_slli_epi16(h, 4), 0x3030));
        k[1] = _mm512_or_si512(k[1], both(_mm512_slli_epi16(h, 2), 0x3030));
    }
}

// A word in all lanes of a register. Left alone, the compiler loads it anew for each of `uses`, and loads are as scarce as products.
template <int uses>
QT_INLINE Z shared(const void* word) {
    Z x = _mm512_set1_epi32(get<int32_t>(word));
    if constexpr (uses > 1) asm("" : "+v"(x));
    return x;
}

// R rows times T tiles of keys.
template <int kind, int R, int T>
QT_INLINE void score_tiles(const Queries& q, size_t row, size_t d, const uint8_t* keys, size_t tile, float* scores, Ahead& next) {
    constexpr KvKind k = kv_kinds[kind];
    constexpr int P = k.query > 127 ? 2 : 1;
    const size_t n = kv_group(d), groups = d / n, eights = n / 8, vectors = key_vectors(k.planes[0], d), more = k.planes[1] ? key_vectors(k.planes[1], d) : 0;
    const uint8_t *low = keys, *high = low + key_plane(k.planes[0], d), *scales = high + (more ? key_plane(k.planes[1], d) : 0);
    V s[R][T] = {};
    for (size_t g = 0; g < groups; g++) {
        Z a[P][R][T];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < T; t++) {
                a[0][r][t] = _mm512_set1_epi32(q.offset[(row + r) * groups + g]);
                if constexpr (P == 2) a[1][r][t] = _mm512_setzero_si512();
            }
        for (size_t c = g * eights; c < (g + 1) * eights; c++) {
            Z codes[T][2];
            for (int t = 0; t < T; t++) key_codes<kind>(low + (tile + t) * vectors * 64, high + (tile + t) * more * 64, c, codes[t]);
            for (int i = 0; i < 2; i++)
                for (int r = 0; r < R; r++)
                    for (int p = 0; p < P; p++) {
                        const Z x = shared<T>((p ? q.high : q.low) + (row + r) * q.ld + 8 * c + 4 * i);
                        for (int t = 0; t < T; t++) a[p][r][t] = _mm512_dpbusd_epi32(a[p][r][t], codes[t][i], x);
                    }
            next.step();
        }
        for (int t = 0; t < T; t++) {
            const V scale = load_halves(scales + ((tile + t) * groups + g) * tile_tokens * 2);
            for (int r = 0; r < R; r++) {
                Z sum = a[0][r][t];
                if constexpr (P == 2) sum = _mm512_add_epi32(sum, _mm512_slli_epi32(a[1][r][t], 8));
                s[r][t] = fma(_mm512_cvtepi32_ps(sum), scale * all(q.step[(row + r) * groups + g]), s[r][t]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) store(scores + (row + r) * page_tokens + (tile + t) * tile_tokens, s[r][t]);
}

constexpr int tiles_of(int rows) { return rows >= 8 ? 1 : rows >= 3 ? 2 : 4; }

template <int kind>
static void score_codes(const Queries& q, size_t d, const uint8_t* keys, const Rows& rows, float* scores, float*, Ahead& next) {
    size_t steps = 0;
    by_rows(q.n, [&]<int R>(size_t) { steps += tile_tokens / tiles_of(R) * d / 8; });
    next.pace(score_share, steps);
    // Four tiles, so that all rows find them in L1; tiles beyond the last token are read, their scores are not.
    for (size_t b = rows.any_begin / 64 * 4; b * tile_tokens < rows.any_end; b += 4)
        by_rows(q.n, [&]<int R>(size_t r) {
            constexpr int T = tiles_of(R);
            for (size_t t = b; t < b + 4; t += T) score_tiles<kind, R, T>(q, r, d, keys, t, scores, next);
        });
}

// How a row's probabilities weigh a group's values: whole numbers, those of tokens i, i + 16, i + 32 and i + 48 of every 64 in one
// word. What 4-bit values lose in rounding leaves room for 7 bits of the largest of 64 tokens; others get 15 of the page's.
struct alignas(64) Weights {
    int32_t quads[2][page_tokens / 4];  // 256 times the first plus the second
    int32_t offset[4];  // what the code of 0 adds up to, negated: of every 64, or 0 and of all
};
constexpr size_t weighed = 64;  // tokens of a word in all its lanes
// Thresholds of rounding, of each token of 64 its own (bits reversed), on a number whose floats have 8 bits for the fraction.
struct Thresholds {
    float at[weighed];
    constexpr Thresholds() : at{} {
        for (size_t t = 0; t < weighed; t++) {
            at[t] = 49152 + 1.f / 128;  // 1.5 * 2^15
            for (int b = 0; b < 6; b++) at[t] += float(t >> b & 1) / float(2 << b);
        }
    }
};
alignas(64) static constexpr Thresholds thresholds;
// The second byte of every word of two vectors, [2][16] to [16][2 of 4].
struct Seconds {
    uint8_t at[64];
    constexpr Seconds() : at{} {
        for (int i = 0; i < 64; i++) at[i] = uint8_t((i % 4 % 2) * 64 + i / 4 * 4 + 1);
    }
};
alignas(64) static constexpr Seconds seconds;
template <int kind>
constexpr bool coarse = kv_kinds[kind].bits == 4;
template <int kind>
constexpr size_t span = coarse<kind> ? weighed : page_tokens;
template <int kind>
constexpr float most_weight = coarse<kind> ? 127 : 32512;

// Scales of a page's values [groups][page_tokens] as floats, and of every token the largest magnitude. What is not finite
// becomes 0 there and stays here, so that rows that see it know and others need not. Returns whether all is finite.
QT_INLINE bool widen_scales(const uint8_t* halves, size_t groups, float* scales, float* most) {
    Z any = _mm512_setzero_si512();
    for (size_t t = 0; t < page_tokens; t += 16) {
        Z top = _mm512_setzero_si512();
        for (size_t g = 0; g < groups; g++) {
            const V s = load_halves(halves + (g * page_tokens + t) * 2);
            top = _mm512_max_epu32(top, (Z)magnitude(s));
            store(scales + g * page_tokens + t, s);
        }
        any = _mm512_max_epu32(any, top);
        store(most + t, (V)top);
    }
    if (_mm512_reduce_max_epu32(any) < 0x7f800000) return true;
    for (size_t i = 0; i < groups * page_tokens; i += 16) {
        const V s = load(scales + i);
        store(scales + i, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(magnitude(s), all(INFINITY), _CMP_LT_OQ), s));
    }
    return false;
}

// 2^x for x <= 0, within 1e-4 of it: far below what codes lose. NaN stays NaN.
QT_INLINE V exp2_near(V x) {
    const V part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    V p = fma(part, all(0.0780245364f), all(0.2260672f));
    p = fma(p, part, all(0.695833504f));
    p = fma(p, part, all(0.999925256f));
    return _mm512_scalef_ps(p, x);
}

// How much the weights of a row's spans have grown from probability times scale, and what a weight of 1 then stands for.
struct Growth {
    float by[4], step[4];
};

// The largest bits of each of four vectors of magnitudes, or of all of them.
template <bool apart>
QT_INLINE __m128i largest_bits(const Z* size) {
    Z m;
    if constexpr (apart) {
        const Z ab = _mm512_max_epu32(_mm512_unpacklo_epi32(size[0], size[1]), _mm512_unpackhi_epi32(size[0], size[1])), cd = _mm512_max_epu32(_mm512_unpacklo_epi32(size[2], size[3]), _mm512_unpackhi_epi32(size[2], size[3]));
        m = _mm512_max_epu32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    } else {
        m = _mm512_max_epu32(_mm512_max_epu32(size[0], size[1]), _mm512_max_epu32(size[2], size[3]));
        m = _mm512_max_epu32(m, _mm512_shuffle_epi32(m, _MM_PERM_BADC));
        m = _mm512_max_epu32(m, _mm512_shuffle_epi32(m, _MM_PERM_CDAB));
    }
    const __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(m), _mm512_extracti64x4_epi64(m, 1));
    return _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Scores of R rows become probabilities relative to each row's largest score so far. Three passes over all of them, since each ends
// in a sum across lanes that the next rows' arithmetic hides.
template <int kind, bool finite, int R>
static void soften_codes(float* p, const float* most, float* state, size_t ld, size_t d, Growth* growth) {
    float tops[R];
    for (int r = 0; r < R; r++) {
        V m[4];
        for (int i = 0; i < 4; i++) m[i] = load(p + r * page_tokens + 16 * i);
        for (size_t t = 64; t < page_tokens; t += 64)
QT_UNROLL
            for (int i = 0; i < 4; i++) m[i] = larger(load(p + r * page_tokens + t + 16 * i), m[i]);
        tops[r] = largest(larger(larger(m[0], m[1]), larger(m[2], m[3])));
    }
    for (int r = 0; r < R; r++) {
        float* o = state + r * ld;
        float& top = o[padded(d)];
        if (!(tops[r] > top)) {
            tops[r] = top;
            continue;
        }
        const V shrink = exp2_negative(all(top - tops[r]));
        top = tops[r], o[padded(d) + 1] *= shrink[0];
        for (size_t i = 0; i < padded(d); i += VL) store(o + i, load(o + i) * all(shrink[0]));
    }
    for (int r = 0; r < R; r++) {
        float* s = p + r * page_tokens;
        const V by = all(tops[r] == -INFINITY ? 0 : tops[r]);
        V part[2] = {};
        Z size[4] = {};
        for (size_t t = 0; t < page_tokens; t += 64)
QT_UNROLL
            for (size_t i = 0; i < 4; i++) {
                const size_t at = t + 16 * i;
                const V x = exp2_near(load(s + at) - by);
                store(s + at, x);
                part[i % 2] += x;
                V y = x * load(most + at);
                if constexpr (!finite) y = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, V{}, _CMP_NEQ_UQ), y);  // unseen scales may be anything
                Z& found = size[coarse<kind> ? t / 64 : i];
                found = _mm512_max_epu32(found, (Z)magnitude(y));  // a NaN may have a sign
            }
        state[r * ld + padded(d) + 1] += sum(part[0] + part[1]);
        const __m128i bits = largest_bits<coarse<kind>>(size);
        const __m128 span = _mm_max_ps(_mm_castsi128_ps(bits), _mm_set1_ps(1e-30f)), room = _mm_set1_ps(most_weight<kind>);  // the latter for a NaN
        _mm_storeu_ps(growth[r].by, _mm_div_ps(room, span));
        const __m128i broken = _mm_cmpgt_epi32(bits, _mm_set1_epi32(0x7f7fffff));
        _mm_storeu_ps(growth[r].step, _mm_or_ps(_mm_mul_ps(span, _mm_set1_ps(1 / most_weight<kind>)), _mm_castsi128_ps(broken)));
    }
}

// The bytes of four vectors' lanes, from [4 vectors][16] to [16][4].
QT_INLINE Z quads_of(Z ab, Z cd) {
    const Z turn = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm512_shuffle_epi8(_mm512_packs_epi16(ab, cd), turn);
}

// Few bits are rounded up or down by thresholds that differ from token to token: small weights count on average, where
// rounding to the nearest would lose them all.
template <int kind>
QT_INLINE void weigh(const float* p, const float* scales, const Growth& growth, Weights& w) {
    constexpr int half = kv_kinds[kind].half();
    Z sums[4];
    QT_UNROLL
    for (size_t b = 0; b < 4; b++) {
        const V by = all(growth.by[b]);
        Z x[4];
        QT_UNROLL
        for (size_t i = 0; i < 4; i++) {
            const V a = load(p + 64 * b + 16 * i) * by, s = load(scales + 64 * b + 16 * i);
            if constexpr (coarse<kind>) x[i] = (Z)_mm512_fmadd_round_ps(a, s, load(thresholds.at + 16 * i), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
            else x[i] = _mm512_cvtps_epi32(a * s);
        }
        if constexpr (coarse<kind>) {
            const Z at = read(seconds.at), ab = _mm512_permutex2var_epi8(x[0], at, x[1]), cd = _mm512_permutex2var_epi8(x[2], at, x[3]);
            const Z q = _mm512_mask_blend_epi16(0xaaaaaaaa, ab, cd);
            put(w.quads[0] + 16 * b, q);
            sums[b] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(half), q);
        } else {
            const Z ab = _mm512_packs_epi32(x[0], x[1]), cd = _mm512_packs_epi32(x[2], x[3]);
            auto high = [](Z x) { return _mm512_srai_epi16(_mm512_add_epi16(x, _mm512_set1_epi16(128)), 8); };
            auto low = [](Z x) { return _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8); };
            put(w.quads[0] + 16 * b, quads_of(high(ab), high(cd)));
            put(w.quads[1] + 16 * b, quads_of(low(ab), low(cd)));
            const Z by = _mm512_set1_epi16(half);
            sums[b] = _mm512_add_epi32(_mm512_madd_epi16(ab, by), _mm512_madd_epi16(cd, by));
        }
    }
    auto pairs = [](Z a, Z b) { return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)); };
    const Z ab = pairs(sums[0], sums[1]), cd = pairs(sums[2], sums[3]), quarter = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i eighth = _mm256_add_epi32(_mm512_castsi512_si256(quarter), _mm512_extracti64x4_epi64(quarter, 1));
    const __m128i found = _mm_sub_epi32(_mm_setzero_si128(), _mm_add_epi32(_mm256_castsi256_si128(eighth), _mm256_extracti128_si256(eighth, 1)));
    _mm_storeu_si128((__m128i*)w.offset, found);
    if constexpr (!coarse<kind>) w.offset[1] += w.offset[0] + w.offset[2] + w.offset[3], w.offset[0] = 0;
}

// Codes of 16 dimensions times four tokens: word `i` of the block of 64, or of 128 for two of them.
template <int kind>
QT_INLINE void value_codes(const uint8_t* low, const uint8_t* high, size_t width, size_t block, size_t i, Z* v) {
    const Z x = read(low + (block * 16 + i) * width * 4);
    if constexpr (kind == kv_q8) {
        v[0] = x;
        return;
    }
    v[0] = both(x, 0x0f0f), v[1] = both(_mm512_srli_epi16(x, 4), 0x0f0f);
    if constexpr (kind == kv_q6) {
        Z h = read(high + (block / 2 * 16 + i) * width * 4);
        if (block % 2) h = _mm512_srli_epi16(h, 4);
        v[0] = _mm512_or_si512(v[0], both(_mm512_slli_epi16(h, 4), 0x3030));
        v[1] = _mm512_or_si512(v[1], both(_mm512_slli_epi16(h, 2), 0x3030));
    }
}

// Adds N vectors of values to R rows of `out`. `other` weighs lanes 8 to 15 where groups are that short.
template <int kind, int R, int N, bool two>
QT_INLINE void blend_vectors(const Weights* w, const Weights* other, const Growth* growth, const uint8_t* low, const uint8_t* high, size_t width, size_t begin, size_t end, float* out, size_t ld, Ahead& next) {
    constexpr size_t fields = 8 / kv_kinds[kind].planes[0], block = weighed * fields;
    Z a[2][R][N];  // of the two spans of a block, or of the two bytes of weights
    auto start = [&](size_t s) {
            QT_UNROLL
        for (int r = 0; r < R; r++)
            QT_UNROLL
            for (int n = 0; n < N; n++)
            QT_UNROLL
                for (int i = 0; i < 2; i++) {
                    a[i][r][n] = _mm512_set1_epi32(w[r].offset[s + i]);
                    if constexpr (two) a[i][r][n] = _mm512_mask_set1_epi32(a[i][r][n], 0xff00, other[r].offset[s + i]);
                }
    };
    auto finish = [&](size_t s) {
            QT_UNROLL
        for (int r = 0; r < R; r++)
            QT_UNROLL
            for (int n = 0; n < N; n++) {
                float* o = out + r * ld + n * 16;
                if constexpr (coarse<kind>) {
                    const V first = fma(_mm512_cvtepi32_ps(a[0][r][n]), all(growth[r].step[s]), load(o));
                    store(o, fma(_mm512_cvtepi32_ps(a[1][r][n]), all(growth[r].step[s + 1]), first));
                } else {
                    store(o, fma(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(a[0][r][n], 8), a[1][r][n])), all(growth[r].step[0]), load(o)));
                }
            }
    };
    if constexpr (!coarse<kind>) start(0);
    for (size_t b = begin / block; b < end / block; b++) {
        if constexpr (coarse<kind>) start(b * 2);
        for (size_t i = 0; i < 16; i++) {
            Z v[N][2];
            QT_UNROLL
            for (int n = 0; n < N; n++) value_codes<kind>(low + 64 * n, high + 64 * n, width, b, i, v[n]);
            QT_UNROLL
            for (size_t f = 0; f < fields; f++)
            QT_UNROLL
                for (int r = 0; r < R; r++)
            QT_UNROLL
                    for (int plane = 0; plane < (coarse<kind> ? 1 : 2); plane++) {
                        const size_t at = (b * fields + f) * 16 + i;
                        Z y = shared<N>(w[r].quads[plane] + at);
                        if constexpr (two) y = _mm512_mask_set1_epi32(y, 0xff00, other[r].quads[plane][at]);
            QT_UNROLL
                        for (int n = 0; n < N; n++) {
                            Z& sum = a[coarse<kind> ? f : plane][r][n];
                            sum = _mm512_dpbusd_epi32(sum, v[n][f], y);
                        }
                    }
            next.step();
        }
        if constexpr (coarse<kind>) finish(b * 2);
    }
    if constexpr (!coarse<kind>) finish(0);
}

template <int kind>
static void blend_codes(float* p, size_t d, const uint8_t* values, const Rows& rows, float softcap, float* state, size_t ld, float* room, Ahead& next) {
    constexpr KvKind k = kv_kinds[kind];
    constexpr size_t block = weighed * 8 / k.planes[0];
    const size_t n = kv_group(d), width = padded(d), begin = rows.any_begin / block * block, end = round_up(rows.any_end, block);
    const uint8_t *low = values, *high = low + value_plane(k.planes[0], d), *halves = high + (k.planes[1] ? value_plane(k.planes[1], d) : 0);
    const size_t groups = d / n;
    Weights *w = reinterpret_cast<Weights*>(room), *other = w + 8;
    Growth* growth = reinterpret_cast<Growth*>(other + 8);
    float *most = reinterpret_cast<float*>(growth + attend_rows), *scales = most + page_tokens;
    const bool finite = widen_scales(halves, groups, scales, most);
    cap_and_hide(p, rows, softcap);
    next.pace(soften_share, rows.n);
    by_rows(rows.n, [&]<int R>(size_t r) {
        (finite ? soften_codes<kind, true, R> : soften_codes<kind, false, R>)(p + r * page_tokens, most, state + r * ld, ld, d, growth + r);
        for (int i = 0; i < R; i++) next.step();
    });
    const size_t step = n == 32 ? 32 : 16;
    size_t blocks = 0;
    by_rows(rows.n, [&]<int R>(size_t) { blocks++; });
    next.pace(blend_share, blocks * ((d + step - 1) / step) * ((end - begin) / block * 16));
    for (size_t i = 0; i < d; i += step)
        by_rows(rows.n, [&]<int R>(size_t r) {
            for (int j = 0; j < R; j++) weigh<kind>(p + (r + j) * page_tokens, scales + i / n * page_tokens, growth[r + j], w[j]);
            float* out = state + r * ld + i;
            const uint8_t *from = low + 4 * i, *more = high + 4 * i;
            const Growth* unit = growth + r;
            if (n == 32) {
                if constexpr (R <= 4) return blend_vectors<kind, R, 2, false>(w, nullptr, unit, from, more, width, begin, end, out, ld, next);
                blend_vectors<kind, R, 1, false>(w, nullptr, unit, from, more, width, begin, end, out, ld, next);
                return blend_vectors<kind, R, 1, false>(w, nullptr, unit, from + 64, more + 64, width, begin, end, out + 16, ld, next);
            }
            if (n == 16) return blend_vectors<kind, R, 1, false>(w, nullptr, unit, from, more, width, begin, end, out, ld, next);
            const size_t second = i + 8 < d ? i / 8 + 1 : i / 8;
            for (int j = 0; j < R; j++) weigh<kind>(p + (r + j) * page_tokens, scales + second * page_tokens, growth[r + j], other[j]);
            blend_vectors<kind, R, 1, true>(w, other, unit, from, more, width, begin, end, out, ld, next);
        });
}
}  // namespace qt::QT_ISA
