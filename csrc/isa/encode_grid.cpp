// Encoders of the types whose codes lie on grids.
#include "isa/pack.h"
#include "isa/search.h"

namespace qt::QT_ISA {
// Places of values, less the lowest, in the book of the 4-bit types.
struct Places {
    uint8_t of[256];
};
static consteval Places list_places() {
    Places p{};
    for (int i = 0; i < 16; i++) p.of[codebook::iq4[0][i] - codebook::iq4[0][0]] = uint8_t(i);
    return p;
}
static constexpr Places places = list_places();
static inline uint8_t place(uint8_t value) { return places.of[value]; }

template <class Block>
static void encode_blocks(const V* x, const V* w, Block* to, int n) {
    using G = GridOf<Block>;
    Fit<G> f;
    fit<G>(x, w, f);
    uint8_t codes[VL][G::size];
    for (int g = 0; g < G::groups; g++) {
        const V minimum = f.dmin * f.m[g], per_value = inverse(f.d * f.sc[g]);
        for (int i = g * G::group; i < (g + 1) * G::group; i++) {
            const V q = nearest<G>((G::affine ? x[i] + minimum : x[i]) * per_value);
            const I code = __builtin_convertvector(q, I) - int(G::low);  // of a book: its value
            const B bytes = __builtin_convertvector(code, B);
            for (int lane = 0; lane < VL; lane++) codes[lane][i] = G::book ? place(bytes[lane]) : bytes[lane];
        }
    }
    for (int lane = 0; lane < n; lane++) {
        Packed s{f.d[lane], f.dmin[lane], {}, {}};
        for (int g = 0; g < G::groups; g++) s.sc[g] = int(f.sc[g][lane]), s.m[g] = int(f.m[g][lane]);
        pack(codes[lane], s, to[lane]);
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
