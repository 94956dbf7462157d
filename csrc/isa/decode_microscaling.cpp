// See decode_microscaling.h.
#include "isa/decode_microscaling.h"

namespace qt::QT_ISA {
QT_DECODER(MXFP4)
QT_DECODER(NVFP4)
}  // namespace qt::QT_ISA
