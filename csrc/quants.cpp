// Decoding and encoding whole tensors, by the threads of the current pool.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <atomic>

#include "arrays.h"
#include "pool.h"

namespace qt {
namespace {
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Written = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const Format& format_of(int type) {
    if (type < 0 || type >= max_types || !formats.of[type].name) refuse("type " + std::to_string(type) + " holds no floats.");
    return formats.of[type];
}

template <class T>
using Table = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;

// How many values of a block are a point of a codebook, or 0.
int values_of_point(int type) {
    switch (type) {
        case id::IQ3_XXS: case id::IQ3_S: return 4;
        case id::IQ2_XXS: case id::IQ2_XS: case id::IQ2_S: case id::IQ1_S: case id::IQ1_M: return 8;
        default: return 0;
    }
}

// How many blocks so many bytes are.
size_t blocks_of(const Format& f, size_t n_bytes, size_t n_values) {
    const size_t n = n_bytes / f.block_bytes;
    if (n_bytes % f.block_bytes || n_values != n * f.block_size)
        refuse(std::to_string(n_bytes) + " bytes of " + f.name + " and " + std::to_string(n_values) + " values do not fit each other.");
    return n;
}

// part(first, last) for ranges of n blocks, of about 65,536 values.
template <class F>
void share(const Format& f, size_t n, F part) {
    parallel(n, std::max<size_t>(1, 65536 / f.block_size), double(n * f.block_size), part);
}

void dequantize(Bytes data, int type, Written<float> out) {
    const Format& f = format_of(type);
    const size_t n = blocks_of(f, data.size(), out.size());
    const Decode decode = current_kernels().decode[type];
    const uint8_t* from = data.data();
    float* to = out.data();
    nb::gil_scoped_release released;
    share(f, n, [&](size_t i, size_t j) { decode(from + i * f.block_bytes, to + i * f.block_size, j - i); });
}

size_t quantize(Floats x, int type, Written<uint8_t> out, std::optional<Floats> importance, std::optional<Floats> power, std::optional<Table<uint16_t>> near_ids, std::optional<Table<int8_t>> near_values) {
    const Format& f = format_of(type);
    const size_t n = blocks_of(f, out.size(), x.size());
    const Encode encode = current_kernels().encode[type];
    if (!encode) refuse(std::string("nothing encodes ") + f.name + ".");
    EncodeJob job{x.data(), out.data(), nullptr, nullptr, n, nullptr, nullptr};
    if (const int values = values_of_point(type)) {
        const size_t places = values == 4 ? 4096 : 6561;  // 8 levels, 3 levels
        if (!near_ids || !near_values || near_ids->size() != places * 16 || near_values->size() != places * 16 * values) refuse(std::string(f.name) + " needs the tables of its codebook.");
        job.near_ids = near_ids->data(), job.near_values = near_values->data();
    }
    if (importance && n) {
        job.per_row = importance->size() / f.block_size;
        if (!job.per_row || importance->size() % f.block_size || n % job.per_row) refuse("importance is " + shape_of(*importance) + "; expected as many values as a row of x.");
        if (!power || power->size() != n / job.per_row) refuse("power must have a value for each row.");
        job.importance = importance->data(), job.power = power->data();
    }
    std::atomic<size_t> good = n;
    nb::gil_scoped_release released;
    share(f, n, [&](size_t i, size_t j) {
        const size_t end = encode(job, i, j);
        if (end == j) return;
        for (size_t seen = good; end < seen && !good.compare_exchange_weak(seen, end);) {}
    });
    return good;
}
}  // namespace

void bind_quants(nb::module_& m) {
    m.def("dequantize", &dequantize, nb::arg("data").noconvert(), nb::arg("type"), nb::arg("out").noconvert(), "Decode whole blocks of a type id into floats.");
    m.def("quantize", &quantize, nb::arg("x").noconvert(), nb::arg("type"), nb::arg("out").noconvert(), nb::arg("importance").noconvert().none() = nb::none(), nb::arg("power").noconvert().none() = nb::none(),
          nb::arg("near_ids").noconvert().none() = nb::none(), nb::arg("near_values").noconvert().none() = nb::none(),
          "Encode floats into whole blocks of a type id; returns the number of blocks before the first that the type cannot hold.");
    m.def("formats", [] {
        nb::dict rows;
        for (int id = 0; id < max_types; id++)
            if (const Format& f = formats.of[id]; f.name) rows[nb::int_(id)] = nb::make_tuple(f.name, f.block_size, f.block_bytes);
        return rows;
    }, "id -> (name, values a block, bytes a block) of every type that decodes to floats.");
}
}  // namespace qt
