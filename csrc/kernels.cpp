// Products, norms, gates and rotations: arguments checked, work shared out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "arrays.h"
#include "pool.h"

namespace qt {
namespace {
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A matrix [rows, cols] as it lies in the file, kept there by its tensor.
struct Weight {
    nb::object tensor;
    Bytes data;
    int type;
    size_t rows, cols, row_bytes;
    int planes;  // int8 planes of x where many tokens are multiplied; 0: floats only

    Weight(nb::object tensor, Bytes data, int type, size_t rows, size_t cols, int planes)
        : tensor(tensor), data(data), type(type), rows(rows), cols(cols), planes(planes) {
        if (planes < 0 || planes > 2) refuse(name() + " is to be multiplied with " + std::to_string(planes) + " planes; expected 0 to 2.");
        if (type < 0 || type >= max_types || !formats.of[type].name) refuse(name() + " has type " + std::to_string(type) + ", which holds no floats.");
        const Format& f = format();
        if (cols % f.block_size) refuse(name() + " has rows of " + std::to_string(cols) + " values, no multiple of the block of " + std::to_string(f.block_size) + ".");
        row_bytes = cols / f.block_size * f.block_bytes;
        size_t bytes;
        if (__builtin_mul_overflow(rows, row_bytes, &bytes) || data.size() != bytes)
            refuse(name() + " has " + std::to_string(data.size()) + " bytes; expected " + std::to_string(rows) + " rows of " + std::to_string(row_bytes) + ".");
    }
    const Format& format() const { return formats.of[type]; }
    std::string name() const { return nb::cast<std::string>(tensor.attr("name")); }
    std::string shape() const { return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]"; }
};

// x [T, n] with rows padded by zeros where kernels would read past them.
struct PaddedRows {
    const float* data;
    size_t stride;
    std::vector<float> copy;
    PaddedRows(const float* x, size_t T, size_t n) : data(x), stride(padded(n)) {
        if (stride == n) return;
        copy.resize(T * stride);
        for (size_t t = 0; t < T; t++) std::memcpy(copy.data() + t * stride, x + t * n, n * sizeof(float));
        data = copy.data();
    }
};

constexpr size_t few_tokens_most = 4;  // of integer products one token at a time; more are multiplied 16 at a time
constexpr size_t chunk_bytes = 131072;  // of weights, claimed by a thread at a time where they are what takes time

// Rows in chunks that fill a cache, or that leave several for each thread; tokens only where rows are too few.
void share_linear(const LinearJob& job, Linear kernel, size_t T) {
    const size_t threads = width(), step = linear_rows;
    size_t rows = step, tokens = T;
    if (regime(T) != many_tokens) {
        rows = std::clamp(chunk_bytes / std::max<size_t>(job.row_bytes, 1), size_t(4), std::max<size_t>(4, job.out / (4 * threads)));
        rows = (rows + 3) / 4 * 4;
    } else if (const size_t chunks = (job.out + step - 1) / step; threads > 1 && chunks < 4 * threads) {
        const size_t pieces = (4 * threads + chunks - 1) / chunks;
        tokens = std::max<size_t>(48, (T + pieces - 1) / pieces);  // fewer, and decoding would cost more than it feeds
    }
    const size_t row_chunks = (job.out + rows - 1) / rows, token_chunks = (T + tokens - 1) / tokens;
    const double work = double(T + 4) * double(job.in) * double(job.out);  // decoding counts as much as 4 tokens
    parallel(row_chunks * token_chunks, 1, work, [&](size_t begin, size_t end) {
        float* tile = scratch(linear_tile);
        for (size_t i = begin; i < end; i++) {
            const size_t r = i / token_chunks * rows, t = i % token_chunks * tokens;
            kernel(job, r, std::min(r + rows, job.out), t, std::min(t + tokens, T), tile);
        }
    });
}

// Integer products, one token at a time: weights come from memory once, for the other tokens from L2.
void share_gemv(const LinearJob& job, const Gemv& gemv, Linear exact, size_t T) {
    const size_t each = (gemv.packed_bytes(int(job.in)) + 63) / 64 * 64;
    std::byte* packed = shared_scratch(T * each);
    bool fits[few_tokens_most];
    for (size_t t = 0; t < T; t++) fits[t] = gemv.pack(job.x + t * job.ldx, int(job.in), packed + t * each);
    const size_t most = std::max<size_t>(4, job.out / (4 * width())), rows = std::clamp<size_t>(chunk_bytes / job.row_bytes, 4, most);
    parallel(job.out, rows, double(T) * job.in * job.out, [&](size_t begin, size_t end) {
        for (size_t r = begin; r < end; r += rows) {
            const size_t stop = std::min(r + rows, end);
            for (size_t t = 0; t < T; t++) {
                float* y = job.y + t * job.out;
                if (!fits[t]) {
                    exact(job, r, stop, t, t + 1, scratch(linear_tile));
                    continue;
                }
                gemv.rows(job.w + r * job.row_bytes, packed + t * each, int(job.in), int(stop - r), y + r);
                if (job.bias)
                    for (size_t i = r; i < stop; i++) y[i] += job.bias[i];
            }
        }
    });
}

// Integer products, many tokens at a time.
void share_gemm(const LinearJob& job, const Gemm& gemm, int planes, size_t T) {
    std::byte* packed = shared_scratch(gemm.packed_bytes(T, job.in, planes));
    const size_t blocks = (job.in + 255) / 256;
    parallel(blocks, 1, double(T) * job.in * 8, [&](size_t begin, size_t end) {
        for (size_t b = begin; b < end; b++) gemm.pack(job.x, T, job.in, planes, b, packed);
    });
    const GemmJob many{job.w, job.row_bytes, job.in, job.out, T, planes, packed, job.bias, job.y};
    parallel(job.out, gemm_rows, double(T) * job.in * job.out, [&](size_t begin, size_t end) { gemm.rows(many, begin, end, scratch(gemm.tile_floats(T))); });
}

Out linear(Floats x, const Weight& w, std::optional<Floats> bias) {
    if (x.ndim() != 2 || x.shape(1) != w.cols) refuse("x is " + shape_of(x) + "; " + w.name() + ", " + w.shape() + ", expects [any, " + std::to_string(w.cols) + "].");
    if (bias) expect("bias", *bias, {int64_t(w.rows)});
    const size_t T = x.shape(0);
    Fresh y{T, w.rows};
    const Kernels& k = current_kernels();
    const Format& f = w.format();
    const float *from = x.data(), *b = bias ? bias->data() : nullptr;
    nb::gil_scoped_release released;
    if (!T || !w.rows || !w.cols) {  // an empty sum is 0
        for (size_t i = 0; i < T * w.rows; i++) y.data[i] = b ? b[i % w.rows] : 0;
        return y.array;
    }
    const PaddedRows rows(from, T, w.cols);
    const LinearJob job{w.data.data(), w.row_bytes, k.decode[w.type], f.block_size, f.block_bytes, w.type == id::F32, rows.data, rows.stride, w.cols, w.rows, b, y.data};
    const Linear exact = k.linear[regime(T)][w.type];
    if (w.planes && T <= few_tokens_most && k.gemv && k.gemv[w.type].rows)
        share_gemv(job, k.gemv[w.type], exact, T);
    else if (w.planes && T > few_tokens_most && k.gemm && k.gemm[w.type].rows)
        share_gemm(job, k.gemm[w.type], w.planes, T);
    else
        share_linear(job, exact, T);
    return y.array;
}

Out embedding(Ints tokens, const Weight& w) {
    expect("tokens", tokens, {-1});
    const size_t T = tokens.size();
    const int32_t* ids = tokens.data();
    for (size_t t = 0; t < T; t++)
        if (ids[t] < 0 || size_t(ids[t]) >= w.rows)
            refuse("token " + std::to_string(t) + " has id " + std::to_string(ids[t]) + "; " + w.name() + " has " + std::to_string(w.rows) + " rows.");
    Fresh y{T, w.cols};
    const Decode decode = current_kernels().decode[w.type];
    const size_t n_blocks = w.cols / w.format().block_size;
    nb::gil_scoped_release released;
    parallel(T, 8, double(T) * w.cols, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; t++) decode(w.data.data() + ids[t] * w.row_bytes, y.data + t * w.cols, n_blocks);
    });
    return y.array;
}

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

