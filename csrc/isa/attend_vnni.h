// Passes over keys and values in codes by integer dot products. Keys: 16 scores grow in a register, four dimensions an
// instruction. Values: probabilities times scales are rounded to 15 bits of the page's largest, and two tokens go at a time.
#pragma once
#include "isa/attend.h"

namespace qt::QT_ISA {
using Z = __m512i;

QT_INLINE Z read(const void* p) { return _mm512_loadu_si512(p); }
QT_INLINE Z words_of(const uint8_t* p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
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
            for (int t = 0; t < T; t++) {
                Z codes[2];
                key_codes<kind>(low + (tile + t) * vectors * 64, high + (tile + t) * more * 64, c, codes);
                for (int i = 0; i < 2; i++)
                    for (int r = 0; r < R; r++) {
                        const size_t at = (row + r) * q.ld + 8 * c + 4 * i;
                        a[0][r][t] = _mm512_dpbusd_epi32(a[0][r][t], codes[i], _mm512_set1_epi32(get<int32_t>(q.low + at)));
                        if constexpr (P == 2) a[1][r][t] = _mm512_dpbusd_epi32(a[1][r][t], codes[i], _mm512_set1_epi32(get<int32_t>(q.high + at)));
                    }
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
    next.pace(steps);
    // Four tiles, so that all rows find them in L1; tiles beyond the last token are read, their scores are not.
    for (size_t b = rows.any_begin / 64 * 4; b * tile_tokens < rows.any_end; b += 4)
        by_rows(q.n, [&]<int R>(size_t r) {
            constexpr int T = tiles_of(R);
            for (size_t t = b; t < b + 4; t += T) score_tiles<kind, R, T>(q, r, d, keys, t, scores, next);
        });
}

// How a row's probabilities weigh a group's values: whole numbers, tokens i and i + 16 of every 32 in one word.
struct Weights {
    int32_t pairs[page_tokens / 2];
    int32_t sum;
};

// Scales of a page's values [groups][page_tokens] as floats, and of every token the largest magnitude. What is not finite
// becomes 0 there and stays here, so that rows that see it know and others need not.
QT_INLINE void widen_scales(const uint8_t* halves, size_t groups, float* scales, float* most) {
    for (size_t t = 0; t < page_tokens; t += 16) {
        Z top = _mm512_setzero_si512();
        for (size_t g = 0; g < groups; g++) {
            const V s = load_halves(halves + (g * page_tokens + t) * 2), size = magnitude(s);
            top = _mm512_max_epu32(top, (Z)size);
            store(scales + g * page_tokens + t, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(size, all(INFINITY), _CMP_LT_OQ), s));
        }
        store(most + t, (V)top);
    }
}

// A row's probabilities, scaled so that with no scale of the page they exceed 15 bits. Returns what 1 then stands for.
QT_INLINE float stretch(float* p, const float* most) {
    V x[page_tokens / 16];
    Z top = _mm512_setzero_si512();
    for (size_t i = 0; i < page_tokens / 16; i++) {
        x[i] = load(p + 16 * i);  // 0 where nothing is seen, and scales may be anything
        top = _mm512_max_epu32(top, (Z)magnitude(_mm512_maskz_mul_ps(_mm512_cmp_ps_mask(x[i], V{}, _CMP_NEQ_UQ), x[i], load(most + 16 * i))));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(top);
    float largest;
    __builtin_memcpy(&largest, &bits, 4);
    largest = largest > 1e-30f ? largest : 1e-30f;
    const V scale = all(32767 / largest);
    for (size_t i = 0; i < page_tokens / 16; i++) store(p + 16 * i, x[i] * scale);
    return bits >= 0x7f800000 ? __builtin_nanf("") : largest / 32767;
}

QT_INLINE void weigh(const float* p, const float* scales, Weights& w) {
    Z sum = _mm512_setzero_si512();
    for (size_t t = 0; t < page_tokens; t += 32) {
        const Z a = _mm512_cvtps_epi32(load(p + t) * load(scales + t)), b = _mm512_cvtps_epi32(load(p + t + 16) * load(scales + t + 16));
        put(w.pairs + t / 2, _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)));
        sum = _mm512_add_epi32(sum, _mm512_add_epi32(a, b));
    }
    w.sum = _mm512_reduce_add_epi32(sum);
}

// Codes of 16 dimensions of two, or four, times two tokens: word `i` of a block of 32 or 64.
template <int kind>
QT_INLINE void value_codes(const uint8_t* low, const uint8_t* high, size_t width, size_t block, size_t i, Z* v) {
    const Z x = words_of(low + (block * 16 + i) * width * 2);
    if constexpr (kind == kv_q8) {
        v[0] = x;
        return;
    }
    v[0] = both(x, 15), v[1] = _mm512_srli_epi16(x, 4);
    if constexpr (kind == kv_q6) {
        Z h = words_of(high + (block / 2 * 16 + i) * width * 2);
        if (block % 2) h = _mm512_srli_epi16(h, 4);
        v[0] = _mm512_or_si512(v[0], both(_mm512_slli_epi16(h, 4), 0x30));
        v[1] = _mm512_or_si512(v[1], both(_mm512_slli_epi16(h, 2), 0x30));
    }
}

