// The table of one instruction set.
#include "isa.h"

namespace qt::QT_ISA {
#define QT_STRING2(x) #x
#define QT_STRING(x) QT_STRING2(x)
extern const Kernels table;
constinit const Kernels table = {.name = QT_STRING(QT_ISA), .decode = {}};
}  // namespace qt::QT_ISA
