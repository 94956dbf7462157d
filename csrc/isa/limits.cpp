// What the machine can do at most: the figures beside which speeds mean something.
#include "isa/ops.h"
#include "isa/vec.h"

namespace qt::QT_ISA {

// Touches every byte and does nothing else; the sum keeps the reads from being left out.
uint64_t read_all(const uint8_t* p, size_t n) {
    typedef uint64_t W __attribute__((vector_size(4 * VL)));
    W a{}, b{};
    size_t i = 0;
    for (; i + 2 * sizeof(W) <= n; i += 2 * sizeof(W)) a ^= get<W>(p + i), b ^= get<W>(p + i + sizeof(W));
    a ^= b;
    uint64_t sum = 0;
    for (size_t k = 0; k < sizeof(W) / 8; k++) sum ^= a[k];
    for (; i < n; i++) sum ^= p[i];
    return sum;
}

// Twelve independent chains of the instruction that products live on; returns multiplications and additions done.
double multiply_all(size_t rounds) {
#ifdef QT_ISA_avx512
    for (size_t i = 0; i < rounds; i++) {
#define QT_STEP(r) "vpdpbusd %%zmm31, %%zmm31, %%zmm" #r "\n\t"
        asm volatile(QT_STEP(16) QT_STEP(17) QT_STEP(18) QT_STEP(19) QT_STEP(20) QT_STEP(21) QT_STEP(22) QT_STEP(23) QT_STEP(24) QT_STEP(25) QT_STEP(26) QT_STEP(27)::
                         : "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27");
#undef QT_STEP
    }
    return double(rounds) * 12 * 64 * 2;
#else
    V acc[12] = {}, x = all(1.0f);
    for (size_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < 12; k++) {
            acc[k] = fma(x, x, acc[k]);
#if defined(__x86_64__)
            asm volatile("" : "+x"(acc[k]));
#endif
        }
    }
    asm volatile("" : : "m"(acc));
    return double(rounds) * 12 * VL * 2;
#endif
}
}  // namespace qt::QT_ISA
