// The blocks of a GGUF file, as types.py lists them: tests compare ids, sizes and bytes of the two.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

namespace qt {
static_assert(std::endian::native == std::endian::little, "blocks are read as they lie on disk");

using f16 = uint16_t;  // the bits of a half

#define QT_VALUES(n) static constexpr int size = n  // values per block

#pragma pack(push, 1)  // tensors may start at any byte
namespace block {
struct F32 { QT_VALUES(1); uint32_t x; };
struct F16 { QT_VALUES(1); f16 x; };
struct BF16 { QT_VALUES(1); uint16_t x; };
struct F64 { QT_VALUES(1); uint64_t x; };

struct Q4_0 { QT_VALUES(32); f16 d; uint8_t qs[16]; };
struct Q4_1 { QT_VALUES(32); f16 d, m; uint8_t qs[16]; };
struct Q5_0 { QT_VALUES(32); f16 d; uint8_t qh[4], qs[16]; };
struct Q5_1 { QT_VALUES(32); f16 d, m; uint8_t qh[4], qs[16]; };
struct Q8_0 { QT_VALUES(32); f16 d; int8_t qs[32]; };
struct Q8_1 { QT_VALUES(32); f16 d, s; int8_t qs[32]; };
struct Q1_0 { QT_VALUES(128); f16 d; uint8_t qs[16]; };
struct Q2_0 { QT_VALUES(64); f16 d; uint8_t qs[16]; };

struct Q2_K { QT_VALUES(256); uint8_t scales[16], qs[64]; f16 d, dmin; };
struct Q3_K { QT_VALUES(256); uint8_t hmask[32], qs[64], scales[12]; f16 d; };
struct Q4_K { QT_VALUES(256); f16 d, dmin; uint8_t scales[12], qs[128]; };
struct Q5_K { QT_VALUES(256); f16 d, dmin; uint8_t scales[12], qh[32], qs[128]; };
struct Q6_K { QT_VALUES(256); uint8_t ql[128], qh[64]; int8_t scales[16]; f16 d; };
struct Q8_K { QT_VALUES(256); float d; int8_t qs[256]; int16_t bsums[16]; };

struct IQ2_XXS { QT_VALUES(256); f16 d; uint16_t qs[32]; };
struct IQ2_XS { QT_VALUES(256); f16 d; uint16_t qs[32]; uint8_t scales[8]; };
struct IQ2_S { QT_VALUES(256); f16 d; uint8_t qs[32], signs[32], qh[8], scales[8]; };
struct IQ3_XXS { QT_VALUES(256); f16 d; uint8_t qs[64], signs[32]; };
struct IQ3_S { QT_VALUES(256); f16 d; uint8_t qs[64], qh[8], signs[32], scales[4]; };
struct IQ1_S { QT_VALUES(256); f16 d; uint8_t qs[32]; uint16_t qh[8]; };
struct IQ1_M { QT_VALUES(256); uint8_t qs[32], qh[16]; uint16_t scales[4]; };
struct IQ4_NL { QT_VALUES(32); f16 d; uint8_t qs[16]; };
struct IQ4_XS { QT_VALUES(256); f16 d; uint16_t scales_h; uint8_t scales_l[4], qs[128]; };

struct TQ1_0 { QT_VALUES(256); uint8_t qs[48], qh[4]; f16 d; };
struct TQ2_0 { QT_VALUES(256); uint8_t qs[64]; f16 d; };
struct MXFP4 { QT_VALUES(32); uint8_t e, qs[16]; };
struct NVFP4 { QT_VALUES(64); uint8_t d[4], qs[32]; };
}  // namespace block
#pragma pack(pop)

// Every type that decodes to floats: id in the file, name.
#define QT_TYPES(X) \
    X(0, F32) X(1, F16) X(2, Q4_0) X(3, Q4_1) X(6, Q5_0) X(7, Q5_1) X(8, Q8_0) X(9, Q8_1) X(10, Q2_K) X(11, Q3_K) X(12, Q4_K) X(13, Q5_K) \
    X(14, Q6_K) X(15, Q8_K) X(16, IQ2_XXS) X(17, IQ2_XS) X(18, IQ3_XXS) X(19, IQ1_S) X(20, IQ4_NL) X(21, IQ3_S) X(22, IQ2_S) X(23, IQ4_XS) \
    X(28, F64) X(29, IQ1_M) X(30, BF16) X(34, TQ1_0) X(35, TQ2_0) X(39, MXFP4) X(40, NVFP4) X(41, Q1_0) X(42, Q2_0)

namespace id {
#define QT_ID(number, name) inline constexpr int name = number;
QT_TYPES(QT_ID)
#undef QT_ID
}  // namespace id

inline constexpr int max_types = 64;  // ids are below this

struct Format { const char* name; uint16_t block_size, block_bytes; };  // name is null where the type holds no floats
struct Formats { Format of[max_types]; };

consteval Formats list_formats() {
    Formats f{};
#define QT_FORMAT(number, name) f.of[number] = {#name, block::name::size, sizeof(block::name)};
    QT_TYPES(QT_FORMAT)
#undef QT_FORMAT
    return f;
}
inline constexpr Formats formats = list_formats();
}  // namespace qt
