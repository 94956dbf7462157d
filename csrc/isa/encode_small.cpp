// Encoders of types whose scales are few enough to try those around the largest magnitude, and of Q1_0.
#include "isa/decode_microscaling.h"
#include "isa/pack.h"
#include "isa/search.h"

namespace qt::QT_ISA {
// The values of E2M1 that are not below zero, doubled.
static constexpr int8_t magnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};

template <class F>
QT_INLINE V halved(I stored, F of) {
    V scale{};
    for (int lane = 0; lane < VL; lane++) scale[lane] = of(uint8_t(stored[lane]));
    return scale;
}

// Of the scales `middle` and some steps from it the one whose codes err least over a group; its codes.
template <int group, int n, class F>
static inline I least_error(const V* x, const V* w, I middle, const int (&steps)[n], int most, F of, uint8_t (*rows)[64]) {
    V error = all(__builtin_inff());
    I best{};
    for (int step : steps) {
        I stored = middle + step;
        stored = stored < 0 ? I{} : stored;
        stored = stored > most ? I{} + most : stored;
        const V scale = halved(stored, of), per_value = inverse(scale);
        V e{};
        for (int i = 0; i < group; i++) {
            const V v = x[i] * per_value, q = nearest_of(magnitudes, magnitude(v)), off = scale * (v < 0 ? -q : q) - x[i];
            e += w[i] * off * off;
        }
        const I better = e < error;
        error = better ? e : error, best = better ? stored : best;
    }
    const V per_value = inverse(halved(best, of));
    Codes<group> codes;
    for (int i = 0; i < group; i++) {
        const V v = x[i] * per_value;
        codes.set(i, place_of(magnitudes, magnitude(v)) | ((v < 0) & 8));
    }
    codes.to_rows(rows);
    return best;
}

QT_INLINE V largest_of(const V* x, int n) {
    V most{};
    for (int i = 0; i < n; i++) most = larger(most, magnitude(x[i]));
    return most;
}

static void encode_block(const V* x, const V* w, block::MXFP4* to, int n) {
    constexpr int steps[] = {0, -1, 1};
    uint8_t codes[VL][64];
    const I best = least_error<32>(x, w, ((I)largest_of(x, 32) >> 23) - 2, steps, 254, half_e8m0, codes);
    for (int lane = 0; lane < n; lane++) {
        to[lane].e = uint8_t(best[lane]);
        pack_nibbles(codes[lane], to[lane].qs);
    }
}

static void encode_block(const V* x, const V* w, block::NVFP4* to, int n) {
    constexpr int steps[] = {0, 1, -1, 2, -2, 3, -3, 4, -4, -5, -6};
    uint8_t codes[VL][64];
    for (int g = 0; g < 4; g++) {
        const V full = largest_of(x + 16 * g, 16) * float(1.0 / 12);
        const I normal = ((I)full >> 20) - (119 << 3), small = __builtin_convertvector(full * 1024, I);
        const I best = least_error<16>(x + 16 * g, w + 16 * g, full < 0x1p-7f ? small : normal, steps, 126, half_ue4m3, codes);
        for (int lane = 0; lane < n; lane++) {
            to[lane].d[g] = uint8_t(best[lane]);
            pack_nibbles<8>(codes[lane], to[lane].qs + 8 * g);
        }
    }
}

static void encode_block(const V* x, const V* w, block::Q1_0* to, int n) {
    V size{}, weight{};
    for (int i = 0; i < 128; i++) size += w[i] * magnitude(x[i]), weight += w[i];
    const V d = to_half(ratio(size, weight));
    for (int lane = 0; lane < n; lane++) {
        to[lane].d = narrow(d[lane]);
        for (int k = 0; k < 16; k++) {
            int byte = 0;
            for (int i = 0; i < 8; i++) byte |= (x[8 * k + i][lane] >= 0) << i;
            to[lane].qs[k] = uint8_t(byte);
        }
    }
}

#define QT_ENCODER(name)                                                                                             \
    size_t encode_##name(const EncodeJob& job, size_t first, size_t last) {                                          \
        return encode_lanes<block::name>(job, first, last, {Plainly::one, 0, false},                                 \
                                         [](const V* x, const V* w, block::name* to, int n) { encode_block(x, w, to, n); }); \
    }
QT_ENCODER(MXFP4)
QT_ENCODER(NVFP4)
QT_ENCODER(Q1_0)
}  // namespace qt::QT_ISA
