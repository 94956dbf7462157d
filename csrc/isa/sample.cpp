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

// Copies a vector's lanes, or what is left of them: a copy of unknown length is a slow instruction.
template <class T>
QT_INLINE void put_up_to(T* out, size_t left, const T (&lanes)[VL]) {
    if (left >= size_t(VL)) __builtin_memcpy(out, lanes, sizeof lanes);
    else for (size_t l = 0; l < left; l++) out[l] = lanes[l];
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

// Half a vector of floats as doubles.
QT_INLINE D widened(const float* p) {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));  // the compiler's own conversion shuffles halves
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    return __builtin_convertvector(get<Half>(p), D);
#endif
}

// e^x for x <= 0, within 1e-12 of it, and 0 below -700.
#if defined(__AVX512F__)
// 2^(i/16) from a table in two registers, 2^n by an instruction.
const double sixteenths[16] = {1.0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0, 0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,
                               0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0, 0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0};
QT_INLINE D exp_of(D x) {
    const D zero{}, magic = zero + 6755399441055744.0 / 16;  // adding it rounds to sixteenths
    const __mmask8 alive = _mm512_cmp_pd_mask(x, zero - 700, _CMP_GE_OQ);
    const D t = fused(x, zero + 1.4426950408889634, magic), n = t - magic, r = fused(n, zero - 0.6931471805599453094, x), r2 = r * r;
    const D a = fused(r, zero + 1. / 6, zero + .5), b = fused(r, zero + 1. / 120, zero + 1. / 24);
    const D p = fused(fused(b, r2, a), r2, zero + 1 + r);
    const D part = _mm512_permutex2var_pd(get<D>(sixteenths), (__m512i)t, get<D>(sixteenths + half));
    return _mm512_maskz_scalef_pd(alive, p * part, n);
}
#else
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
#endif
QT_INLINE D exp_at(const float* p, double top, double factor) { return exp_of((widened(p) - top) * factor); }

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

// Where e^y is 0, a y that it can be multiplied by.
QT_INLINE D bounded(D y) {
#if defined(__AVX512F__)
    return _mm512_max_pd(y, D{} - 701);
#else
    return y < D{} - 700 ? D{} : y;
#endif
}

// The bin of each value between low and high, the highest first; `sample_bins` for the others.
QT_INLINE I bins_of(V v, const Range& r) {
    const I inside = (v >= all(r.low)) & (v <= all(r.high));
    V at = (all(r.high * .5f) - v * all(.5f)) * all(r.scale);
    at = at < all(float(sample_bins - 1)) ? at : all(float(sample_bins - 1));
    return inside ? __builtin_convertvector(inside ? at : V{}, I) : I{} + int32_t(sample_bins);
}

void histogram(const float* keys, const float* x, size_t n, const Range& r, double top, double* bins) {
    float room[VL];
    for (size_t i = 0; i < n; i += VL) {
        const I b = bins_of(load(whole(keys + i, n - i, room)), r);
        if (!any(b != I{} + int32_t(sample_bins))) continue;
        int32_t at[VL];
        double mass[VL];
        put(at, b);
        const float* p = whole(x + i, n - i, room);
        put(mass, exp_at(p, top, 1));
        put(mass + half, exp_at(p + half, top, 1));
        asm volatile("" : "+m"(at), "+m"(mass));  // lanes are loaded, which is cheaper than taking vectors apart
        for (int l = 0; l < VL; l++) bins[at[l]] += mass[l];
    }
}

void tally(const float* keys, size_t n, size_t every, const Range& r, uint32_t* bins) {
    constexpr size_t stretch = 512;  // bins are read back when their stores are long done
    float room[VL];
    int32_t apart[VL];  // what is out of range goes to a place for each lane: an addition would wait for the one before it
    for (int l = 0; l < VL; l++) apart[l] = int32_t(sample_bins) + l;
    uint32_t counts[2][sample_bins + VL] = {};
    uint16_t at[stretch];
    for (size_t first = 0; first < n;) {
        size_t found = 0;
        for (; found < stretch && first < n; found += VL, first += VL * every) {
            const I b = bins_of(load(whole(keys + first, n - first, room)), r);
            put(at + found, __builtin_convertvector(b < int32_t(sample_bins) ? b : get<I>(apart), W));
        }
        asm volatile("" : "+m"(at));
        for (size_t i = 0; i < found; i += 2) counts[0][at[i]]++, counts[1][at[i + 1]]++;
    }
    for (size_t b = 0; b < sample_bins + VL; b++) bins[b < sample_bins ? b : sample_bins] += counts[0][b] + counts[1][b];
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

// Which lanes: a mask register where there is one.
#if defined(__AVX512F__)
typedef __mmask16 Lanes;
QT_INLINE Lanes more(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
QT_INLINE Lanes equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
QT_INLINE bool any(Lanes m) { return m != 0; }
QT_INLINE bool has(Lanes m, int lane) { return m >> lane & 1; }
QT_INLINE void add(Lanes& m, int lane) { m = Lanes(m | 1 << lane); }
// The lanes moved together, and how many they are; writes a whole vector.
QT_INLINE size_t gather(Lanes m, V v, float* out) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(m, v));
    return size_t(__builtin_popcount(m));
}
QT_INLINE D plus_where(D sum, Lanes m, int h, D e) { return _mm512_mask_add_pd(sum, __mmask8(m >> h * half), sum, e); }
#else
typedef I Lanes;
QT_INLINE Lanes more(V a, V b) { return a > b; }
QT_INLINE Lanes equal(V a, V b) { return a == b; }
QT_INLINE bool has(Lanes m, int lane) { return m[lane] != 0; }
QT_INLINE void add(Lanes& m, int lane) { m[lane] = -1; }
QT_INLINE size_t gather(Lanes m, V v, float* out) {
    size_t found = 0;
    for (int l = 0; l < VL; l++) {
        out[found] = v[l];
        found += size_t(-m[l]);
    }
    return found;
}
QT_INLINE D plus_where(D sum, Lanes m, int h, D e) {
    L in;
    for (int l = 0; l < half; l++) in[l] = m[h * half + l];
    return sum + (D)((L)e & in);
}
#endif

