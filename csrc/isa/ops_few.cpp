// Products of few tokens with the common types: each block goes from memory to registers to sums, once for all tokens.
// Values and order of summation are those of linear_decoded, to the bit.
#include "isa/decode.h"
#include "isa/ops.h"
#include "isa/vec.h"

namespace qt::QT_ISA {
#if defined(__AVX2__)

// VL bytes or words as integers.
QT_INLINE I bytes(const void* p) {
#if defined(__AVX512F__)
    return (I)_mm512_cvtepu8_epi32(get<__m128i>(p));
#else
    return (I)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(get<int64_t>(p)));
#endif
}
QT_INLINE I signed_bytes(const void* p) { return (bytes(p) << 24) >> 24; }
QT_INLINE V floats(I x) { return __builtin_convertvector(x, V); }

// Each type hands its values on, VL at a time: f(index of the first, values). `at_once(C)` rows meet C tokens: what is loaded of x
// serves all of them where a step is as short as one vector.
#if defined(__AVX512F__)
constexpr int registers = 32;
#else
constexpr int registers = 16;
#endif
constexpr int rows_of_floats(int C) { return registers > 16 ? (C == 1 ? 2 : 4) : (C < 3 ? 4 : 2); }
constexpr int rows_of_codes(int C) { return C == 1 ? 4 : C == 2 ? 2 : 1; }
struct FewF16 {
    static constexpr size_t size = VL, stored = 2 * VL;
    static constexpr int at_once(int C) { return rows_of_floats(C); }
    template <class F>
    static QT_INLINE void each(const uint8_t* p, F f) {
#if defined(__AVX512F__)
        f(0, (V)_mm512_cvtph_ps(get<__m256i>(p)));
#else
        f(0, (V)_mm256_cvtph_ps(get<__m128i>(p)));
#endif
    }
};
struct FewBF16 {
    static constexpr size_t size = VL, stored = 2 * VL;
    static constexpr int at_once(int C) { return rows_of_floats(C); }
    template <class F>
    static QT_INLINE void each(const uint8_t* p, F f) {
#if defined(__AVX512F__)
        f(0, (V)((I)_mm512_cvtepu16_epi32(get<__m256i>(p)) << 16));
#else
        f(0, (V)((I)_mm256_cvtepu16_epi32(get<__m128i>(p)) << 16));
#endif
    }
};
struct FewQ8_0 {
    static constexpr size_t size = 32, stored = sizeof(block::Q8_0);
    static constexpr int at_once(int C) { return rows_of_codes(C); }
    template <class F>
    static QT_INLINE void each(const uint8_t* p, F f) {
        auto* b = reinterpret_cast<const block::Q8_0*>(p);
        const V d = all(widen(b->d));
        for (int i = 0; i < 32; i += VL) f(i, d * floats(signed_bytes(b->qs + i)));
    }
};
struct FewQ4_0 {
    static constexpr size_t size = 32, stored = sizeof(block::Q4_0);
    static constexpr int at_once(int C) { return rows_of_codes(C); }
    template <class F>
    static QT_INLINE void each(const uint8_t* p, F f) {
        auto* b = reinterpret_cast<const block::Q4_0*>(p);
        const V d = all(widen(b->d));
        I q[16 / VL];
        for (int i = 0; i < 16; i += VL) q[i / VL] = bytes(b->qs + i);
        for (int i = 0; i < 16; i += VL) f(i, d * floats((q[i / VL] & 15) - 8));
        for (int i = 0; i < 16; i += VL) f(i + 16, d * floats((q[i / VL] >> 4) - 8));
    }
};

// The scales and minima of 8 groups, see decode_k.cpp, times d and dmin.
QT_INLINE void scales_and_minima(const uint8_t* from, float d, float dmin, float* dl, float* ml) {
    const uint32_t a = get<uint32_t>(from), b = get<uint32_t>(from + 4), c = get<uint32_t>(from + 8);
    const uint32_t low = 0x3f3f3f3f, nibble = 0x0f0f0f0f, pair = 0x30303030;
    const uint64_t s = (a & low) | uint64_t((c & nibble) | (a >> 2 & pair)) << 32;
    const uint64_t m = (b & low) | uint64_t((c >> 4 & nibble) | (b >> 2 & pair)) << 32;
    typedef float F8 __attribute__((vector_size(32)));
    put(dl, F8(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(s)))) * _mm256_set1_ps(d)));
    put(ml, F8(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(m)))) * _mm256_set1_ps(dmin)));
}

