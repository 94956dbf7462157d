// The table of one instruction set.
#include "isa/decode.h"
#include "isa/encode.h"
#include "isa/ops.h"

namespace qt::QT_ISA {
#define QT_STRING2(x) #x
#define QT_STRING(x) QT_STRING2(x)

#ifdef QT_ISA_avx512
constexpr const Gemv* gemv = gemv_table.of;
constexpr const Gemm* gemm = gemm_table.of;
#else
constexpr const Gemv* gemv = nullptr;
constexpr const Gemm* gemm = nullptr;
#endif

static consteval Kernels fill() {
    Kernels k{.name = QT_STRING(QT_ISA), .decode = {}, .encode = {}, .linear = {}, .gemv = gemv, .gemm = gemm, .rms_norm = rms_norm, .swiglu = swiglu, .rope = rope, .attend = attend, .read_all = read_all, .multiply_all = multiply_all};
#define QT_SERVES(id, name)        \
    k.decode[id] = decode_##name; \
    k.linear[one_token][id] = k.linear[few_tokens][id] = k.linear[many_tokens][id] = linear_decoded;
    QT_TYPES(QT_SERVES)
#undef QT_SERVES
#define QT_FEW(id, name) k.linear[one_token][id] = k.linear[few_tokens][id] = linear_few_##name;
    QT_FEW_TYPES(QT_FEW)
#undef QT_FEW
#define QT_ENCODES(id, name) k.encode[id] = encode_##name;
    QT_ENCODED_TYPES(QT_ENCODES)
#undef QT_ENCODES
    return k;
}

extern const Kernels table;
constinit const Kernels table = fill();
}  // namespace qt::QT_ISA
