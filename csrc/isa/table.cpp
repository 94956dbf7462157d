// The table of one instruction set.
#include "isa/decode.h"
#include "isa/encode.h"
#include "isa/ops.h"

namespace qt::QT_ISA {
#define QT_STRING2(x) #x
#define QT_STRING(x) QT_STRING2(x)

static consteval Kernels fill() {
    Kernels k{.name = QT_STRING(QT_ISA), .decode = {}, .encode = {}, .linear = {}, .rms_norm = rms_norm, .swiglu = swiglu, .rope = rope, .attend = attend, .to_half = to_half};
#define QT_DECODES(id, name) k.decode[id] = decode_##name;
    QT_TYPES(QT_DECODES)
#undef QT_DECODES
#define QT_ENCODES(id, name) k.encode[id] = encode_##name;
    QT_ENCODED_TYPES(QT_ENCODES)
#undef QT_ENCODES
    for (auto& linear : k.linear)
        for (int id = 0; id < max_types; id++) linear[id] = k.decode[id] ? linear_decoded : nullptr;
    return k;
}

extern const Kernels table;
constinit const Kernels table = fill();
}  // namespace qt::QT_ISA
