// 32 codes of a row as bytes in registers, and scales of a block as floats: what the unpacking of every type is made of.
#pragma once
#include "isa/coded.h"
#include "isa/decode.h"
#include "isa/dot8.h"
#include "isa/panel.h"

namespace qt::QT_ISA {

// 32 bytes. Shifts are of 16 bits, so they are followed by a mask.
typedef uint8_t Bytes __attribute__((vector_size(sizeof(Words))));
struct Codes {
    static constexpr int parts = 8 / VL;
    Words at[parts];
};
template <class F>
QT_INLINE Codes each_part(F f) {
    Codes c;
    for (int i = 0; i < Codes::parts; i++) c.at[i] = f(i);
    return c;
}
QT_INLINE Codes load_codes(const void* p) {
    return each_part([&](int i) { return in_order(get<Words>((const uint8_t*)p + i * sizeof(Words))); });  // loaded once
}
QT_INLINE void store_codes(uint8_t* p, Codes c) {
    for (int i = 0; i < Codes::parts; i++) put(p + i * sizeof(Words), c.at[i]);
}
QT_INLINE Codes operator&(Codes a, uint8_t mask) {
    return each_part([&](int i) { return a.at[i] & uint16_t(mask * 0x101); });
}
QT_INLINE Codes operator|(Codes a, Codes b) {
    return each_part([&](int i) { return a.at[i] | b.at[i]; });
}
QT_INLINE Codes operator^(Codes a, Codes b) {
    return each_part([&](int i) { return a.at[i] ^ b.at[i]; });
}
QT_INLINE Codes operator>>(Codes a, int n) {
    return each_part([&](int i) { return a.at[i] >> n; });
}
QT_INLINE Codes operator<<(Codes a, int n) {
    return each_part([&](int i) { return a.at[i] << n; });
}
QT_INLINE Codes operator+(Codes a, Codes b) {
    return each_part([&](int i) { return (Words)((Bytes)a.at[i] + (Bytes)b.at[i]); });
}
// The negative of each byte where `minus` is 255, else 0.
QT_INLINE Codes with_signs(Codes a, Codes minus) {
    return each_part([&](int i) { return (Words)((Bytes)(a.at[i] ^ minus.at[i]) - (Bytes)minus.at[i]); });
}
// Signed bytes: bytes below 128, less a smaller one.
QT_INLINE Codes less(Codes a, int by) {
    return each_part([&](int i) { return ((a.at[i] | uint16_t(0x8080)) - uint16_t(by * 0x101)) ^ uint16_t(0x8080); });
}
QT_INLINE Codes every(int byte) {
    return each_part([&](int) { return Words{} + uint16_t(byte * 0x101); });
}
// The first 16 bytes of a, the others of b.
QT_INLINE Codes halves(Codes a, Codes b) {
#if defined(__AVX2__)
    return {{(Words)_mm256_blend_epi32((__m256i)a.at[0], (__m256i)b.at[0], 0xf0)}};
#else
    return {{a.at[0], b.at[1]}};
#endif
}
QT_INLINE Codes shifted(Codes a, int left) { return left >= 0 ? a << left : a >> -left; }

// 16 bytes of nibbles: the low ones, then the high ones.
QT_INLINE Codes nibbles16(const uint8_t* p) {
#if defined(__AVX2__)
    const __m128i q = get<__m128i>(p);
    return Codes{{(Words)_mm256_set_m128i(_mm_srli_epi16(q, 4), q)}} & 15;
#else
    const Words q = get<Words>(p);
    return Codes{{q, q >> 4}} & 15;
#endif
}
// The same through a table.
QT_INLINE Codes values16(const NibbleTable& table, const uint8_t* p) {
#if defined(__AVX2__)
    return {{(Words)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(get<__m128i>(table.of)), (__m256i)nibbles16(p).at[0])}};
#else
    int8_t q[32];
    nibble_values(table, p, q);
    return load_codes(q);
#endif
}
// 32 bits: 255 in each byte whose bit is set.
QT_INLINE Codes spread32(uint32_t from) {
    return each_part([&](int i) { return (Words)spread_bits(from >> i * int(sizeof(Spread))); });
}
QT_INLINE Codes fifth_bits(const uint8_t* p) { return spread32(load<uint32_t>(p)) & 16; }