// Adds N vectors of values to R rows of `out`. `other` weighs lanes 8 to 15 where groups are that short.
template <int kind, int R, int N>
QT_INLINE void blend_vectors(const Weights* w, const Weights* other, const float* steps, const uint8_t* low, const uint8_t* high, size_t width, size_t begin, size_t end, float* out, size_t ld, Ahead& next) {
    constexpr KvKind k = kv_kinds[kind];
    constexpr int fields = 8 / k.planes[0], chains = R * N < 6 ? 2 : 1;
    Z a[chains][R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) {
            a[0][r][n] = _mm512_set1_epi32(-k.half() * w[r].sum);
            if (other) a[0][r][n] = _mm512_mask_set1_epi32(a[0][r][n], 0xff00, -k.half() * other[r].sum);
            if constexpr (chains == 2) a[1][r][n] = _mm512_setzero_si512();
        }
    for (size_t b = begin / (32 * fields); b < end / (32 * fields); b++)
        for (size_t i = 0; i < 16; i += 2) {
#pragma GCC unroll 2
            for (size_t j = 0; j < 2; j++) {
                Z v[N][2];
                for (int n = 0; n < N; n++) value_codes<kind>(low + 32 * n, high + 32 * n, width, b, i + j, v[n]);
                for (int f = 0; f < fields; f++)
                    for (int r = 0; r < R; r++) {
                        const size_t at = (b * fields + f) * 16 + i + j;
                        Z y = _mm512_set1_epi32(w[r].pairs[at]);
                        if (other) y = _mm512_mask_set1_epi32(y, 0xff00, other[r].pairs[at]);
                        for (int n = 0; n < N; n++) a[chains == 2 ? j : 0][r][n] = _mm512_dpwssd_epi32(a[chains == 2 ? j : 0][r][n], v[n][f], y);
                    }
            }
            next.step();
        }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) {
            if constexpr (chains == 2) a[0][r][n] = _mm512_add_epi32(a[0][r][n], a[1][r][n]);
            float* o = out + r * ld + n * 16;
            store(o, fma(_mm512_cvtepi32_ps(a[0][r][n]), all(steps[r]), load(o)));
        }
}

template <int kind>
static void blend_codes(float* p, size_t d, const uint8_t* values, const Rows& rows, float* state, size_t ld, float* room, Ahead& next) {
    constexpr KvKind k = kv_kinds[kind];
    constexpr size_t block = 32 * 8 / k.planes[0];
    const size_t n = kv_group(d), width = padded(d), begin = rows.any_begin / block * block, end = round_up(rows.any_end, block);
    const uint8_t *low = values, *high = low + value_plane(k.planes[0], d), *halves = high + (k.planes[1] ? value_plane(k.planes[1], d) : 0);
    const size_t groups = d / n;
    Weights *w = reinterpret_cast<Weights*>(room), *other = w + 8;
    float *steps = reinterpret_cast<float*>(other + 8), *most = steps + attend_rows, *scales = most + page_tokens;
    widen_scales(halves, groups, scales, most);
    for (size_t r = 0; r < rows.n; r++) steps[r] = stretch(p + r * page_tokens, most);
    const size_t step = n == 32 ? 32 : 16;
    size_t blocks = 0;
    by_rows(rows.n, [&]<int R>(size_t) { blocks++; });
    next.pace(blocks * ((d + step - 1) / step) * ((end - begin) / block * 8));
    for (size_t i = 0; i < d; i += step)
        by_rows(rows.n, [&]<int R>(size_t r) {
            for (int j = 0; j < R; j++) weigh(p + (r + j) * page_tokens, scales + i / n * page_tokens, w[j]);
            float* out = state + r * ld + i;
            const uint8_t *from = low + 2 * i, *more = high + 2 * i;
            if (n == 32) return blend_vectors<kind, R, 2>(w, nullptr, steps + r, from, more, width, begin, end, out, ld, next);
            if (n == 16) return blend_vectors<kind, R, 1>(w, nullptr, steps + r, from, more, width, begin, end, out, ld, next);
            const size_t second = i + 8 < d ? i / 8 + 1 : i / 8;
            for (int j = 0; j < R; j++) weigh(p + (r + j) * page_tokens, scales + second * page_tokens, other[j]);
            blend_vectors<kind, R, 1>(w, other, steps + r, from, more, width, begin, end, out, ld, next);
        });
}
}  // namespace qt::QT_ISA
