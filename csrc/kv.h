// How keys and values lie in a page; src/qtransformers/kernels/kv.py draws it and is its twin.
#pragma once
#include <cstddef>
#include <cstdint>

#include "compiler.h"

namespace qt {
inline constexpr size_t page_tokens = 256, tile_tokens = 16;

struct KvKind {
    const char* name;
    int bits;
    int planes[2];  // bits of each plane of codes, 0: none
    int query;      // queries are rounded to -query..query of each group's largest; 0: they stay floats
    QT_INLINE constexpr bool coded() const { return planes[0] != 0; }
    QT_INLINE constexpr int half() const { return 1 << (bits - 1); }  // the code of 0
};
enum { kv_f32, kv_f16, kv_q8, kv_q6, kv_q4, n_kv_kinds };
inline constexpr KvKind kv_kinds[n_kv_kinds] = {{"f32", 32, {}, 0}, {"f16", 16, {}, 0}, {"q8", 8, {8}, 32512}, {"q6", 6, {4, 2}, 127}, {"q4", 4, {4}, 127}};

QT_INLINE constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
// Values that share a scale, and are rotated together.
QT_INLINE constexpr size_t kv_group(size_t d) { return (d & -d) < 32 ? d & -d : 32; }
QT_INLINE constexpr size_t kv_scale_bytes(size_t d) { return d / kv_group(d) * page_tokens * 2; }
// Keys: vectors of 64 bytes in a tile of 16 tokens. Values: rows of D words of four tokens.
QT_INLINE constexpr size_t key_vectors(int bits, size_t d) { return round_up(d, 32 / bits) / (32 / bits); }
QT_INLINE constexpr size_t key_plane(int bits, size_t d) { return key_vectors(bits, d) * 64 * page_tokens / tile_tokens; }
QT_INLINE constexpr size_t value_plane(int bits, size_t d) { return page_tokens * round_up(d, tile_tokens) * bits / 8; }

QT_INLINE constexpr size_t key_bytes(const KvKind& k, size_t d) {
    if (!k.coded()) return page_tokens * round_up(d, 4) * k.bits / 8;
    return key_plane(k.planes[0], d) + (k.planes[1] ? key_plane(k.planes[1], d) : 0) + kv_scale_bytes(d);
}
QT_INLINE constexpr size_t value_bytes(const KvKind& k, size_t d) { return value_plane(k.bits, d) + (k.coded() ? kv_scale_bytes(d) : 0); }
}  // namespace qt
