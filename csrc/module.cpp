// The extension module: each part binds itself.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "arrays.h"
#include "isa.h"

namespace nb = nanobind;

namespace qt {
void bind_bpe(nb::module_& m);
void bind_experts(nb::module_& m);
void bind_faults(nb::module_& m);
void bind_gguf(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_linear(nb::module_& m);
void bind_recurrent(nb::module_& m);
void bind_rows(nb::module_& m);
void bind_limits(nb::module_& m);
void bind_penalties(nb::module_& m);
void bind_pool(nb::module_& m);
void bind_quants(nb::module_& m);
void bind_sampling(nb::module_& m);
}

NB_MODULE(_native, m) {
    m.doc() = "C++ kernels of qtransformers";
    nb::set_leak_warnings(false);  // a tokenizer in somebody's cache lives as long as the interpreter: nothing to tell a user
    m.def("isa", [](const std::string& isa) {
        try {
            return std::string(qt::kernels(isa).name);
        } catch (const std::invalid_argument& e) {
            qt::refuse(e.what());
        }
    }, nb::arg("isa") = "", "The instruction set that `isa` selects (empty: the best here). ConfigError where there is none such.");
    m.def("isas", [] {
        nb::list names;
        for (size_t i = 0; qt::isa_name(i); i++) names.append(qt::isa_name(i));
        return names;
    }, "The instruction sets that this machine can run, best first.");
    m.def("has_bf16", &qt::has_bf16, "Whether this machine multiplies bfloat16: what products of many tokens with plain floats use at `fast`.");
    qt::bind_gguf(m);
    qt::bind_faults(m);
    qt::bind_bpe(m);
    qt::bind_quants(m);
    qt::bind_pool(m);
    qt::bind_linear(m);
    qt::bind_recurrent(m);
    qt::bind_rows(m);
    qt::bind_attention(m);
    qt::bind_experts(m);
    qt::bind_limits(m);
    qt::bind_sampling(m);
    qt::bind_penalties(m);
}
