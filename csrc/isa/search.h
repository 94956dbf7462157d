// Scales of blocks whose codes lie on evenly spaced grids: the search of quants/search.py, operation by operation, so that both
// have the same bits. Lanes are blocks; x and w are [values of a block][lanes].
#pragma once
#include "codebooks.h"
#include "isa/encode.h"
#include "isa/lanes.h"

namespace qt::QT_ISA {
// The rows of GRIDS in quants/search.py. A grid without scales has one group a block.
struct Plain {
    static constexpr bool scaled = false, book = false;
    static constexpr float bottom = 0, top = 0, spread_first = 0, spread_step = 0;
    static constexpr int spreads = 0, near[] = {0}, polish = 1, rounds = 2;
};
struct Scaled {
    static constexpr bool scaled = true, book = false;
    static constexpr float spread_first = -4, spread_step = 1;
    static constexpr int spreads = 9, near[] = {0, -1, 1}, polish = 1, rounds = 2;
};
template <class Block>
struct GridOf;
#define QT_GRID(name, base, group_, low_, high_, affine_, first_, step_, tries_)                      \
    template <>                                                                                       \
    struct GridOf<block::name> : base {                                                               \
        static constexpr int size = block::name::size, group = group_, groups = size / group;         \
        static constexpr bool affine = affine_;                                                       \
        static constexpr float low = low_, high = high_, first = first_, step = step_;                \
        static constexpr int tries = tries_;
QT_GRID(Q4_0, Plain, 32, -8, 7, false, -1.5f, 0.3f, 11) };
QT_GRID(Q4_1, Plain, 32, 0, 15, true, -1.5f, 0.1f, 36) };
QT_GRID(Q5_0, Plain, 32, -16, 15, false, -3, 0.5f, 9) };
QT_GRID(Q5_1, Plain, 32, 0, 31, true, -4, 0.5f, 11) };
QT_GRID(Q2_0, Plain, 64, -1, 2, false, 0, 0.4f, 8) static constexpr int polish = 3; };
QT_GRID(TQ1_0, Plain, 256, -1, 1, false, 0, 0.8f, 10) static constexpr int polish = 4; };
QT_GRID(TQ2_0, Plain, 256, -1, 1, false, 0, 0.8f, 10) static constexpr int polish = 4; };
QT_GRID(Q2_K, Scaled, 16, 0, 3, true, -0.5f, 0.1f, 16)
    static constexpr float bottom = 0, top = 15, spread_step = 0.5f;
    static constexpr int spreads = 23, near[] = {0, -3, -2, -1, 1, 2, 3};
};
QT_GRID(Q3_K, Scaled, 16, -4, 3, false, -2, 0.5f, 8)
    static constexpr float bottom = -32, top = 31;
    static constexpr int rounds = 1;
};
QT_GRID(Q4_K, Scaled, 32, 0, 15, true, -1, 0.15f, 14) static constexpr float bottom = 0, top = 63; };
QT_GRID(Q5_K, Scaled, 32, 0, 31, true, -3, 0.35f, 14) static constexpr float bottom = 0, top = 63; };
QT_GRID(Q6_K, Scaled, 16, -32, 31, false, -4, 0.5f, 11) static constexpr float bottom = -128, top = 127; };
QT_GRID(IQ4_NL, Plain, 32, -127, 113, false, -20, 6, 9) static constexpr bool book = true; };
QT_GRID(IQ4_XS, Scaled, 32, -127, 113, false, -20, 6, 9)
    static constexpr bool book = true;
    static constexpr float bottom = -32, top = 31;
    static constexpr int rounds = 1;
};
#undef QT_GRID
inline constexpr float shifts[] = {0, -0.5f, -0.25f, 0.25f, 0.5f, 0};  // of the minimum, in steps of the best scale so far
inline constexpr int turns[] = {0, -1, 1};  // steps that are tried when scales are rounded again

template <class G>
struct Fit {
    V d, dmin, sc[G::groups], m[G::groups];
};

struct Sums {
    V q, qq, qx;  // weighted sums of codes, of their squares, of their products with x
};

