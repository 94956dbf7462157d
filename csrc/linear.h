// Matrices where they lie, and several products of one input in one sharing of the work.
#pragma once
#include <optional>
#include <vector>

#include "arrays.h"
#include "isa.h"

namespace qt {
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A matrix [rows, cols] as it lies in the file.
struct Matrix {
    const uint8_t* data;
    int type;
    size_t rows, cols, row_bytes;
    int planes;  // int8 planes of x in a product; 0: floats only
    const Format& format() const { return formats.of[type]; }
};

// A matrix, or several of one shape below each other, kept where they lie by their tensor.
struct Weight : Matrix {
    nb::object tensor;
    Bytes bytes;

    Weight(nb::object tensor, Bytes bytes, int type, size_t rows, size_t cols, int planes);
    std::string name() const { return nb::cast<std::string>(tensor.attr("name")); }
    std::string shape() const { return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]"; }
};

// y[T][w.rows] = x[T][w.cols] w^T + bias; with a gate, act(x gate^T + gate_bias, that).
struct Factor {
    const float* x;
    size_t T;
    Matrix w;
    const float* bias;  // [w.rows] or null
    float* y;
    Matrix gate{};  // of w's shape, or none
    const float* gate_bias = nullptr;
    Activation act = silu;
};
Activation activation(const std::string& name);  // ConfigError listing them for another

// All of them, on the threads of the current pool; the caller has released the GIL. Where neighbours have the same x, it is packed once.
void multiply(const std::vector<Factor>& factors);
}  // namespace qt
