// Decoding and encoding whole tensors: threads over ranges of blocks.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "isa.h"

namespace nb = nanobind;

namespace qt {
namespace {
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using InFloats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using InBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Calls part(first, last) for even ranges of n, one a thread, this one included.
template <class F>
void split(size_t n, int threads, F part) {
    const size_t step = (n + threads - 1) / std::max(threads, 1);
    std::vector<std::jthread> others;
    size_t i = step;
    try {
        for (; i < n; i += step) others.emplace_back(part, i, std::min(i + step, n));
    } catch (const std::system_error&) {  // the system gives no more threads: the rest is done here
        part(i, n);
    }
    if (n) part(0, std::min(step, n));
}

const Format& format_of(int type) {
    if (type < 0 || type >= max_types || !formats.of[type].name) throw std::invalid_argument("type " + std::to_string(type) + " holds no floats");
    return formats.of[type];
}

void fit(const Format& f, size_t n_bytes, size_t n_values) {
    if (n_bytes % f.block_bytes || n_values != n_bytes / f.block_bytes * f.block_size)
        throw std::invalid_argument(std::to_string(n_bytes) + " bytes of " + f.name + " and " + std::to_string(n_values) + " values do not fit each other");
}

void dequantize(InBytes data, int type, Floats out, int threads, const std::string& isa) {
    const Format& f = format_of(type);
    fit(f, data.size(), out.size());
    const Decode decode = kernels(isa).decode[type];
    const uint8_t* from = data.data();
    float* to = out.data();
    nb::gil_scoped_release released;
    split(data.size() / f.block_bytes, threads, [=, &f](size_t i, size_t j) { decode(from + i * f.block_bytes, to + i * f.block_size, j - i); });
}

size_t quantize(InFloats x, int type, Bytes out, int threads, const std::string& isa) {
    const Format& f = format_of(type);
    fit(f, out.size(), x.size());
    const Encode encode = kernels(isa).encode[type];
    if (!encode) throw std::invalid_argument(std::string("nothing encodes ") + f.name);
    const float* from = x.data();
    uint8_t* to = out.data();
    const size_t n = out.size() / f.block_bytes;
    std::atomic<size_t> good = n;
    nb::gil_scoped_release released;
    split(n, threads, [=, &f, &good](size_t i, size_t j) {
        const size_t end = i + encode(from + i * f.block_size, to + i * f.block_bytes, j - i);
        if (end == j) return;
        for (size_t seen = good; end < seen && !good.compare_exchange_weak(seen, end);) {}
    });
    return good;
}
}  // namespace

void bind_quants(nb::module_& m) {
    m.def("dequantize", &dequantize, nb::arg("data").noconvert(), nb::arg("type"), nb::arg("out").noconvert(), nb::arg("threads") = 1, nb::arg("isa") = "",
          "Decode whole blocks of a type id into floats.");
    m.def("quantize", &quantize, nb::arg("x").noconvert(), nb::arg("type"), nb::arg("out").noconvert(), nb::arg("threads") = 1, nb::arg("isa") = "",
          "Encode floats into whole blocks of a type id; returns the number of blocks before the first that the type cannot hold.");
    m.def("formats", [] {
        nb::dict rows;
        for (int id = 0; id < max_types; id++)
            if (const Format& f = formats.of[id]; f.name) rows[nb::int_(id)] = nb::make_tuple(f.name, f.block_size, f.block_bytes);
        return rows;
    }, "id -> (name, values a block, bytes a block) of every type that decodes to floats.");
}
}  // namespace qt