size_t keep(const float* keys, const float* x, const int32_t* ids, size_t n, Cut cut, float* out_x, int32_t* out_ids) {
    float room[VL], room_x[VL];
    int32_t step[VL];
    for (int l = 0; l < VL; l++) step[l] = l;
    const V value = all(cut.value), most = all(cut.most);
    size_t found = 0;
    for (size_t i = 0; i < n; i += VL) {
        const V v = load(whole(keys + i, n - i, room));
        Lanes in = more(v, value) & Lanes(~more(v, most));
        const Lanes ties = equal(v, value);
        if (any(ties))
            for (int l = 0; l < VL; l++)
                if (has(ties, l) && cut.ties) add(in, l), cut.ties--;
        if (!any(in)) continue;
        const V values = load(whole(x + i, n - i, room_x));
        I at = get<I>(step) + int32_t(i);
        if (ids) at = n - i < size_t(VL) ? (I)load_part((const float*)ids + i, n - i) : get<I>(ids + i);
        gather(in, values, out_x + found);
        found += gather(in, (V)at, (float*)out_ids + found);
    }
    return found;
}

void distances(const float* x, size_t n, double centre, float* out) {
    float room[VL];
    for (size_t i = 0; i < n; i += VL) {
        const float* p = whole(x + i, n - i, room);
        float near[VL];
        for (int h = 0; h < 2; h++) {
            const D d = widened(p + h * half) - centre;
            put(near + h * half, __builtin_convertvector((D)((L)d | INT64_MIN), Half));
        }
        put_up_to(out + i, n - i, near);
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
            D d = widened(p + h * half) - top;
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
            const D y = (widened(p + h * half) - top) * factor, e = exp_of(y);
            sum += e;
            if (surprise) energy = fused(e, bounded(y), energy);
            if (weights) put(w + h * half, e);
        }
        if (weights) put_up_to(weights + i, n - i, w);
    }
    Mass m{};
    for (int l = 0; l < half; l++) m.sum += sum[l], m.energy += energy[l];
    return m;
}
Mass weigh(const float* x, size_t n, double top, double factor, bool energy, double* weights) {
    return (energy ? weigh_all<true> : weigh_all<false>)(x, n, top, factor, weights);
}

template <bool surprise>
static Parts divide_all(const float* x, size_t n, double top, const Ends& ends, float* out) {
    float room[VL];
    D sum{}, inner{}, energy{};
    const D none{};
    Parts parts{};
    for (size_t i = 0; i < n; i += VL) {
        const float* p = whole(x + i, n - i, room);
        const V v = load(p);
        const Lanes in = more(v, all(ends.inner_low)) & more(all(ends.inner_high), v);
        const Lanes far = more(all(ends.outer_low), v) | more(v, all(ends.outer_high)), near = Lanes(~(in | far));
        if (any(near)) parts.found += gather(near, v, out + parts.found);
        for (int h = 0; h < 2; h++) {
            const D y = widened(p + h * half) - top, e = exp_of(y);
            sum += e;
            inner = plus_where(inner, in, h, e);
            if (surprise) energy = fused(e, bounded(y), energy);
        }
    }
    for (int l = 0; l < half; l++) parts.all.sum += sum[l], parts.all.energy += energy[l], parts.inner += inner[l];
    return parts;
}
Parts divide(const float* x, size_t n, double top, bool energy, const Ends& ends, float* out) {
    return (energy ? divide_all<true> : divide_all<false>)(x, n, top, ends, out);
}
}  // namespace qt::QT_ISA
