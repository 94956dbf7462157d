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

#define QT_TWELVE(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)
#define QT_USED(r) r "0", r "1", r "2", r "3", r "4", r "5", r "6", r "7", r "8", r "9", r "10", r "11", r "12"

// Twelve independent chains of the instructions that products of byte codes live on (dot8.h), settling left out; returns
// multiplications and additions done. In assembly, for compilers drop sums that nobody reads and keep others in memory.
double multiply_all(size_t rounds) {
#if defined(QT_ISA_avx512)
    constexpr double at_once = 64;
#define QT_STEP(r) "vpdpbusd %%zmm15, %%zmm15, %%zmm" #r "\n\t"
    for (size_t i = 0; i < rounds; i++) asm volatile(QT_TWELVE(QT_STEP)::: QT_USED("xmm"));
    asm volatile("vzeroupper");
#elif defined(QT_ISA_avx512vnni) || defined(QT_ISA_avxvnni)
    constexpr double at_once = 32;
#if defined(QT_ISA_avxvnni)
#define QT_STEP(r) "%{vex%} vpdpbusd %%ymm15, %%ymm15, %%ymm" #r "\n\t"
#else
#define QT_STEP(r) "%{evex%} vpdpbusd %%ymm15, %%ymm15, %%ymm" #r "\n\t"
#endif
    for (size_t i = 0; i < rounds; i++) asm volatile(QT_TWELVE(QT_STEP)::: QT_USED("xmm"));
    asm volatile("vzeroupper");
#elif defined(__AVX2__)
    constexpr double at_once = 32;
#define QT_STEP(r) "vpmaddubsw %%ymm15, %%ymm15, %%ymm12\n\tvpaddw %%ymm12, %%ymm" #r ", %%ymm" #r "\n\t"
    for (size_t i = 0; i < rounds; i++) asm volatile(QT_TWELVE(QT_STEP)::: QT_USED("xmm"));
    asm volatile("vzeroupper");
#elif defined(__SSE2__)
    constexpr double at_once = 8;
#define QT_STEP(r) "movdqa %%xmm15, %%xmm12\n\tpmaddwd %%xmm15, %%xmm12\n\tpaddd %%xmm12, %%xmm" #r "\n\t"
    for (size_t i = 0; i < rounds; i++) asm volatile(QT_TWELVE(QT_STEP)::: QT_USED("xmm"));
#elif defined(__ARM_FEATURE_DOTPROD)
    constexpr double at_once = 16;
#define QT_STEP(r) "sdot v" #r ".4s, v31.16b, v31.16b\n\t"
    for (size_t i = 0; i < rounds; i++) asm volatile(QT_TWELVE(QT_STEP)::: QT_USED("v"));
#elif defined(__aarch64__)
    constexpr double at_once = 8;
#define QT_STEP(r) "smlal v" #r ".8h, v31.8b, v31.8b\n\t"
    for (size_t i = 0; i < rounds; i++) asm volatile(QT_TWELVE(QT_STEP)::: QT_USED("v"));
#else
    constexpr double at_once = VL;
    I sums[12] = {};
    for (size_t i = 0; i < rounds; i++)
        for (I& sum : sums) sum = sum * int32_t(i | 1) + 1;
    asm volatile("" : : "m"(sums));
#endif
    return double(rounds) * 12 * at_once * 2;
}
#undef QT_STEP
#undef QT_TWELVE
#undef QT_USED
}  // namespace qt::QT_ISA
