// The table of one instruction set.
#include "isa/decode.h"

namespace qt::QT_ISA {
#define QT_STRING2(x) #x
#define QT_STRING(x) QT_STRING2(x)

static consteval Kernels fill() {
    Kernels k{.name = QT_STRING(QT_ISA), .decode = {}};
#define QT_DECODES(id, name) k.decode[id] = decode_##name;
    QT_TYPES(QT_DECODES)
#undef QT_DECODES
    return k;
}

extern const Kernels table;
constinit const Kernels table = fill();
}  // namespace qt::QT_ISA
