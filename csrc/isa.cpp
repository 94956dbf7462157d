// Chooses the instruction set at run time.
#include "isa.h"

#include <stdexcept>
#include <string>

#if defined(QT_HAS_dotprod) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(QT_HAS_dotprod) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace qt {
namespace generic { extern const Kernels table; }
#ifdef QT_HAS_avx2
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
#endif
#ifdef QT_HAS_dotprod
namespace dotprod { extern const Kernels table; }
#endif

namespace {
#ifdef QT_HAS_dotprod
bool has_dotprod() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has;
#else
    return false;
#endif
}
#endif

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
#ifdef QT_HAS_dotprod
        {&dotprod::table, has_dotprod()},
#endif
        {&generic::table, true},
    };
    n = sizeof list / sizeof *list;
    return list;
}
}  // namespace

const char* isa_name(size_t i) {
    int n;
    const Choice* list = choices(n);
    for (int k = 0; k < n; k++)
        if (list[k].usable && !i--) return list[k].table->name;
    return nullptr;
}

const Kernels& kernels(std::string_view isa) {
    int n;
    const Choice* list = choices(n);
    const char* why = "";
    for (int i = 0; i < n; i++) {
        if (!isa.empty() && isa != list[i].table->name) continue;
        if (list[i].usable) return *list[i].table;
        if (!isa.empty()) why = ", for this processor lacks its instructions";
    }
    std::string usable;
    for (size_t i = 0; isa_name(i); i++) usable += (i ? ", " : "") + std::string(isa_name(i));
    throw std::invalid_argument("instruction set '" + std::string(isa.substr(0, 60)) + "' is not available here" + why + "; expected one of " + usable + ".");
}
}  // namespace qt
