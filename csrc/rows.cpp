// Norms, gates and rotations of rows: arguments checked, work shared out.
#include <nanobind/stl/optional.h>

#include <algorithm>

#include "arrays.h"
#include "pool.h"

namespace qt {
namespace {
// Chunks of rows that hold about 16,384 values.
size_t row_grain(size_t n) { return std::max<size_t>(1, 16384 / std::max<size_t>(n, 1)); }

Out rms_norm(Floats x, Floats weight, double eps) {
    if (!x.ndim()) refuse("x is a single number; expected an array.");
    const size_t n = x.shape(x.ndim() - 1), rows = n ? x.size() / n : 0;
    expect("weight", weight, {int64_t(n)});
    Fresh y = fresh_like(x);
    const Kernels& k = current_kernels();
    nb::gil_scoped_release released;
    parallel(rows, row_grain(n), 2.0 * x.size(), [&](size_t begin, size_t end) {
        k.rms_norm(x.data() + begin * n, weight.data(), eps, y.data + begin * n, end - begin, n);
    });
    return y.array;
}

Out layer_norm(Floats x, Floats weight, std::optional<Floats> bias, double eps) {
    if (!x.ndim()) refuse("x is a single number; expected an array.");
    const size_t n = x.shape(x.ndim() - 1), rows = n ? x.size() / n : 0;
    expect("weight", weight, {int64_t(n)});
    if (bias) expect("bias", *bias, {int64_t(n)});
    Fresh y = fresh_like(x);
    const Kernels& k = current_kernels();
    const float* b = bias ? bias->data() : nullptr;
    nb::gil_scoped_release released;
    parallel(rows, row_grain(n), 3.0 * x.size(), [&](size_t begin, size_t end) {
        k.layer_norm(x.data() + begin * n, weight.data(), b, eps, y.data + begin * n, end - begin, n);
    });
    return y.array;
}

void expect_alike(const char* a, const Floats& x, const char* b, const Floats& y) {
    bool same = x.ndim() == y.ndim();
    for (size_t i = 0; same && i < x.ndim(); i++) same = x.shape(i) == y.shape(i);
    if (!same) refuse(std::string(a) + " is " + shape_of(x) + " and " + b + " is " + shape_of(y) + "; expected the same shape.");
}

Out activate(Floats x, int kind, std::optional<Floats> up) {
    if (kind < 0 || kind >= n_functions) refuse("activation " + std::to_string(kind) + " does not exist.");
    if (up) expect_alike("x", x, "up", *up);
    Fresh y = fresh_like(x);
    const Kernels& k = current_kernels();
    const float* u = up ? up->data() : nullptr;
    nb::gil_scoped_release released;
    parallel(x.size(), 8192, 6.0 * x.size(), [&](size_t begin, size_t end) { k.activate(kind, x.data() + begin, u ? u + begin : u, y.data + begin, end - begin); });
    return y.array;
}

Out rope(Floats x, Ints positions, nb::ndarray<const double, nb::c_contig, nb::device::cpu> freqs, bool interleaved, float magnitude) {
    expect("x", x, {-1, -1, -1});
    expect("positions", positions, {int64_t(x.shape(0))});
    expect("freqs", freqs, {-1});
    const RopeJob job{x.data(), nullptr, x.shape(1), x.shape(2), freqs.size(), positions.data(), freqs.data(), interleaved, magnitude};
    if (2 * job.half > job.dim) refuse("freqs rotates " + std::to_string(2 * job.half) + " values of heads of " + std::to_string(job.dim) + "; expected no more than there are.");
    Fresh y = fresh_like(x);
    const Kernels& k = current_kernels();
    nb::gil_scoped_release released;
    parallel(x.shape(0), row_grain(job.heads * job.dim), 2.0 * x.size(), [&](size_t begin, size_t end) {
        RopeJob mine = job;
        mine.out = y.data;
        k.rope(mine, begin, end, scratch(4 * job.half));
    });
    return y.array;
}
}  // namespace

void bind_rows(nb::module_& m) {
    m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), "x / sqrt(mean(x^2) + eps) * weight over the last dimension.");
    m.def("layer_norm", &layer_norm, nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("eps"), "(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension.");
    m.def("activate", &activate, nb::arg("x"), nb::arg("kind"), nb::arg("up").none() = nb::none(), "f(x), or f(x) * up.");
    m.def("rope", &rope, nb::arg("x"), nb::arg("positions").noconvert(), nb::arg("freqs"), nb::arg("interleaved"), nb::arg("magnitude") = 1.f, "Rotate the heads of x [T, H, D].");
}
}  // namespace qt
