// Matrices where they lie, and several products of one input in one sharing of the work.
#pragma once
#include <optional>
#include <vector>

#include "arrays.h"
#include "isa.h"

namespace qt {
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A matrix [rows, cols] as it lies in the file, kept there by its tensor.
struct Weight {
    nb::object tensor;
    Bytes data;
    int type;
    size_t rows, cols, row_bytes;
    int planes;  // int8 planes of x in a product; 0: floats only

    Weight(nb::object tensor, Bytes data, int type, size_t rows, size_t cols, int planes);
    const Format& format() const { return formats.of[type]; }
    std::string name() const { return nb::cast<std::string>(tensor.attr("name")); }
    std::string shape() const { return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]"; }
};

// y[T][w.rows] = x[T][w.cols] w^T + bias, where each pair of `w` and `y` is one product.
struct Factor {
    const Weight* w;
    const float* bias;  // [w.rows] or null
    float* y;
};
// All of them, on the threads of the current pool; the caller has released the GIL. Every w has the columns of x.
void multiply(const float* x, size_t T, const std::vector<Factor>& factors);
}  // namespace qt
