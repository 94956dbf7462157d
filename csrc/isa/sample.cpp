// Passes over logits, for choosing a token: 150,000 of them at a time.
#include "isa/ops.h"
#include "isa/vec.h"

namespace qt::QT_ISA {
typedef int64_t L __attribute__((vector_size(4 * VL)));
constexpr int half = VL / 2;
constexpr float infinity = __builtin_inff();

QT_INLINE bool any(I mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    int32_t found = 0;
    for (int l = 0; l < VL; l++) found |= mask[l];
    return found != 0;
#endif
}

// Up to a vector of logits at p, filled up by what takes no part.
QT_INLINE const float* whole(const float* p, size_t left, float* room) {
    if (left >= size_t(VL)) return p;
    for (int l = 0; l < VL; l++) room[l] = size_t(l) < left ? p[l] : -infinity;
    return room;
}

QT_INLINE D fused(D a, D b, D c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_pd(a, b, c);
#else
    return a * b + c;
#endif
}

// e^x for x <= 0, within 1e-12 of it, and 0 below -700.
QT_INLINE D exp_of(D x) {
    const D zero{}, magic = zero + 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer in the low bits
    const L dead = x < zero - 700;
    x = dead ? zero : x;
    const D t = fused(x, zero + 1.4426950408889634, magic), n = t - magic;
    const D r = fused(n, zero - 1.9082149292705877e-10, fused(n, zero - 0.693147180369123816490, x));
    // Pairs of terms, then pairs of pairs: a chain of ten would wait for itself.
    const D one = zero + 1, r2 = r * r, r4 = r2 * r2;
    const D a = fused(fused(r, zero + 1. / 6, zero + .5), r2, one + r);
    const D b = fused(fused(r, zero + 1. / 5040, zero + 1. / 720), r2, fused(r, zero + 1. / 120, zero + 1. / 24));
    const D c = fused(r2, zero + 1. / 3628800, fused(r, zero + 1. / 362880, zero + 1. / 40320));
    const D p = fused(fused(c, r4, b), r4, a);
    const D power = (D)(((L)t - (L)magic + 1023) << 52);
    return dead ? zero : p * power;
}
QT_INLINE D exp_at(const float* p, double top, double factor) { return exp_of((__builtin_convertvector(get<Half>(p), D) - top) * factor); }

Extremes scan(const float* x, size_t n) {
    V most = all(-infinity), least = all(infinity);
    I broken{};
    float room[VL];
    for (size_t i = 0; i < n; i += VL) {
        const V v = load(whole(x + i, n - i, room));
        broken |= ~(v < all(infinity));
        most = v > most ? v : most;
        least = (v < least) & (v > all(-infinity)) ? v : least;
    }
    Extremes e{-infinity, infinity, 0, -1};
    for (int l = 0; l < VL; l++) {
        e.most = most[l] > e.most ? most[l] : e.most;
        e.least = least[l] < e.least ? least[l] : e.least;
    }
    if (any(broken))
        for (size_t i = n; i-- > 0;)
            if (!(x[i] < infinity)) e.broken = int64_t(i);
    for (size_t i = 0; i < n; i += VL)
        if (any(load(whole(x + i, n - i, room)) == all(e.most))) {
            for (e.best = int64_t(i); size_t(e.best) < n && x[e.best] != e.most;) e.best++;
            break;
        }
    return e;
}

// The bin of each value between low and high, the highest first; `sample_bins` for the others.
QT_INLINE I bins_of(V v, const Range& r) {
    const I inside = (v >= all(r.low)) & (v <= all(r.high));
    V at = (all(r.high * .5f) - v * all(.5f)) * all(r.scale);
    at = at < all(float(sample_bins - 1)) ? at : all(float(sample_bins - 1));
    return inside ? __builtin_convertvector(inside ? at : V{}, I) : I{} + int32_t(sample_bins);
}

template <bool masses>
static void count(const float* keys, const float* x, size_t n, const Range& r, double top, double* bins) {
    float room[VL];
    for (size_t i = 0; i < n; i += VL) {
        const I b = bins_of(load(whole(keys + i, n - i, room)), r);
        if (!any(b != I{} + int32_t(sample_bins))) continue;
        int32_t at[VL];
        double mass[VL] = {};
        put(at, b);
        if (masses) {
            const float* p = whole(x + i, n - i, room);
            put(mass, exp_at(p, top, 1));
            put(mass + half, exp_at(p + half, top, 1));
        }
        asm volatile("" : "+m"(at), "+m"(mass));  // lanes are loaded, which is cheaper than taking vectors apart
        for (int l = 0; l < VL; l++) bins[at[l]] += masses ? mass[l] : 1;
    }
}
void histogram(const float* keys, const float* x, size_t n, const Range& r, double top, bool masses, double* bins) {
    (masses ? count<true> : count<false>)(keys, x, n, r, top, bins);
}

size_t collect(const float* x, size_t n, const Range& r, int32_t bin, int32_t* ids) {
    float room[VL];
    size_t found = 0;
    for (size_t i = 0; i < n; i += VL) {
        const I here = bins_of(load(whole(x + i, n - i, room)), r) == I{} + bin;
        if (!any(here)) continue;
        for (int l = 0; l < VL; l++)
            if (here[l]) ids[found++] = int32_t(i) + l;
    }
    return found;
}

// The lanes above the cut, and as many of those equal to it as are left to take.
QT_INLINE I kept(V v, Cut& cut) {
    I in = v > all(cut.value);
    const I ties = v == all(cut.value);
    if (!any(ties)) return in;
    int32_t lanes[VL];
    put(lanes, in);
    for (int l = 0; l < VL; l++)
        if (ties[l] && cut.ties) lanes[l] = -1, cut.ties--;
    return get<I>(lanes);
}

size_t keep(const float* keys, const float* x, const int32_t* ids, size_t n, Cut cut, float* out_x, int32_t* out_ids) {
    float room[VL], room_x[VL];
    int32_t step[VL];
    for (int l = 0; l < VL; l++) step[l] = l;
    size_t found = 0;
    for (size_t i = 0; i < n; i += VL) {
        const V v = load(whole(keys + i, n - i, room));
        if (!any(v >= all(cut.value))) continue;
        const I in = kept(v, cut);
        const V values = load(whole(x + i, n - i, room_x));
        I at = get<I>(step) + int32_t(i);
        if (ids) __builtin_memcpy(&at, ids + i, sizeof(int32_t) * (n - i < size_t(VL) ? n - i : size_t(VL)));
#if defined(__AVX512F__)
        const __mmask16 m = _mm512_test_epi32_mask((__m512i)in, (__m512i)in);
        _mm512_storeu_ps(out_x + found, _mm512_maskz_compress_ps(m, values));
        _mm512_storeu_si512(out_ids + found, _mm512_maskz_compress_epi32(m, (__m512i)at));
        found += size_t(__builtin_popcount(m));
#else
        for (int l = 0; l < VL; l++) {
            out_x[found] = values[l];
            out_ids[found] = at[l];
            found += size_t(-in[l]);
        }
#endif
    }
    return found;
}

void distances(const float* x, size_t n, double centre, float* out) {
    float room[VL];
    for (size_t i = 0; i < n; i += VL) {
        const float* p = whole(x + i, n - i, room);
        float near[VL];
        for (int h = 0; h < 2; h++) {
            const D d = __builtin_convertvector(get<Half>(p + h * half), D) - centre;
            put(near + h * half, __builtin_convertvector((D)((L)d | INT64_MIN), Half));
        }
        __builtin_memcpy(out + i, near, sizeof(float) * (n - i < size_t(VL) ? n - i : size_t(VL)));
    }
}

Moments moments(const float* x, size_t n, double top) {
    float room[VL];
    D sum{}, squares{};
    L count{};
    const D none{};
    for (size_t i = 0; i < n; i += VL) {
        const float* p = whole(x + i, n - i, room);
        for (int h = 0; h < 2; h++) {
            D d = __builtin_convertvector(get<Half>(p + h * half), D) - top;
            const L in = d > none - __builtin_inf();
            d = in ? d : none;
            count -= in;
            sum += d;
            squares = fused(d, d, squares);
        }
    }
    Moments m{};
    for (int l = 0; l < half; l++) m.count += double(count[l]), m.sum += sum[l], m.squares += squares[l];
    return m;
}

template <bool surprise>
static Mass weigh_all(const float* x, size_t n, double top, double factor, double* weights) {
    float room[VL];
    D sum{}, energy{};
    const D none{};
    for (size_t i = 0; i < n; i += VL) {
        const float* p = whole(x + i, n - i, room);
        double w[VL];
        for (int h = 0; h < 2; h++) {
            const D y = (__builtin_convertvector(get<Half>(p + h * half), D) - top) * factor, e = exp_of(y);
            sum += e;
            if (surprise) energy = fused(e, y < none - 700 ? none : y, energy);
            if (weights) put(w + h * half, e);
        }
        if (weights) __builtin_memcpy(weights + i, w, sizeof(double) * (n - i < size_t(VL) ? n - i : size_t(VL)));
    }
    Mass m{};
    for (int l = 0; l < half; l++) m.sum += sum[l], m.energy += energy[l];
    return m;
}
Mass weigh(const float* x, size_t n, double top, double factor, bool energy, double* weights) {
    return (energy ? weigh_all<true> : weigh_all<false>)(x, n, top, factor, weights);
}
}  // namespace qt::QT_ISA
