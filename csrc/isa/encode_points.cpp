// Encoders of the IQ types with codebooks of several values.
#include "isa/points.h"

namespace qt::QT_ISA {
template <class K>
static uint32_t signs_and_scale(const Chosen<K>& c, int g) {
    uint32_t word = uint32_t(c.scale[g]) << 28;
    for (int k = 0; k < 4; k++) word |= uint32_t(c.signs[4 * g + k] & 127) << 7 * k;
    return word;
}
template <class K>
static void pack_scales(const Chosen<K>& c, uint8_t* to) {
    for (int i = 0; i < K::groups / 2; i++) to[i] = uint8_t(c.scale[2 * i] | c.scale[2 * i + 1] << 4);
}
template <class K>
static void pack_low(const Chosen<K>& c, uint8_t* to) {
    for (int i = 0; i < 256 / K::values; i++) to[i] = uint8_t(c.id[i]);
}

static void pack(const Chosen<BookOf<block::IQ2_XXS>>& c, block::IQ2_XXS& b) {
    b.d = narrow(c.d);
    for (int g = 0; g < 8; g++) {
        uint32_t words[2] = {0, signs_and_scale(c, g)};
        for (int k = 0; k < 4; k++) words[0] |= uint32_t(c.id[4 * g + k]) << 8 * k;
        __builtin_memcpy(b.qs + 4 * g, words, 8);
    }
}
static void pack(const Chosen<BookOf<block::IQ2_XS>>& c, block::IQ2_XS& b) {
    b.d = narrow(c.d);
    for (int i = 0; i < 32; i++) b.qs[i] = uint16_t(c.id[i] | (c.signs[i] & 127) << 9);
    pack_scales(c, b.scales);
}
static void pack(const Chosen<BookOf<block::IQ2_S>>& c, block::IQ2_S& b) {
    b.d = narrow(c.d);
    pack_low(c, b.qs), pack_scales(c, b.scales);
    __builtin_memcpy(b.signs, c.signs, 32);
    for (int k = 0; k < 8; k++) {
        int byte = 0;
        for (int i = 0; i < 4; i++) byte |= c.id[4 * k + i] >> 8 << 2 * i;
        b.qh[k] = uint8_t(byte);
    }
}
static void pack(const Chosen<BookOf<block::IQ3_XXS>>& c, block::IQ3_XXS& b) {
    b.d = narrow(c.d);
    pack_low(c, b.qs);
    for (int g = 0; g < 8; g++) {
        const uint32_t word = signs_and_scale(c, g);
        __builtin_memcpy(b.signs + 4 * g, &word, 4);
    }
}
static void pack(const Chosen<BookOf<block::IQ3_S>>& c, block::IQ3_S& b) {
    b.d = narrow(c.d);
    pack_low(c, b.qs), pack_scales(c, b.scales);
    __builtin_memcpy(b.signs, c.signs, 32);
    for (int k = 0; k < 8; k++) {
        int byte = 0;
        for (int i = 0; i < 8; i++) byte |= c.id[8 * k + i] >> 8 << i;
        b.qh[k] = uint8_t(byte);
    }
}
static void pack(const Chosen<BookOf<block::IQ1_S>>& c, block::IQ1_S& b) {
    b.d = narrow(c.d);
    pack_low(c, b.qs);
    for (int g = 0; g < 8; g++) {
        int word = c.scale[g] << 12 | c.down[4 * g] << 15;
        for (int k = 0; k < 4; k++) word |= c.id[4 * g + k] >> 8 << 3 * k;
        b.qh[g] = uint16_t(word);
    }
}
static void pack(const Chosen<BookOf<block::IQ1_M>>& c, block::IQ1_M& b) {
    pack_low(c, b.qs);
    for (int i = 0; i < 16; i++) {
        int byte = 0;
        for (int k = 0; k < 2; k++) byte |= (c.id[2 * i + k] >> 8 | c.down[2 * i + k] << 3) << 4 * k;
        b.qh[i] = uint8_t(byte);
    }
    const f16 d = narrow(c.d);
    for (int i = 0; i < 4; i++) {
        int word = (d >> 4 * i & 15) << 12;
        for (int k = 0; k < 4; k++) word |= c.scale[4 * i + k] << 3 * k;
        b.scales[i] = uint16_t(word);
    }
}

// Weights come from lanes of blocks, as for all types; the search takes block by block.
template <class Block>
static size_t encode_books(const EncodeJob& job, size_t first, size_t last, Weighting rule) {
    return encode_lanes<Block>(job, first, last, rule, [&](const V* x, const V* w, Block* to, int n) {
        float values[256], weights[256];
        Chosen<BookOf<Block>> c{};
        for (int lane = 0; lane < n; lane++) {
            for (int i = 0; i < 256; i++) values[i] = x[i][lane], weights[i] = w[i][lane];
            choose(job, values, weights, c);
            pack(c, to[lane]);
        }
    });
}

#define QT_ENCODER(name, plainly, spread) \
    size_t encode_##name(const EncodeJob& job, size_t first, size_t last) { return encode_books<block::name>(job, first, last, {Plainly::plainly, spread, false}); }
QT_ENCODER(IQ2_XXS, even, 1)
QT_ENCODER(IQ2_XS, even, 1)
QT_ENCODER(IQ2_S, shifted, 2)
QT_ENCODER(IQ3_XXS, shifted, 2)
QT_ENCODER(IQ3_S, shifted, 2)
QT_ENCODER(IQ1_S, even, 2)
QT_ENCODER(IQ1_M, shifted, 2)
}  // namespace qt::QT_ISA
