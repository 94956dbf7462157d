// The operations of this instruction set, for its table.
#pragma once
#include "isa/gemm.h"
#include "isa/gemv.h"
#include "jobs.h"

namespace qt::QT_ISA {
void linear_decoded(const LinearJob&, size_t r0, size_t r1, size_t t0, size_t t1, float* tile);
void rms_norm(const float* x, const float* weight, double eps, float* out, size_t rows, size_t n);
void swiglu(const float* gate, const float* up, float* out, size_t n);
void rope(const RopeJob&, size_t t0, size_t t1, float* turns);
void attend(const AttendJob&, size_t kv_head, size_t row, size_t n, size_t segment, float* state, float* scratch);
extern const GemvTable gemv_table;
extern const GemmTable gemm_table;
}  // namespace qt::QT_ISA
