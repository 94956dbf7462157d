// What each instruction set provides. csrc/isa/*.cpp is compiled once per set, inside namespace qt::QT_ISA, and fills one table.
// Those files must not instantiate std templates or call inline functions shared with others: the linker keeps one copy,
// which may hold instructions that an older machine lacks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "blocks.h"
#include "isa/gemm.h"
#include "isa/gemv.h"
#include "jobs.h"

namespace qt {

struct Kernels {
    const char* name;
    Decode decode[max_types];  // by type id, null where a type holds no floats
    Encode encode[max_types];  // by type id, null where a type needs more than rounding
    Linear linear[n_regimes][max_types];
    const Gemv* gemv;  // integer products by type id, where this instruction set has them, else null
    const Gemm* gemm;
    RmsNorm rms_norm;
    Gate gate[n_activations];
    LayerNorm layer_norm;
    Activate activate;
    Rope rope;
    Attend attend;
    AttendFinish attend_finish;
    KvStore kv_store;
    Delta delta;
    Conv conv;
    Scan scan;
    Histogram histogram;
    Tally tally;
    Divide divide;
    Collect collect;
    Keep keep;
    Distances distances;
    MomentsOf moments;
    Weigh weigh;
    uint64_t (*read_all)(const uint8_t* p, size_t n);  // limits.cpp
    double (*multiply_all)(size_t rounds);
};

const char* isa_name(size_t i);                // the i-th that this machine can run, best first; null past the last
bool has_bf16();                               // AVX512_BF16
const Kernels& kernels(std::string_view isa);  // "" is the best this machine has; throws std::invalid_argument otherwise
}  // namespace qt
