// Chooses the instruction set at run time.
#include "isa.h"

#include <stdexcept>
#include <string>

namespace qt {
namespace generic { extern const Kernels table; }
#ifdef QT_HAS_avx2
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
#endif

namespace {
struct Choice { const Kernels* table; bool usable; };

// Best first.
const Choice* choices(int& n) {
    static const Choice list[] = {
#ifdef QT_HAS_avx2
        {&avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                             __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")},
        {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")},
#endif
        {&generic::table, true},
    };
    n = sizeof list / sizeof *list;
    return list;
}
}  // namespace

const Kernels& kernels(std::string_view isa) {
    int n;
    const Choice* list = choices(n);
    std::string usable;
    for (int i = 0; i < n; i++) {
        if (!list[i].usable) continue;
        if (isa.empty() || isa == list[i].table->name) return *list[i].table;
        usable += usable.empty() ? "" : ", ";
        usable += list[i].table->name;
    }
    throw std::invalid_argument("instruction set '" + std::string(isa) + "' is not available here; expected one of " + usable + ".");
}
}  // namespace qt
