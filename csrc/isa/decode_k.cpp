// See decode_k.h.
#include "isa/decode_k.h"

namespace qt::QT_ISA {
QT_DECODER(Q2_K)
QT_DECODER(Q3_K)
QT_DECODER(Q4_K)
QT_DECODER(Q5_K)
QT_DECODER(Q6_K)
QT_DECODER(Q8_K)
}  // namespace qt::QT_ISA