struct FewQ4_K {
    static constexpr size_t size = 256, stored = sizeof(block::Q4_K);
    static constexpr int at_once(int C) { return rows_of_codes(C); }
    template <class F>
    static QT_INLINE void each(const uint8_t* p, F f) {
        auto* b = reinterpret_cast<const block::Q4_K*>(p);
        float dl[8], ml[8];
        scales_and_minima(b->scales, widen(b->d), widen(b->dmin), dl, ml);
        for (int j = 0; j < 4; j++) {
            I q[32 / VL];
            for (int i = 0; i < 32; i += VL) q[i / VL] = bytes(b->qs + 32 * j + i);
            for (int i = 0; i < 32; i += VL) f(64 * j + i, all(dl[2 * j]) * floats(q[i / VL] & 15) - all(ml[2 * j]));
            for (int i = 0; i < 32; i += VL) f(64 * j + 32 + i, all(dl[2 * j + 1]) * floats(q[i / VL] >> 4) - all(ml[2 * j + 1]));
        }
    }
};
struct FewQ5_K {
    static constexpr size_t size = 256, stored = sizeof(block::Q5_K);
    static constexpr int at_once(int C) { return rows_of_codes(C); }
    template <class F>
    static QT_INLINE void each(const uint8_t* p, F f) {
        auto* b = reinterpret_cast<const block::Q5_K*>(p);
        float dl[8], ml[8];
        scales_and_minima(b->scales, widen(b->d), widen(b->dmin), dl, ml);
        I h[32 / VL];
        for (int i = 0; i < 32; i += VL) h[i / VL] = bytes(b->qh + i) << 4;  // bit 4 is the next group's
        for (int j = 0; j < 4; j++) {
            I q[32 / VL];
            for (int i = 0; i < 32; i += VL) q[i / VL] = bytes(b->qs + 32 * j + i);
            for (int i = 0; i < 32; i += VL) f(64 * j + i, all(dl[2 * j]) * floats((q[i / VL] & 15) | (h[i / VL] >> 2 * j & 16)) - all(ml[2 * j]));
            for (int i = 0; i < 32; i += VL) f(64 * j + 32 + i, all(dl[2 * j + 1]) * floats((q[i / VL] >> 4) | (h[i / VL] >> (2 * j + 1) & 16)) - all(ml[2 * j + 1]));
        }
    }
};
struct FewQ6_K {
    static constexpr size_t size = 256, stored = sizeof(block::Q6_K);
    static constexpr int at_once(int C) { return rows_of_codes(C); }
    template <class F>
    static QT_INLINE void each(const uint8_t* p, F f) {
        auto* b = reinterpret_cast<const block::Q6_K*>(p);
        float dl[16];
        for (int g = 0; g < 16; g += VL) put(dl + g, floats(signed_bytes(b->scales + g)) * all(widen(b->d)));
        for (int n = 0; n < 2; n++)
            for (int part = 0; part < 4; part++)
                for (int i = 0; i < 32; i += VL) {
                    I low = bytes(b->ql + 64 * n + 32 * (part & 1) + i), high = bytes(b->qh + 32 * n + i);
                    I q = (part < 2 ? low & 15 : low >> 4) | (high >> 2 * part & 3) << 4;
                    f(128 * n + 32 * part + i, all(dl[8 * n + 2 * part + i / 16]) * floats(q - 32));
                }
    }
};

