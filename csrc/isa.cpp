// Chooses the instruction set at run time.
#include "isa.h"

#include <stdexcept>
#include <string>

#ifdef QT_HAS_avx2
#include <cpuid.h>
#endif
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
namespace avx512vnni {
extern const GemmTable gemm_table;
double multiply_all(size_t rounds);
}
#endif
#ifdef QT_HAS_avxvnni
namespace avxvnni {
extern const GemmTable gemm_table;
double multiply_all(size_t rounds);
}
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

#ifdef QT_HAS_avx2
// Asked of the processor itself: what compilers offer for it differs in names, and on Windows wants a library of its own.
struct Leaf { unsigned a = 0, b = 0, c = 0, d = 0; };

Leaf leaf(unsigned number, unsigned part = 0) {
    Leaf found;
    __get_cpuid_count(number, part, &found.a, &found.b, &found.c, &found.d);  // zeros where there is none
    return found;
}

// Whether the system saves these registers, too: bits of XCR0.
bool saves(unsigned registers) {
    if (!(leaf(1).c >> 27 & 1)) return false;  // OSXSAVE
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & registers) == registers;
}

bool has_avx2() {
    const unsigned one = 1u << 12 | 1u << 28 | 1u << 29;  // FMA, AVX, F16C
    const unsigned seven = 1u << 5 | 1u << 8;  // AVX2, BMI2
    return saves(0x06) && (leaf(1).c & one) == one && (leaf(7).b & seven) == seven;
}

bool has_avx512vnni() {
    const unsigned b = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    return has_avx2() && saves(0xe6) && (leaf(7).b & b) == b && leaf(7).c >> 11 & 1;
}

bool has_avx512() { return has_avx512vnni() && leaf(7).c >> 1 & 1; }  // VBMI, too

bool has_avxvnni() { return has_avx2() && leaf(7).a >= 1 && leaf(7, 1).a >> 4 & 1; }

// avx2 but for its products of many tokens.
Kernels with_products(const char* name, const Gemm* gemm, double (*multiply_all)(size_t)) {
    Kernels k = avx2::table;
    k.name = name, k.gemm = gemm, k.multiply_all = multiply_all;
    return k;
}
#endif

struct Choice { const Kernels* table; bool usable; };

// Best first. The processor is asked once: on a virtual machine the host answers, which takes 20 us.
const Choice* choices(int& n) {
#ifdef QT_HAS_avx2
    static const Kernels vnni_evex = with_products("avx512vnni", avx512vnni::gemm_table.of, avx512vnni::multiply_all);
#endif
#ifdef QT_HAS_avxvnni
    static const Kernels vnni_vex = with_products("avxvnni", avxvnni::gemm_table.of, avxvnni::multiply_all);
#endif
    static const Choice list[] = {
#ifdef QT_HAS_avx2
        {&avx512::table, has_avx512()},
        {&vnni_evex, has_avx512vnni()},
#endif
#ifdef QT_HAS_avxvnni
        {&vnni_vex, has_avxvnni()},
#endif
#ifdef QT_HAS_avx2
        {&avx2::table, has_avx2()},
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

bool has_bf16() {
#ifdef QT_HAS_avx2
    return leaf(7, 1).a >> 5 & 1;
#else
    return false;
#endif
}

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
