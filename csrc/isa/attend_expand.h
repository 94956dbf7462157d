// Keys and values in codes, decoded to blocks of floats: for machines without integer dot products.
#pragma once
#include "isa/attend_floats.h"
#include "isa/decode.h"

namespace qt::QT_ISA {

// Block of 64 keys from key `begin` of the page on, to tiles [4][d][16] of floats.
template <int kind>
static void expand_keys(const uint8_t* keys, size_t d, size_t begin, float* to, Ahead& next) {
    constexpr KvKind k = kv_kinds[kind];
    const size_t n = kv_group(d), vectors = key_vectors(k.planes[0], d), more = k.planes[1] ? key_vectors(k.planes[1], d) : 0;
    const uint8_t *low = keys, *high = low + key_plane(k.planes[0], d), *scales = high + (k.planes[1] ? key_plane(k.planes[1], d) : 0);
    for (size_t t = begin; t < begin + attend_block; t += VL, to += t % tile_tokens ? VL : tile_tokens * d - tile_tokens + VL) {
        const size_t tile = t / tile_tokens, lane = t % tile_tokens;
        V scale{};
        for (size_t c = 0; c < d; c += 8) {
            if (c % n == 0) scale = load_halves(scales + ((tile * (d / n) + c / n) * tile_tokens + lane) * 2);
            for (int i = 0; i < 8; i++) {
                // see csrc/kv.h: in a vector of 4-bit codes 8 dimensions, of 8-bit codes 4, of 2-bit codes 16
                const size_t e = k.planes[0] == 8 ? c / 4 + i / 4 : c / 8;
                I code = QT_ISA::get<I>(low + (tile * vectors + e) * 64 + lane * 4) >> (8 * (i % 4) + (k.planes[0] == 4 ? i / 4 * 4 : 0)) & ((1 << k.planes[0]) - 1);
                if (more) code |= (QT_ISA::get<I>(high + (tile * more + c / 16) * 64 + lane * 4) >> int(8 * (i % 4) + (c / 8 % 2 * 2 + i / 4) * 2) & 3) << 4;
                store(to + (c + i) * tile_tokens, __builtin_convertvector(code - k.half(), V) * scale);
            }
            next.step();
        }
    }
}

// Values of tokens [begin, end), rows of padded(d).
template <int kind>
static void expand_values(const uint8_t* values, size_t d, size_t begin, size_t end, float* to, Ahead& next) {
    constexpr KvKind k = kv_kinds[kind];
    const size_t n = kv_group(d), width = padded(d);
    const uint8_t *low = values, *high = low + value_plane(k.planes[0], d), *scales = high + (k.planes[1] ? value_plane(k.planes[1], d) : 0);
    auto words = [&](const uint8_t* plane, int bits, size_t t, size_t i) {
        const size_t block = 64 * 8 / bits;
        const int shift = int(t % block / 64) * bits + int(t / 16 % 4) * 8;
        return QT_ISA::get<I>(plane + ((t / block * 16 + t % 16) * width + i) * 4) >> shift & ((1 << bits) - 1);
    };
    for (size_t t = begin; t < end; t++, to += width) {
        for (size_t i = 0; i < width; i += VL) {
            I code = words(low, k.planes[0], t, i);
            if (k.planes[1]) code |= words(high, k.planes[1], t, i) << k.planes[0];
            const size_t g = i < d ? i / n : 0;  // what lies beyond d is not read
            store(to + i, __builtin_convertvector(code - k.half(), V) * all(widen(load<f16>(scales + (g * page_tokens + t) * 2))));
        }
        next.step();
    }
}

template <int kind>
static void score_expanded(const Queries& q, size_t d, const uint8_t* keys, const Rows& rows, float* scores, float* room, Ahead& next) {
    Ahead none(nullptr, 0);
    next.pace(score_share, page_tokens / VL * d / 8);
    for (size_t b = rows.any_begin / attend_block * attend_block; b < rows.any_end; b += attend_block) {
        expand_keys<kind>(keys, d, b, room, next);
        score_block<F32>(q, d, reinterpret_cast<const uint8_t*>(room), rows.any_end - b < attend_block ? rows.any_end - b : attend_block, scores + b, none);
    }
}

template <int kind>
static void blend_expanded(float* p, size_t d, const uint8_t* values, const Rows& rows, float softcap, float* state, size_t ld, float* room, Ahead& next) {
    Ahead none(nullptr, 0);
    soften_rows(p, d, rows, softcap, state, ld, next);
    next.pace(blend_share, page_tokens);
    for (size_t b = rows.any_begin, e; b < rows.any_end; b = e) {
        e = b / attend_block * attend_block + attend_block;
        if (e > rows.any_end) e = rows.any_end;
        expand_values<kind>(values, d, b, e, room, next);
        blend_block<F32>(rows, p + b, reinterpret_cast<const uint8_t*>(room), padded(d), b, b, e, state, ld, none);
    }
}
}  // namespace qt::QT_ISA