// R rows times C tokens: enough sums at a time that none waits for another.
template <class Type, int R, int C>
static __attribute__((noinline)) void rows_times(const LinearJob& j, size_t r, size_t t, const uint8_t*& prefetched, const uint8_t* end) {
    const uint8_t *const start = j.w + r * j.row_bytes, *w = start;
    const size_t distance = R * j.row_bytes > 16384 ? R * j.row_bytes : 16384;  // one sequential stream into L2, every line once
    const float* x = j.x + t * j.ldx;
    float* y = j.y + t * j.out + r;
    for (size_t k0 = 0; k0 < j.in; k0 += linear_depth) {
        const size_t k1 = j.in - k0 < linear_depth ? j.in : k0 + linear_depth;
        V acc[R][C] = {};
        size_t k = k0;
        for (; k + Type::size <= k1; k += Type::size, w += Type::stored) {
            const uint8_t* until = start + R * (w - start) + distance;
            for (until = until < end ? until : end; prefetched < until; prefetched += 64) __builtin_prefetch(prefetched, 0, 1);
            for (int i = 0; i < R; i++)
                Type::each(w + i * j.row_bytes, [&](int at, V v) __attribute__((always_inline)) {
                    for (int c = 0; c < C; c++) acc[i][c] = fma(v, load(x + c * j.ldx + k + at), acc[i][c]);
                });
        }
        for (int i = 0; i < R; i++) {
            if (k < k1) {  // only plain floats end within a vector
                uint8_t last[Type::stored] = {};
                __builtin_memcpy(last, w + i * j.row_bytes, (k1 - k) * (Type::stored / Type::size));
                Type::each(last, [&](int at, V v) __attribute__((always_inline)) {
                    for (int c = 0; c < C; c++) acc[i][c] = fma(v, load(x + c * j.ldx + k + at), acc[i][c]);
                });
            }
            for (int c = 0; c < C; c++) {
                const float s = sum(acc[i][c]);
                y[c * j.out + i] = k0 ? y[c * j.out + i] + s : s;
            }
        }
    }
    if (j.bias)
        for (int c = 0; c < C; c++)
            for (int i = 0; i < R; i++) y[c * j.out + i] += j.bias[r + i];
}

template <class Type, int R, int C>
QT_INLINE void strips_times(const LinearJob& j, size_t r, size_t t, const uint8_t*& prefetched, const uint8_t* end) {
    constexpr int n = R < Type::at_once(C) ? R : Type::at_once(C);
    for (int i = 0; i < R; i += n) rows_times<Type, n, C>(j, r + i, t, prefetched, end);
}
template <class Type, int R>
QT_INLINE void tokens_times(const LinearJob& j, size_t r, size_t t0, size_t t1, const uint8_t*& prefetched, const uint8_t* end) {
    for (size_t t = t0; t < t1; t += 4) switch (t1 - t) {
            case 1: strips_times<Type, R, 1>(j, r, t, prefetched, end); break;
            case 2: strips_times<Type, R, 2>(j, r, t, prefetched, end); break;
            case 3: strips_times<Type, R, 3>(j, r, t, prefetched, end); break;
            default: strips_times<Type, R, 4>(j, r, t, prefetched, end);
        }
}

template <class Type>
static void few(const LinearJob& j, size_t r0, size_t r1, size_t t0, size_t t1, float*) {
    const uint8_t *prefetched = j.w + r0 * j.row_bytes, *end = j.w + r1 * j.row_bytes;
    size_t r = r0;
    for (; r + 4 <= r1; r += 4) tokens_times<Type, 4>(j, r, t0, t1, prefetched, end);
    for (; r < r1; r++) tokens_times<Type, 1>(j, r, t0, t1, prefetched, end);
}

#define QT_FEW(name) \
    void linear_few_##name(const LinearJob& j, size_t r0, size_t r1, size_t t0, size_t t1, float* tile) { few<Few##name>(j, r0, r1, t0, t1, tile); }
#else
#define QT_FEW(name) \
    void linear_few_##name(const LinearJob& j, size_t r0, size_t r1, size_t t0, size_t t1, float* tile) { linear_decoded(j, r0, r1, t0, t1, tile); }
#endif
QT_FEW_TYPES(QT_FEW)
}  // namespace qt::QT_ISA
