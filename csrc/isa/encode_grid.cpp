// Encoders of the types whose codes lie on grids.
#include "isa/pack.h"
#include "isa/search.h"

namespace qt::QT_ISA {
template <class Block>
static void encode_blocks(const V* x, const V* w, Block* to, int n) {
    using G = GridOf<Block>;
    Fit<G> f;
    fit<G>(x, w, f);
    Codes<G::size> codes;
    for (int g = 0; g < G::groups; g++) {
        const V minimum = f.dmin * f.m[g], per_value = inverse(f.d * f.sc[g]);
        for (int i = g * G::group; i < (g + 1) * G::group; i++) {
            const V v = (G::affine ? x[i] + minimum : x[i]) * per_value;
            if constexpr (G::book) codes.set(i, place_of(codebook::iq4[0], v));
            else codes.set(i, __builtin_convertvector(nearest<G>(v), I) - int(G::low));
        }
    }
    uint8_t rows[VL][G::size < 64 ? 64 : G::size];
    codes.to_rows(rows);
    for (int lane = 0; lane < n; lane++) {
        Packed s{f.d[lane], f.dmin[lane], {}, {}};
        for (int g = 0; g < G::groups; g++) s.sc[g] = int(f.sc[g][lane]), s.m[g] = int(f.m[g][lane]);
        pack(rows[lane], s, to[lane]);
    }
}

#define QT_ENCODER(name, plainly, spread, rows)                                                                                           \
    size_t encode_##name(const EncodeJob& job, size_t first, size_t last) {                                                               \
        return encode_lanes<block::name>(job, first, last, {Plainly::plainly, spread, rows}, encode_blocks<block::name>);                 \
    }
QT_ENCODER(Q4_0, one, 1, true)
QT_ENCODER(Q4_1, one, 1, true)
QT_ENCODER(Q5_0, one, 1, true)
QT_ENCODER(Q5_1, one, 1, true)
QT_ENCODER(Q2_K, magnitude, 1, false)
QT_ENCODER(Q3_K, shifted, 2, false)
QT_ENCODER(Q4_K, rms, 2, false)
QT_ENCODER(Q5_K, rms, 2, false)
QT_ENCODER(Q6_K, shifted, 0, false)
QT_ENCODER(Q2_0, one, 0, false)
QT_ENCODER(TQ1_0, one, 0, false)
QT_ENCODER(TQ2_0, one, 0, false)
QT_ENCODER(IQ4_NL, shifted, 2, false)
QT_ENCODER(IQ4_XS, shifted, 2, false)
}  // namespace qt::QT_ISA
