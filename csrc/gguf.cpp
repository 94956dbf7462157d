// Python's view of the string walk.
#include "gguf.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <stdexcept>
#include <utility>

namespace nb = nanobind;
namespace qt {
void bind_gguf(nb::module_& m);
}
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

namespace {

qt::StringWalk walk_from(const Bytes& data, uint64_t start, bool big_endian) {
    return {data.data(), data.size(), start, big_endian};
}

std::pair<uint64_t, uint64_t> skip_strings(const Bytes& data, uint64_t start, uint64_t count, bool big_endian) {
    qt::StringWalk walk = walk_from(data, start, big_endian);
    nb::gil_scoped_release release;  // the pages may have to come from disk
    const uint64_t n = walk.skip(count);
    return {walk.at, n};
}

nb::object decode_strings(const Bytes& data, uint64_t start, uint64_t count, bool big_endian) {
    qt::StringWalk walk = walk_from(data, start, big_endian);
    if (start > data.size() || count > (data.size() - start) / sizeof(uint64_t)) throw std::invalid_argument("more strings than bytes");
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(count)));
    if (!list.is_valid()) throw nb::python_error();
    for (uint64_t i = 0; i < count; i++) {
        const char* text;
        uint64_t length;
        if (!walk.next(text, length)) throw std::invalid_argument("a string passes the end of its array");
        PyObject* item = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(length), "surrogateescape");
        if (!item) throw nb::python_error();
        PyList_SetItem(list.ptr(), static_cast<Py_ssize_t>(i), item);
    }
    return list;
}
}  // namespace

void qt::bind_gguf(nb::module_& m) {
    m.def("skip_strings", skip_strings, nb::arg("data"), nb::arg("start"), nb::arg("count"), nb::arg("big_endian"),
          "Walk `count` GGUF strings from byte `start`: (byte after the last whole one, how many were whole).");
    m.def("decode_strings", decode_strings, nb::arg("data"), nb::arg("start"), nb::arg("count"), nb::arg("big_endian"),
          "`count` GGUF strings from byte `start` as a list of str (bytes that are no UTF-8 become lone surrogates); ValueError past the end.");
}
