// The machine's limits, measured with the threads at hand.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <chrono>

#include "pool.h"

namespace nb = nanobind;

namespace qt {
namespace {
template <class F>
double seconds(F&& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double read_speed(nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> data) {
    const uint8_t* p = data.data();
    const size_t n = data.size();
    const Kernels& k = current_kernels();
    nb::gil_scoped_release released;
    std::atomic<uint64_t> sum = 0;
    const double took = seconds([&] { parallel(n, 1 << 18, double(n), [&](size_t begin, size_t end) { sum ^= k.read_all(p + begin, end - begin); }); });
    return double(n) / took;
}

double multiply_speed(size_t rounds) {
    const Kernels& k = current_kernels();
    nb::gil_scoped_release released;
    std::atomic<double> done = 0;
    const size_t pieces = 64 * size_t(width());
    const double took = seconds([&] {
        parallel(pieces, 1, 1e12, [&](size_t begin, size_t end) {
            for (size_t i = begin; i < end; i++) done += k.multiply_all(rounds);
        });
    });
    return done / took;
}
}  // namespace

void bind_limits(nb::module_& m) {
    m.def("read_speed", &read_speed, nb::arg("data"), "Bytes a second at which the current pool reads `data` once and does nothing else.");
    m.def("multiply_speed", &multiply_speed, nb::arg("rounds") = 20000,
          "Multiplications and additions a second of the current pool, by the instruction that products with weights live on.");
}
}  // namespace qt