// Of one group, whose codes are code(x).
template <class G, class F>
QT_INLINE Sums sums_of(const V* x, const V* w, F code) {
    Sums s{};
    for (int i = 0; i < G::group; i++) {
        const V q = code(x[i]), wq = w[i] * q;
        s.q += wq;
        s.qq += wq * q;
        s.qx += wq * x[i];
    }
    return s;
}

// The nearest of a book's values in rising order, each a threshold further than the one before.
template <int n>
QT_INLINE V nearest_of(const int8_t (&book)[n], V v) {
    V value = all(book[0]);
    QT_UNROLL
    for (int k = 1; k < n; k++) value += v > (book[k - 1] + book[k]) / 2.0f ? all(float(book[k] - book[k - 1])) : V{};
    return value;
}

template <int n>
QT_INLINE I place_of(const int8_t (&book)[n], V v) {
    I place{};
    QT_UNROLL
    for (int k = 1; k < n; k++) place -= v > (book[k - 1] + book[k]) / 2.0f;
    return place;
}

// The nearest code of a value in units of the scale.
template <class G>
QT_INLINE V nearest(V v) {
    if constexpr (G::book) return nearest_of(codebook::iq4[0], v);
    else return whole(clip(v, G::low, G::high));
}

template <class G>
QT_INLINE Sums sums_at(const V* x, const V* w, V scale, V minimum) {
    const V per_value = inverse(scale);
    return sums_of<G>(x, w, [&](V v) { return nearest<G>((G::affine ? v + minimum : v) * per_value); });
}

struct Group {
    V scale, minimum;
};

template <class G>
QT_INLINE Group affine_group(const V* x, const V* w, V& sw, V& sx) {
    V high = x[0], low = x[0];
    sw = w[0], sx = w[0] * x[0];
    for (int i = 1; i < G::group; i++) {
        high = larger(high, x[i]), low = smaller(low, x[i]);
        sw += w[i], sx += w[i] * x[i];
    }
    if (G::scaled) low = smaller(low, V{});
    const V reach = larger(high - low, V{});
    V scale = reach / all(G::high), least = low, error = all(__builtin_inff());
    auto attempt = [&](V per_value, V from) {
        const Sums s = sums_of<G>(x, w, [&](V v) { return whole(clip((v - from) * per_value, 0, G::high)); });
        const V det = sw * s.qq - s.q * s.q;
        V fit = ratio(sw * s.qx - sx * s.q, det), b = ratio(s.qq * sx - s.q * s.qx, det);
        if (G::scaled) fit = b > 0 ? ratio(s.qx, s.qq) : fit, b = smaller(b, V{});
        const V e = fit * (fit * s.qq - 2 * s.qx) + b * (b * sw - 2 * sx + 2 * fit * s.q);
        const I better = (det > tiny) & (fit > 0) & (e < error);
        scale = better ? fit : scale, least = better ? b : least, error = better ? e : error;
    };
    for (int t = 0; t < G::tries; t++) attempt((all(G::high) + (G::first + G::step * float(t))) * inverse(reach), least);
    for (float shift : shifts) {
        const V moved = least + shift * scale;
        attempt(inverse(scale), G::scaled ? smaller(moved, V{}) : moved);
    }
    return {scale, -least};
}

template <class G>
QT_INLINE V symmetric_group(const V* x, const V* w) {
    V high = x[0], low = x[0];
    for (int i = 1; i < G::group; i++) high = larger(high, x[i]), low = smaller(low, x[i]);
    const V extreme = high > -low ? high : low, per_extreme = inverse(extreme);
    V scale{}, gain{};
    auto attempt = [&](V per_value) {
        const Sums s = sums_of<G>(x, w, [&](V v) { return nearest<G>(v * per_value); });
        const V fit = ratio(s.qx, s.qq), g = fit * s.qx;
        const I better = g > gain;
        scale = better ? fit : scale, gain = better ? g : gain;
    };
    for (int t = 0; t < G::tries; t++) {
        const float more = G::first + G::step * float(t);
        attempt((all(G::high) + more) * per_extreme);
        if (G::low != -G::high) attempt((all(G::low) - more) * per_extreme);
    }
    for (int t = 0; t < G::polish; t++) attempt(inverse(scale));
    return scale;
}

