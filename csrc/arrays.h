// Arrays in and out of Python, and errors in the library's own family.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <new>
#include <string>

#include "spare.h"

namespace qt {
namespace nb = nanobind;

// Of the pool that the calling thread has entered, or null (pool.cpp).
const std::shared_ptr<Spare>& current_spare();

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;   // converted once where it is another real type
using Ints = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<nb::numpy, float>;

// Raises qtransformers.errors.ConfigError; the caller holds the GIL.
[[noreturn]] inline void refuse(const std::string& message) {
    PyErr_SetString(nb::module_::import_("qtransformers.errors").attr("ConfigError").ptr(), message.c_str());
    throw nb::python_error();
}

template <class Array>
std::string shape_of(const Array& a) {
    std::string s = "[";
    for (size_t i = 0; i < a.ndim(); i++) s += (i ? ", " : "") + std::to_string(a.shape(i));
    return s + "]";
}

// ConfigError unless `a` has the shape; -1 stands for any size.
template <class Array>
void expect(const char* what, const Array& a, std::initializer_list<int64_t> shape) {
    bool same = a.ndim() == shape.size();
    for (size_t i = 0; same && i < shape.size(); i++) same = shape.begin()[i] < 0 || int64_t(a.shape(i)) == shape.begin()[i];
    if (same) return;
    std::string expected;
    for (int64_t n : shape) expected += (expected.empty() ? "" : ", ") + (n < 0 ? std::string("any") : std::to_string(n));
    refuse(std::string(what) + " is " + shape_of(a) + "; expected [" + expected + "].");
}

// ConfigError unless `starts` [n] cuts T rows into n - 1 sequences.
inline void check_starts(const int32_t* starts, size_t n, size_t T) {
    if (!n || starts[0] != 0 || starts[n - 1] != int64_t(T))
        refuse("starts runs " + (n ? "from " + std::to_string(starts[0]) + " to " + std::to_string(starts[n - 1]) : std::string("nowhere")) + "; expected 0 to " + std::to_string(T) + ".");
    for (size_t s = 0; s + 1 < n; s++)
        if (starts[s + 1] < starts[s]) refuse("starts falls from " + std::to_string(starts[s]) + " to " + std::to_string(starts[s + 1]) + "; expected no fall.");
}

// A new float array, and where its values go.
struct Fresh {
    float* data;
    Out array;
    Fresh(size_t ndim, const size_t* shape) {
        size_t bytes = sizeof(float);
        for (size_t i = 0; i < ndim; i++)
            if (__builtin_mul_overflow(bytes, shape[i], &bytes)) throw std::bad_alloc();
        data = static_cast<float*>(Spare::take(current_spare(), bytes));
        nb::capsule owner(data, Spare::give_back);
        array = Out(data, ndim, shape, owner);
    }
    Fresh(std::initializer_list<size_t> shape) : Fresh(shape.size(), shape.begin()) {}
};

template <class Array>
Fresh fresh_like(const Array& a) {
    size_t shape[16];
    if (a.ndim() > 16) refuse("an array of " + std::to_string(a.ndim()) + " dimensions; expected at most 16.");
    for (size_t i = 0; i < a.ndim(); i++) shape[i] = a.shape(i);
    return Fresh(a.ndim(), shape);
}
}  // namespace qt