// The last n blocks of a row, fewer than 256 columns: with blocks of zeros, which meet zeros of x.
template <class Block>
struct Rest {
    Block blocks[panel_columns / Block::size];
    __attribute__((always_inline)) Rest(const Block* from, size_t n) {
        __builtin_memset(blocks, 0, sizeof blocks);
        __builtin_memcpy(blocks, from, n * sizeof(Block));
    }
};

// Scales are made 8 at a time and stored at once: narrow stores read back by a wide load would stall. They are read back
// one by one, as a broadcast load is free where a shuffle is not; the compiler is not to know what it reads.
QT_INLINE void put_eight(float* to, const V* v) {
    for (int i = 0; i < 8; i += VL) store(to + i, v[i / VL]);
    asm volatile("" ::"r"(to) : "memory");
}

// f(j) of each 32 columns.
template <class F>
QT_INLINE void eight_scales(F f, float* to) {
    V v[8 / VL] = {};
    for (int i = 0; i < 8; i += VL)
        QT_UNROLL for (int k = 0; k < VL; k++) v[i / VL][k] = f(i + k);
    put_eight(to, v);
}
// Nibbles of 4 bytes as bytes, the low ones first.
QT_INLINE uint64_t spread_nibbles(uint64_t x) {
    x = (x | x << 16) & 0x0000ffff0000ffff;
    x = (x | x << 8) & 0x00ff00ff00ff00ff;
    return (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
}

// 8 bytes as integers.
template <bool is_signed = false>
QT_INLINE void eight_ints(uint64_t x, I* v) {
#if defined(__AVX2__)
    const __m128i bytes = _mm_cvtsi64_si128(int64_t(x));
    v[0] = (I)(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#elif defined(__SSE2__)
    const __m128i bytes = _mm_cvtsi64_si128(int64_t(x)), zero = _mm_setzero_si128();
    const __m128i words = is_signed ? _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8) : _mm_unpacklo_epi8(bytes, zero);
    const __m128i sign = is_signed ? _mm_srai_epi16(words, 15) : zero;
    v[0] = (I)_mm_unpacklo_epi16(words, sign);
    v[1] = (I)_mm_unpackhi_epi16(words, sign);
#elif defined(__aarch64__)
    const int16x8_t words = is_signed ? vmovl_s8(vcreate_s8(x)) : vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(x)));
    v[0] = (I)vmovl_s16(vget_low_s16(words));
    v[1] = (I)vmovl_high_s16(words);
#else
    for (int i = 0; i < 8; i++) v[i / VL][i % VL] = is_signed ? int8_t(x >> 8 * i) : int(x >> 8 * i & 255);
#endif
}
// d times each of 8 bytes.
template <bool is_signed = false>
QT_INLINE void eight_bytes(uint64_t x, float d, float* to) {
    I n[8 / VL] = {};
    V v[8 / VL];
    eight_ints<is_signed>(x, n);
    for (int i = 0; i < 8 / VL; i++) v[i] = __builtin_convertvector(n[i], V) * all(d);
    put_eight(to, v);
}
QT_INLINE uint64_t minus_32(uint64_t x) { return ((x | 0x8080808080808080) - 0x2020202020202020) ^ 0x8080808080808080; }  // of bytes below 64

// One f16 of each of 8 blocks, times `sign`.
template <int stride>
QT_INLINE void eight_halves(const void* p, float* to, float sign = 1) {
    auto at = [&](int k) { return load<uint16_t>((const uint8_t*)p + k * stride); };
    V v[8 / VL];
#if defined(__F16C__)
    v[0] = _mm256_cvtph_ps(_mm_setr_epi16(short(at(0)), short(at(1)), short(at(2)), short(at(3)), short(at(4)), short(at(5)), short(at(6)), short(at(7))));
#else
    for (int k = 0; k < 8; k += VL) {  // see widen
        const I h = {at(k), at(k + 1), at(k + 2), at(k + 3)}, magnitude = (h & 0x7fff) << 13;
        const I x = (I)((V)magnitude * all(0x1p112f)) | ((magnitude >= 0x0f800000) & 0x7f800000) | (h & 0x8000) << 16;
        v[k / VL] = (V)x;
    }
#endif
    for (int i = 0; i < 8 / VL; i++) v[i] *= sign;
    put_eight(to, v);
}
#define QT_UNPACK(name) \
    template <class F>  \
    QT_INLINE void unpack(const block::name* b, float* s, [[maybe_unused]] float* m, F f)
}  // namespace qt::QT_ISA
