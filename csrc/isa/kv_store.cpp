// A token's keys and values on their way into a page: rotated, rounded, and every code put in its place (csrc/kv.h).
#include "isa/decode.h"
#include "isa/encode.h"
#include "isa/narrow.h"
#include "isa/ops.h"
#include "isa/rotate.h"

namespace qt::QT_ISA {

// The bits of codes [round_up(d, 16)], zero beyond d, and scales. The value farthest from 0 gets the lowest code.
static void quantise(const float* x, size_t d, int bits, uint8_t* codes, f16* scales) {
    const size_t n = kv_group(d);
    const float half = float(1 << (bits - 1));
    for (size_t g = 0; g < d / n; g++, x += n, codes += n) {
        const Range r = range_of(x, n);
        const float scale = (-r.low >= r.high ? r.low : r.high) / -half + 0.f;  // no negative zero
        scales[g] = narrow(scale);
        if (!r.finite) {
            scales[g] = 0x7e00;  // NaN
            for (size_t i = 0; i < n; i++) codes[i] = 0;
            continue;
        }
        const float wide = widen(scales[g]), inverse = wide == 0 ? 0 : 1 / wide;
        for (size_t i = 0; i < n; i += VL) {
            I c = nearest((n < VL ? load_part(x, n) : load(x + i)) * all(inverse)) + (1 << (bits - 1));
            c = c & (c > 0);
            const I most = I{} + ((1 << bits) - 1), over = c > most;
            c = (over & most) | (~over & c);
            const B narrow = __builtin_convertvector(c, B);
            __builtin_memcpy(codes + i, &narrow, n < VL ? n : VL);
        }
    }
    for (size_t i = d; i < padded(d); i++) *codes++ = 0;
}

template <class T>
static void scatter(const T* x, size_t d, size_t slot, uint8_t* keys) {
    const size_t rows = round_up(d, 4);
    T* to = reinterpret_cast<T*>(keys) + slot / tile_tokens * rows * tile_tokens + slot % tile_tokens;
    for (size_t i = 0; i < rows; i++) to[i * tile_tokens] = i < d ? x[i] : T(0);
}

// The codes of a token, `bits` of them from bit `low` on, in a plane of keys.
static void put_keys(const uint8_t* codes, size_t d, int bits, int low, size_t slot, uint8_t* plane) {
    const uint32_t mask = 0x01010101u * ((1 << bits) - 1);
    const size_t vectors = key_vectors(bits, d);
    uint8_t* to = plane + slot / tile_tokens * vectors * 64 + slot % tile_tokens * 4;
    for (size_t e = 0; e < vectors; e++) {
        uint32_t word = 0;
        for (int f = 0; f < 8 / bits; f++) word |= (load<uint32_t>(codes + (e * (8 / bits) + f) * 4) >> low & mask) << bits * f;
        put(to + 64 * e, word);
    }
}

static void put_values(const uint8_t* codes, size_t d, int bits, int low, size_t slot, uint8_t* plane) {
    const size_t in_block = 64 * 8 / bits;
    const int shift = int(slot % in_block / 64) * bits + int(slot / 16 % 4) * 8;
    const uint32_t mask = (1u << bits) - 1, others = ~(mask << shift);
    uint32_t* to = reinterpret_cast<uint32_t*>(plane) + (slot / in_block * 16 + slot % 16) * padded(d);
    for (size_t i = 0; i < padded(d); i++) to[i] = (to[i] & others) | (uint32_t(codes[i]) >> low & mask) << shift;
}

struct Token {
    const uint8_t* codes;
    const f16* scales;
};
// Rotated and rounded, in scratch.
static Token round_token(const float* x, size_t d, int bits, float* scratch) {
    uint8_t* codes = reinterpret_cast<uint8_t*>(scratch + padded(d));
    f16* scales = reinterpret_cast<f16*>(codes + padded(d));
    for (size_t i = 0; i < padded(d); i++) scratch[i] = i < d ? x[i] : 0;
    rotate(scratch, padded(d), kv_group(d));
    quantise(scratch, d, bits, codes, scales);
    return {codes, scales};
}

static void store_keys(const KvKind& kind, const float* x, size_t d, size_t slot, uint8_t* keys, float* scratch) {
    if (kind.bits == 32) return scatter(x, d, slot, keys);
    if (kind.bits == 16) {
        narrow_row(x, reinterpret_cast<uint16_t*>(scratch), d);
        return scatter(reinterpret_cast<const f16*>(scratch), d, slot, keys);
    }
    const Token token = round_token(x, d, kind.bits, scratch);
    int low = 0;
    for (int bits : kind.planes) {
        if (!bits) break;
        put_keys(token.codes, d, bits, low, slot, keys);
        low += bits, keys += key_plane(bits, d);
    }
    const size_t groups = d / kv_group(d);
    f16* to = reinterpret_cast<f16*>(keys) + slot / tile_tokens * groups * tile_tokens + slot % tile_tokens;
    for (size_t g = 0; g < groups; g++) to[g * tile_tokens] = token.scales[g];
}

static void store_values(const KvKind& kind, const float* x, size_t d, size_t slot, uint8_t* values, float* scratch) {
    if (!kind.coded()) {
        const size_t wide = kind.bits / 8;
        uint8_t* to = values + slot * padded(d) * wide;
        if (kind.bits == 32) __builtin_memcpy(to, x, 4 * d);
        else narrow_row(x, reinterpret_cast<uint16_t*>(to), d);
        for (size_t i = d * wide; i < padded(d) * wide; i++) to[i] = 0;
        return;
    }
    const Token token = round_token(x, d, kind.bits, scratch);
    int low = 0;
    for (int bits : kind.planes) {
        if (!bits) break;
        put_values(token.codes, d, bits, low, slot, values);
        low += bits, values += value_plane(bits, d);
    }
    f16* to = reinterpret_cast<f16*>(values) + slot;
    for (size_t g = 0; g < d / kv_group(d); g++) to[g * page_tokens] = token.scales[g];
}

void kv_store(const AttendJob& a, size_t kv_head, size_t position, const float* k, const float* v, float* scratch) {
    uint8_t* keys = a.head(position / page_tokens, kv_head);
    store_keys(kv_kinds[a.keys], k, a.d, position % page_tokens, keys, scratch);
    store_values(kv_kinds[a.values], v, a.dv, position % page_tokens, keys + a.key_bytes, scratch);
}
}  // namespace qt::QT_ISA
