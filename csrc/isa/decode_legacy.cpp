// See decode_legacy.h.
#include "isa/decode_legacy.h"

namespace qt::QT_ISA {

void decode_F32(const uint8_t* blocks, float* out, size_t n_blocks) { __builtin_memcpy(out, blocks, 4 * n_blocks); }

void decode_F16(const uint8_t* blocks, float* out, size_t n_blocks) {
    size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n_blocks; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks + 2 * i))));
#endif
    for (; i < n_blocks; i++) out[i] = widen(load<f16>(blocks + 2 * i));
}

void decode_BF16(const uint8_t* blocks, float* out, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++) out[i] = bits<float>(uint32_t(load<uint16_t>(blocks + 2 * i)) << 16);
}

void decode_F64(const uint8_t* blocks, float* out, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++) out[i] = float(load<double>(blocks + 8 * i));
}

QT_DECODER(Q4_0)
QT_DECODER(Q4_1)
QT_DECODER(Q5_0)
QT_DECODER(Q5_1)
QT_DECODER(Q8_0)
QT_DECODER(Q8_1)
QT_DECODER(Q1_0)
QT_DECODER(Q2_0)
}  // namespace qt::QT_ISA
