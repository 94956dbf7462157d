// Products with one token, straight from the blocks: fills `Kernels::gemv`. AVX-512 with VNNI and VBMI so far.
#include "gemv.h"

#ifdef QT_ISA_avx512
#include "decode_iq.h"
#include "decode_k.h"
#include "decode_legacy.h"
#include "decode_microscaling.h"
#include "decode_ternary.h"
#include "gemv_32.h"
#include "gemv_any.h"
#include "gemv_k.h"
#endif

namespace qt::QT_ISA {
#ifdef QT_ISA_avx512

// One sequential stream a thread, fetched into L2 this far ahead.
constexpr int ahead_bytes = 12288;

template <class Q>
static void rows_k(const uint8_t* w, const void* packed, int in, int rows, float* y) {
    const Q q;
    const int blocks = in / 256;
    const uint8_t* ahead = w + ahead_bytes;
    for (int r = 0; r < rows; r++, w += size_t(blocks) * sizeof(typename Q::Block)) y[r] = dot_k(q, w, (const Packed1024*)packed, blocks, ahead);
}
static void rows_iq4_xs(const uint8_t* w, const void* packed, int in, int rows, float* y) {
    GemvIQ4_XS q;
    q.table = nibble_table(codebook::iq4[0], 128);
    const int blocks = in / 256;
    const uint8_t* ahead = w + ahead_bytes;
    for (int r = 0; r < rows; r++, w += size_t(blocks) * sizeof(block::IQ4_XS)) y[r] = dot_iq4_xs(q, w, (const Packed1024*)packed, blocks, ahead);
}
template <class Q>
static void rows_32(const uint8_t* w, const void* packed, int in, int rows, float* y) {
    const Q q;
    const int groups = in / 32;
    const uint8_t* ahead = w + ahead_bytes;
    for (int r = 0; r < rows; r++, w += size_t(groups) * Q::stride) y[r] = dot_32(q, w, (const Packed128*)packed, groups, ahead);
}

template <class Block, int sub>
static void rows_any(const uint8_t* w, const void* packed, int in, int rows, float* y) {
    const int blocks = in / Block::size;
    const uint8_t* ahead = w + ahead_bytes;
    for (int r = 0; r < rows; r++, w += size_t(blocks) * sizeof(Block)) y[r] = dot_any<Block, sub>((const Block*)w, (const Packed256*)packed, blocks, ahead);
}

static size_t bytes_256(int in) { return size_t(in + 255) / 256 * planes * sizeof(Packed256); }
static size_t bytes_1024(int in) { return size_t(in + 1023) / 1024 * planes * sizeof(Packed1024); }
static size_t bytes_128(int in) { return size_t(in + 127) / 128 * planes * sizeof(Packed128); }
template <Order order>
static bool pack_k(const float* x, int in, void* packed) { return packable(x, in) && (pack_1024<order>(x, in, (Packed1024*)packed), true); }
template <int offset>
static bool pack_32(const float* x, int in, void* packed) { return packable(x, in) && (pack_128<offset>(x, in, (Packed128*)packed), true); }
static bool pack_any(const float* x, int in, void* packed) { return packable(x, in) && (pack_256(x, in, (Packed256*)packed), true); }

template <class Block, int sub>
constexpr Gemv gemv_any = {bytes_256, pack_any, rows_any<Block, sub>};
template <class Q>
constexpr Gemv gemv_k = {bytes_1024, pack_k<Q::order>, rows_k<Q>};
template <class Q>
constexpr Gemv gemv_32 = {bytes_128, pack_32<Q::offset>, rows_32<Q>};

static consteval GemvTable list() {
    using namespace block;
    GemvTable t{};
    t.of[id::Q4_0] = gemv_32<GemvQ4_0>;
    t.of[id::Q4_1] = gemv_32<GemvQ4_1>;
    t.of[id::Q5_0] = gemv_32<GemvQ5_0>;
    t.of[id::Q5_1] = gemv_32<GemvQ5_1>;
    t.of[id::Q8_0] = gemv_32<GemvQ8_0>;
    t.of[id::Q2_K] = gemv_k<GemvQ2_K>;
    t.of[id::Q3_K] = gemv_k<GemvQ3_K>;
    t.of[id::Q4_K] = gemv_k<GemvQ4_K>;
    t.of[id::Q5_K] = gemv_k<GemvQ5_K>;
    t.of[id::Q6_K] = gemv_k<GemvQ6_K>;
    t.of[id::IQ2_XXS] = gemv_any<IQ2_XXS, 32>;
    t.of[id::IQ2_XS] = gemv_any<IQ2_XS, 16>;
    t.of[id::IQ3_XXS] = gemv_any<IQ3_XXS, 32>;
    t.of[id::IQ1_S] = gemv_any<IQ1_S, 32>;
    t.of[id::IQ4_NL] = gemv_32<GemvIQ4_NL>;
    t.of[id::IQ3_S] = gemv_any<IQ3_S, 32>;
    t.of[id::IQ2_S] = gemv_any<IQ2_S, 16>;
    t.of[id::IQ4_XS] = {bytes_1024, pack_k<split16>, rows_iq4_xs};
    t.of[id::IQ1_M] = gemv_any<IQ1_M, 16>;
    t.of[id::TQ1_0] = gemv_any<TQ1_0, 32>;
    t.of[id::TQ2_0] = gemv_any<TQ2_0, 32>;
    t.of[id::MXFP4] = gemv_32<GemvMXFP4>;
    t.of[id::NVFP4] = gemv_any<NVFP4, 16>;
    t.of[id::Q1_0] = gemv_any<Q1_0, 32>;
    t.of[id::Q2_0] = gemv_any<Q2_0, 32>;
    return t;
}
extern const GemvTable gemv_table;
constinit const GemvTable gemv_table = list();
#endif
}  // namespace qt::QT_ISA
