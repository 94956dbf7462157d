// Decoding whole tensors: threads over ranges of blocks.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <vector>

#include "isa.h"

namespace nb = nanobind;

namespace qt {
namespace {
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Calls part(first, last) for even ranges of n, one a thread, this one included.
template <class F>
void split(size_t n, int threads, F part) {
    const size_t step = (n + threads - 1) / std::max(threads, 1);
    std::vector<std::jthread> others;
    for (size_t i = step; i < n; i += step) others.emplace_back(part, i, std::min(i + step, n));
    if (n) part(0, std::min(step, n));
}

const Format& format_of(int type) {
    if (type < 0 || type >= max_types || !formats.of[type].name) throw std::invalid_argument("type " + std::to_string(type) + " holds no floats");
    return formats.of[type];
}

void dequantize(Bytes data, int type, Floats out, int threads, const std::string& isa) {
    const Format& f = format_of(type);
    const size_t n = data.size() / f.block_bytes;
    if (data.size() % f.block_bytes || out.size() != n * f.block_size) throw std::invalid_argument("data and out do not fit the type");
    const Decode decode = kernels(isa).decode[type];
    const uint8_t* from = data.data();
    float* to = out.data();
    nb::gil_scoped_release released;
    split(n, threads, [=, &f](size_t i, size_t j) { decode(from + i * f.block_bytes, to + i * f.block_size, j - i); });
}
}  // namespace

void bind_quants(nb::module_& m) {
    m.def("dequantize", &dequantize, nb::arg("data").noconvert(), nb::arg("type"), nb::arg("out").noconvert(), nb::arg("threads") = 1, nb::arg("isa") = "",
          "Decode whole blocks of a type id into floats.");
    m.def("formats", [] {
        nb::dict rows;
        for (int id = 0; id < max_types; id++)
            if (const Format& f = formats.of[id]; f.name) rows[nb::int_(id)] = nb::make_tuple(f.name, f.block_size, f.block_bytes);
        return rows;
    }, "id -> (name, values a block, bytes a block) of every type that decodes to floats.");
}
}  // namespace qt
