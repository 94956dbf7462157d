// The table of one instruction set.
#include "isa/decode.h"
#include "isa/encode.h"
#include "isa/ops.h"

namespace qt::QT_ISA {
#define QT_STRING2(x) #x
#define QT_STRING(x) QT_STRING2(x)

#if defined(__AVX2__) || defined(__aarch64__)
constexpr const Gemm* gemm = gemm_table.of;
#else
constexpr const Gemm* gemm = nullptr;  // without a product of bytes, many tokens are as fast in floats
#endif

static consteval Kernels fill() {
    Kernels k{.name = QT_STRING(QT_ISA), .decode = {}, .encode = {}, .linear = {}, .gemv = gemv_table.of, .gemm = gemm, .rms_norm = rms_norm, .gate = {gate_silu, gate_gelu, gate_gpt_oss}, .layer_norm = layer_norm, .activate = activate, .rope = rope, .attend = attend, .read_all = read_all, .multiply_all = multiply_all};
    k.attend_finish = attend_finish, k.kv_store = kv_store;
    k.delta = delta, k.conv = conv;
    k.scan = scan, k.histogram = histogram, k.tally = tally, k.divide = divide, k.collect = collect, k.keep = keep;
    k.distances = distances, k.moments = moments, k.weigh = weigh;
#define QT_SERVES(number, name)       \
    k.decode[number] = decode_##name; \
    k.linear[one_token][number] = k.linear[few_tokens][number] = k.linear[many_tokens][number] = linear_decoded;
    QT_TYPES(QT_SERVES)
#undef QT_SERVES
#define QT_FEW(name) k.linear[one_token][id::name] = k.linear[few_tokens][id::name] = linear_few_##name;
    QT_FEW_TYPES(QT_FEW)
#undef QT_FEW
#define QT_ENCODES(name) k.encode[id::name] = encode_##name;
    QT_ENCODED_TYPES(QT_ENCODES)
#undef QT_ENCODES
    return k;
}

extern const Kernels table;
constinit const Kernels table = fill();
}  // namespace qt::QT_ISA