Out swiglu(Floats gate, Floats up) {
    bool same = gate.ndim() == up.ndim();
    for (size_t i = 0; same && i < gate.ndim(); i++) same = gate.shape(i) == up.shape(i);
    if (!same) refuse("gate is " + shape_of(gate) + " and up is " + shape_of(up) + "; expected the same shape.");
    Fresh y = fresh_like(gate);
    const Kernels& k = current_kernels();
    nb::gil_scoped_release released;
    parallel(gate.size(), 8192, 4.0 * gate.size(), [&](size_t begin, size_t end) { k.swiglu(gate.data() + begin, up.data() + begin, y.data + begin, end - begin); });
    return y.array;
}

Out rope(Floats x, Ints positions, nb::ndarray<const double, nb::c_contig, nb::device::cpu> freqs, bool interleaved) {
    expect("x", x, {-1, -1, -1});
    expect("positions", positions, {int64_t(x.shape(0))});
    expect("freqs", freqs, {-1});
    const RopeJob job{x.data(), nullptr, x.shape(1), x.shape(2), freqs.size(), positions.data(), freqs.data(), interleaved};
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

void bind_kernels(nb::module_& m) {
    nb::class_<Weight>(m, "Weight", "A matrix [rows, cols] of any type that decodes to floats, read where it lies.")
        .def(nb::init<nb::object, Bytes, int, size_t, size_t, int>(), nb::arg("tensor"), nb::arg("data").noconvert(), nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("planes") = 0)
        .def_ro("tensor", &Weight::tensor, "The QTensor it was bound from.")
        .def_prop_ro("name", [](const Weight& w) { return w.tensor.attr("name"); })
        .def_prop_ro("type", [](const Weight& w) { return w.tensor.attr("type"); })
        .def_prop_ro("shape", [](const Weight& w) { return nb::make_tuple(w.rows, w.cols); })
        .def("__repr__", [](const Weight& w) { return "Weight(" + w.name() + ", " + w.format().name + ", " + w.shape() + ")"; });
    m.def("linear", &linear, nb::arg("x"), nb::arg("w"), nb::arg("bias").none() = nb::none(), "x [T, in] w [out, in]^T + bias [out]: [T, out].");
    m.def("embedding", &embedding, nb::arg("tokens").noconvert(), nb::arg("w"), "Rows of w by id [T]: [T, cols].");
    m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), "x / sqrt(mean(x^2) + eps) * weight over the last dimension.");
    m.def("swiglu", &swiglu, nb::arg("gate"), nb::arg("up"), "silu(gate) * up.");
    m.def("rope", &rope, nb::arg("x"), nb::arg("positions").noconvert(), nb::arg("freqs"), nb::arg("interleaved"), "Rotate the heads of x [T, H, D].");
}
}  // namespace qt
