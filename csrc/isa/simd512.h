// AVX-512 words for the kernels of this folder.
#pragma once
#include <immintrin.h>

#include "isa/decode.h"

namespace qt::QT_ISA {
using Z = __m512i;
using V = __m512;

QT_INLINE Z load512(const void* p) { return _mm512_loadu_si512(p); }
// The compiler folds a load into every use, and an unaligned 512-bit load costs 1.5 cycles each time: load once and keep it.
QT_INLINE Z keep(Z x) {
    asm("" : "+v"(x));
    return x;
}
QT_INLINE Z once(const void* p) { return keep(load512(p)); }
QT_INLINE Z twice(const void* p) { return keep(_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p))); }
QT_INLINE Z four(const void* p) { return keep(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p))); }
QT_INLINE Z b8(int x) { return _mm512_set1_epi8((char)x); }
QT_INLINE Z right(Z x, int n) { return _mm512_srli_epi16(x, (unsigned)n); }
QT_INLINE Z mask_or(Z a, Z m, Z c) { return _mm512_ternarylogic_epi32(a, m, c, 0xea); }  // (a & m) | c
QT_INLINE V bcast(const float* p) { return _mm512_set1_ps(*p); }

// Constants from a formula, kept in registers.
template <class F> QT_INLINE Z bytes(F f) {
    alignas(64) uint8_t c[64];
    for (int i = 0; i < 64; i++) c[i] = (uint8_t)f(i);
    return once(c);
}
template <class F> QT_INLINE Z words(F f) {
    alignas(64) uint16_t c[32];
    for (int i = 0; i < 32; i++) c[i] = (uint16_t)f(i);
    return once(c);
}
template <class F> QT_INLINE Z dwords(F f) {
    alignas(64) uint32_t c[16];
    for (int i = 0; i < 16; i++) c[i] = (uint32_t)f(i);
    return once(c);
}

// Forces a value through memory: a broadcast load is free, where the compiler would make two shuffles of it.
template <class A> QT_INLINE void spill(A& a) { asm volatile("" : "+m"(a)); }

// Into L2, never L1: a core has about 24 L1 miss buffers, and at DRAM latency that is 10-15 GB/s.
QT_INLINE void prefetch(const uint8_t*& p, int n) {
    for (int k = 0; k < n; k += 64) _mm_prefetch((const char*)p + k, _MM_HINT_T2);
    // Fetches into L2 are dropped where the page is not at hand, which one into L1 finds first: small pages lie scattered.
    _mm_prefetch((const char*)((uintptr_t)p | 4095) + 8193, _MM_HINT_T0);
    p += n;
}
}  // namespace qt::QT_ISA