// The half by which v[groups] become whole with the least weighted error.
template <class G>
QT_INLINE V rounding(const V* v, const V* curvature) {
    V high = v[0], low = v[0];
    for (int g = 1; g < G::groups; g++) high = larger(high, v[g]), low = smaller(low, v[g]);
    constexpr bool positive = G::bottom == 0;
    const V extreme = positive ? high : (high > -low ? high : low), per_extreme = inverse(extreme);
    constexpr float end = positive ? G::top : G::bottom;
    V best = extreme / all(end), gain{};
    for (int t = 0; t < G::spreads; t++) {
        const float more = G::spread_first + G::spread_step * float(t);
        const V per_value = all(end + (positive ? more : -more)) * per_extreme;
        V a{}, p{};
        for (int g = 0; g < G::groups; g++) {
            const V q = whole(clip(v[g] * per_value, G::bottom, G::top)), cq = curvature[g] * q;
            a += cq * q, p += cq * v[g];
        }
        const V d = ratio(p, a), won = d * p;
        const I better = won > gain;
        best = better ? d : best, gain = better ? won : gain;
    }
    return to_half(best);
}

template <class G>
QT_INLINE V to_scale(V v, V per_d) {
    return whole(clip(v * per_d, G::bottom, G::top));
}

// The best factors for codes, scales and minima that stay, where they are better; dmin is not below `least`.
struct Factors {
    V a{}, p{}, c{}, o{}, r{};
    QT_INLINE void add(V sc, V m, V sw, V sx, const Sums& s) {
        a += sc * sc * s.qq, p += sc * s.qx;
        c += m * m * sw, o += m * sx, r += sc * m * s.q;
    }
    QT_INLINE V error(V d, V dmin) const { return d * (d * a - 2 * p) + dmin * (dmin * c + 2 * o - 2 * d * r); }
    QT_INLINE void mend(V& d, V& dmin, float least) const {
        const V det = a * c - r * r;
        const I sure = det > 1e-6f * (a * c);
        const V new_d = to_half(sure ? ratio(p * c - o * r, det) : d), new_dmin = to_half(sure ? ratio(p * r - a * o, det) : dmin);
        const I better = (new_d > 0) & (new_dmin >= least) & (error(new_d, new_dmin) < error(d, dmin));
        d = better ? new_d : d, dmin = better ? new_dmin : dmin;
    }
};

QT_INLINE void mend_symmetric(V a, V p, V& d) {
    const V now = to_half(ratio(p, a));
    const I better = (now != 0) & (now * (now * a - 2 * p) < d * (d * a - 2 * p));
    d = better ? now : d;
}

