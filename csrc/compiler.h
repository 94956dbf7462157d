// What the kernels ask of the compiler.
#pragma once
#define QT_INLINE inline __attribute__((always_inline))  // never a copy for the linker to choose from, see isa.h
#define QT_UNROLL _Pragma("GCC unroll 16")
// The vectors of 512 bits; the set of processors that have the instructions for them, but not all of ours, keeps to 256.
#if defined(__AVX512F__) && !defined(QT_ISA_avx512vnni)
#define QT_512 1
#endif
