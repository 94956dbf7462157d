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
struct Weighing {
    int32_t pairs[page_tokens / 2];
    int32_t sum;
    float step;
};

// Vectors of 16 probabilities times scales, from token `begin` on: rounded relative to the largest of them.
template <int vectors>
QT_INLINE void weigh(const float* p, const float* scales, bool finite, size_t begin, Weighing& w) {
    V x[vectors];
    Z top = _mm512_setzero_si512(), sum = top;
    for (int i = 0; i < vectors; i++) {
        const V seen = load(p + begin + 16 * i), scale = load(scales + begin + 16 * i);
        // A scale that is not seen may be NaN.
        x[i] = finite ? seen * scale : (V)_mm512_maskz_mul_ps(_mm512_cmp_ps_mask(seen, V{}, _CMP_NEQ_UQ), seen, scale);
        top = _mm512_max_epu32(top, (Z)magnitude(x[i]));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(top);
    float largest;
    __builtin_memcpy(&largest, &bits, 4);
    largest = largest > 1e-30f ? largest : 1e-30f;
    const V scale = all(32767 / largest);
    for (int i = 0; i < vectors; i += 2) {
        const Z a = _mm512_cvtps_epi32(x[i] * scale), b = _mm512_cvtps_epi32(x[i + 1] * scale);
        put(w.pairs + begin / 2 + 8 * i, _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)));
        sum = _mm512_add_epi32(sum, _mm512_add_epi32(a, b));
    }
    w.sum = _mm512_reduce_add_epi32(sum);
    w.step = bits >= 0x7f800000 ? __builtin_nanf("") : largest / 32767;
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
QT_INLINE void blend_vectors(const Weighing* w, const Weighing* other, const uint8_t* low, const uint8_t* high, size_t width, size_t begin, size_t end, float* out, size_t ld, Ahead& next) {
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
            V step = all(w[r].step);
            if (other) step = _mm512_mask_mov_ps(step, 0xff00, all(other[r].step));
            if constexpr (chains == 2) a[0][r][n] = _mm512_add_epi32(a[0][r][n], a[1][r][n]);
            float* o = out + r * ld + n * 16;
            store(o, fma(_mm512_cvtepi32_ps(a[0][r][n]), step, load(o)));
        }
}

template <int kind>
static void blend_codes(const float* p, size_t d, const uint8_t* values, const Rows& rows, float* state, size_t ld, float* room, Ahead& next) {
    constexpr KvKind k = kv_kinds[kind];
    constexpr size_t block = 32 * 8 / k.planes[0];
    const size_t n = kv_group(d), width = padded(d), begin = rows.any_begin / block * block, end = round_up(rows.any_end, block);
    const uint8_t *low = values, *high = low + value_plane(k.planes[0], d), *halves = high + (k.planes[1] ? value_plane(k.planes[1], d) : 0);
    float* scales = room;
    Weighing *w = reinterpret_cast<Weighing*>(room + page_tokens), *other = w + 8;
    // Weights of a group for R rows. Always of the whole page: where nothing is seen they are 0.
    auto weigh_rows = [&]<int R>(size_t g, size_t row, Weighing* to) {
        V bad{};
        for (size_t t = 0; t < page_tokens; t += 16) {
            const V s = load_halves(halves + (g * page_tokens + t) * 2);
            store(scales + t, s);
            bad += s * all(0.f);
        }
        const bool finite = sum(bad) == 0;
        for (int r = 0; r < R; r++) weigh<16>(p + (row + r) * page_tokens, scales, finite, 0, to[r]);
    };
    const size_t step = n == 32 ? 32 : 16;
    size_t blocks = 0;
    by_rows(rows.n, [&]<int R>(size_t) { blocks++; });
    next.pace(blocks * ((d + step - 1) / step) * ((end - begin) / block * 8));
    for (size_t i = 0; i < d; i += step)
        by_rows(rows.n, [&]<int R>(size_t r) {
            weigh_rows.template operator()<R>(i / n, r, w);
            float* out = state + r * ld + i;
            if (n == 32) return blend_vectors<kind, R, 2>(w, nullptr, low + 2 * i, high + 2 * i, width, begin, end, out, ld, next);
            if (n == 16) return blend_vectors<kind, R, 1>(w, nullptr, low + 2 * i, high + 2 * i, width, begin, end, out, ld, next);
            weigh_rows.template operator()<R>(i + 8 < d ? i / 8 + 1 : i / 8, r, other);
            blend_vectors<kind, R, 1>(w, other, low + 2 * i, high + 2 * i, width, begin, end, out, ld, next);
        });
}
}  // namespace qt::QT_ISA