template <class G>
QT_INLINE void fit_affine(const V* x, const V* w, Fit<G>& f) {
    V sw[G::groups], sx[G::groups];
    Group found[G::groups];
    for (int g = 0; g < G::groups; g++) found[g] = affine_group<G>(x + g * G::group, w + g * G::group, sw[g], sx[g]);
    if constexpr (!G::scaled) {
        f.d = to_half(found[0].scale), f.dmin = to_half(found[0].minimum);
        f.sc[0] = f.m[0] = all(1);
        for (int r = 0; r < G::rounds; r++) {
            Factors factors;
            factors.add(all(1), all(1), sw[0], sx[0], sums_at<G>(x, w, f.d, f.dmin));
            factors.mend(f.d, f.dmin, -__builtin_inff());
        }
    } else {
        V scale[G::groups], minimum[G::groups], curvature[G::groups];
        for (int g = 0; g < G::groups; g++) {
            scale[g] = found[g].scale, minimum[g] = found[g].minimum;
            curvature[g] = sums_at<G>(x + g * G::group, w + g * G::group, scale[g], minimum[g]).qq;
        }
        f.d = rounding<G>(scale, curvature), f.dmin = rounding<G>(minimum, sw);
        for (int g = 0; g < G::groups; g++) {
            f.sc[g] = to_scale<G>(scale[g], inverse(f.d));
            f.m[g] = to_scale<G>(minimum[g], inverse(f.dmin));
        }
        for (int r = 0; r < G::rounds; r++) {
            Factors factors;
            const V per_dmin = inverse(f.dmin);
            for (int g = 0; g < G::groups; g++) {
                const V old = f.sc[g], old_m = f.m[g];
                V error = all(__builtin_inff());
                Sums sums{sw[g], sw[g], sw[g]};
                auto attempt = [&](int step) {
                    const V trial = clip(old + float(step), G::bottom, G::top), s = trial * f.d;
                    V mine = old_m;
                    for (int again = 0; again < 2; again++) {  // codes, the best minimum for them, codes again
                        const Sums t = sums_at<G>(x + g * G::group, w + g * G::group, s, mine * f.dmin);
                        mine = to_scale<G>(ratio(s * t.q - sx[g], sw[g]), per_dmin);
                        const V b = mine * f.dmin, e = s * (s * t.qq - 2 * t.qx) + b * (b * sw[g] + 2 * sx[g] - 2 * s * t.q);
                        const I better = e < error;
                        error = better ? e : error, f.sc[g] = better ? trial : f.sc[g], f.m[g] = better ? mine : f.m[g];
                        sums.q = better ? t.q : sums.q, sums.qq = better ? t.qq : sums.qq, sums.qx = better ? t.qx : sums.qx;
                    }
                };
                if (r == 0) for (int step : G::near) attempt(step);
                else for (int step : turns) attempt(step);
                factors.add(f.sc[g], f.m[g], sw[g], sx[g], sums);
            }
            factors.mend(f.d, f.dmin, 0);
        }
    }
}

template <class G>
QT_INLINE void fit_symmetric(const V* x, const V* w, Fit<G>& f) {
    V scale[G::groups];
    for (int g = 0; g < G::groups; g++) scale[g] = symmetric_group<G>(x + g * G::group, w + g * G::group);
    f.dmin = V{};
    if constexpr (!G::scaled) {
        f.d = to_half(scale[0]), f.sc[0] = all(1), f.m[0] = V{};
        for (int r = 0; r < G::rounds; r++) {
            const Sums s = sums_at<G>(x, w, f.d, V{});
            mend_symmetric(s.qq, s.qx, f.d);
        }
    } else {
        V curvature[G::groups];
        for (int g = 0; g < G::groups; g++) curvature[g] = sums_at<G>(x + g * G::group, w + g * G::group, scale[g], V{}).qq;
        f.d = rounding<G>(scale, curvature);
        for (int g = 0; g < G::groups; g++) f.sc[g] = to_scale<G>(scale[g], inverse(f.d)), f.m[g] = V{};
        for (int r = 0; r < G::rounds; r++) {
            V a{}, p{};
            for (int g = 0; g < G::groups; g++) {
                const V old = f.sc[g];
                V error = all(__builtin_inff()), qq = scale[g], qx = scale[g];
                auto attempt = [&](int step) {
                    const V trial = clip(old + float(step), G::bottom, G::top), s = trial * f.d;
                    const Sums t = sums_at<G>(x + g * G::group, w + g * G::group, s, V{});
                    const V e = s * (s * t.qq - 2 * t.qx);
                    const I better = e < error;
                    error = better ? e : error, f.sc[g] = better ? trial : f.sc[g];
                    qq = better ? t.qq : qq, qx = better ? t.qx : qx;
                };
                if (r == 0) for (int step : G::near) attempt(step);
                else for (int step : turns) attempt(step);
                a += f.sc[g] * f.sc[g] * qq, p += f.sc[g] * qx;
            }
            mend_symmetric(a, p, f.d);
        }
    }
}

template <class G>
QT_INLINE void fit(const V* x, const V* w, Fit<G>& f) {
    if constexpr (G::affine) fit_affine(x, w, f);
    else fit_symmetric(x, w, f);
}
}  // namespace qt::QT_ISA
