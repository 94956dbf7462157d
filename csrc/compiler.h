// What the kernels ask of the compiler.
#pragma once
#define QT_INLINE inline __attribute__((always_inline))  // never a copy for the linker to choose from, see isa.h
#define QT_UNROLL _Pragma("GCC unroll 16")
