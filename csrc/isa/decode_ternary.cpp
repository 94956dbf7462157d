// See decode_ternary.h.
#include "isa/decode_ternary.h"

namespace qt::QT_ISA {
QT_DECODER(TQ1_0)
QT_DECODER(TQ2_0)
}  // namespace qt::QT_ISA
