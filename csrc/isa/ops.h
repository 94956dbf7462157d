// The operations of this instruction set, for its table.
#pragma once
#include "isa/gemm.h"
#include "isa/gemv.h"
#include "jobs.h"

// Types with a kernel of their own for few tokens.
#define QT_FEW_TYPES(X) X(F16) X(Q4_0) X(Q8_0) X(Q4_K) X(Q5_K) X(Q6_K) X(BF16)

namespace qt::QT_ISA {
#define QT_DECLARE(name) void linear_few_##name(const LinearJob&, size_t r0, size_t r1, size_t t0, size_t t1, float* tile);
QT_FEW_TYPES(QT_DECLARE)
#undef QT_DECLARE
void linear_decoded(const LinearJob&, size_t r0, size_t r1, size_t t0, size_t t1, float* tile);
void rms_norm(const float* x, const float* weight, double eps, float* out, size_t rows, size_t n);
void gate_silu(const float* gate, const float* up, float* out, size_t n);
void gate_gelu(const float* gate, const float* up, float* out, size_t n);
void gate_gpt_oss(const float* gate, const float* up, float* out, size_t n);
void layer_norm(const float* x, const float* weight, const float* bias, double eps, float* out, size_t rows, size_t n);
void activate(int kind, const float* x, const float* up, float* out, size_t n);
void rope(const RopeJob&, size_t t0, size_t t1, float* turns);
void attend(const AttendJob&, size_t kv_head, size_t row, size_t n, size_t begin, size_t end, float* state, float* scratch);
void attend_finish(const AttendJob&, size_t kv_head, size_t row, size_t n, const float* state, float* out);
void kv_store(const AttendJob&, size_t kv_head, size_t position, const float* k, const float* v, float* scratch);
void delta(const DeltaJob&, size_t head, size_t c0, size_t c1, float* state, float* scratch);
void conv(const ConvJob&, size_t t0, size_t t1, size_t c0, size_t c1, float* scratch);
Extremes scan(const float* x, size_t n);
void histogram(const float* keys, const float* x, size_t n, const Range&, double top, double* bins);
void tally(const float* keys, size_t n, size_t every, const Range&, uint32_t* bins);
Parts divide(const float* x, size_t n, double top, bool energy, const Ends&, float* out);
size_t collect(const float* keys, size_t n, const Range&, int32_t bin, int32_t* at);
size_t keep(const float* keys, const float* x, const int32_t* ids, size_t n, Cut, float* out_x, int32_t* out_ids);
void distances(const float* x, size_t n, double centre, float* out);
Moments moments(const float* x, size_t n, double top);
Mass weigh(const float* x, size_t n, double top, double factor, bool energy, double* weights);
uint64_t read_all(const uint8_t* p, size_t n);
double multiply_all(size_t rounds);
extern const GemvTable gemv_table;
extern const GemmTable gemm_table;
}  // namespace qt::QT_ISA
