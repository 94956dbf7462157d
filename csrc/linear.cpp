// Products: arguments checked, x packed once for all weights that take it so, rows shared out.
#include "linear.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>

#include "pool.h"

namespace qt {
Weight::Weight(nb::object tensor, Bytes data, int type, size_t rows, size_t cols, int planes)
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

namespace {
constexpr size_t few_tokens_most = 4;  // of integer products one token at a time; more are multiplied 16 at a time
constexpr size_t chunk_bytes = 131072;  // of weights, claimed by a thread at a time where they are what takes time

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

constexpr size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// One product of a call: the kernels that compute it, and the chunks it is shared out in.
struct Product {
    LinearJob job;
    Linear exact;
    const Gemv* gemv;  // integer kernels where they suit, else both null
    const Gemm* gemm;
    int planes;
    size_t rows, tokens;  // of a chunk
    size_t row_chunks, token_chunks;
    std::byte* packed;   // of gemv: first T flags, whether a token could be packed
    size_t packed_each;  // bytes of a token, gemv

    const void* format() const { return gemv ? (const void*)gemv->pack : gemm ? (const void*)gemm->pack : nullptr; }
    size_t packed_bytes(size_t T) const { return gemv ? rounded(T) + T * packed_each : gemm ? gemm->packed_bytes(T, job.in, planes) : 0; }
    size_t scratch_floats(size_t T) const { return gemm ? gemm->tile_floats(T) : linear_tile; }
    size_t chunks() const { return row_chunks * token_chunks; }

    void run(size_t chunk, size_t T) const {
        const size_t r = chunk / token_chunks * rows, r1 = std::min(r + rows, job.out), t = chunk % token_chunks * tokens;
        if (gemm) return gemm->rows({job.w, job.row_bytes, job.in, job.out, T, planes, packed, job.bias, job.y}, r, r1, scratch(scratch_floats(T)));
        if (!gemv) return exact(job, r, r1, t, std::min(t + tokens, T), scratch(linear_tile));
        for (size_t i = 0; i < T; i++) {  // weights come from memory once, for the other tokens from L2
            float* y = job.y + i * job.out;
            if (packed[i] == std::byte(false)) {
                exact(job, r, r1, i, i + 1, scratch(linear_tile));
                continue;
            }
            gemv->rows(job.w + r * job.row_bytes, packed + rounded(T) + i * packed_each, int(job.in), int(r1 - r), y + r);
            if (job.bias)
                for (size_t k = r; k < r1; k++) y[k] += job.bias[k];
        }
    }
};

// Rows in chunks that fill a cache, or that leave several for each thread; tokens only where rows are too few.
void cut(Product& p, size_t T) {
    const size_t threads = width(), out = p.job.out;
    p.tokens = std::max<size_t>(T, 1);
    if (p.gemm) {
        p.rows = gemm_rows;
    } else if (p.gemv || regime(T) != many_tokens) {
        p.rows = std::clamp(chunk_bytes / std::max<size_t>(p.job.row_bytes, 1), size_t(4), std::max<size_t>(4, out / (4 * threads)));
        p.rows = (p.rows + 3) / 4 * 4;
    } else {
        p.rows = linear_rows;
        if (const size_t chunks = (out + p.rows - 1) / p.rows; threads > 1 && chunks < 4 * threads)
            p.tokens = std::max<size_t>(48, (T * chunks + 4 * threads - 1) / (4 * threads));  // fewer, and decoding would cost more than it feeds
    }
    p.row_chunks = (out + p.rows - 1) / p.rows;
    p.token_chunks = (T + p.tokens - 1) / p.tokens;
}

Product product(const Factor& f, const PaddedRows& x, size_t T) {
    const Kernels& k = current_kernels();
    const Weight& w = *f.w;
    Product p{};
    p.job = {w.data.data(), w.row_bytes, k.decode[w.type], w.format().block_size, w.format().block_bytes, w.type == id::F32, x.data, x.stride, w.cols, w.rows, f.bias, f.y};
    p.exact = k.linear[regime(T)][w.type];
    p.planes = w.planes;
    if (w.planes && T <= few_tokens_most && k.gemv && k.gemv[w.type].rows) p.gemv = &k.gemv[w.type];
    if (p.gemv) p.packed_each = rounded(p.gemv->packed_bytes(int(w.cols)));
    if (w.planes && T > few_tokens_most && k.gemm && k.gemm[w.type].rows) p.gemm = &k.gemm[w.type];
    cut(p, T);
    return p;
}

// x as the integer kernels want it, once for all products that want the same.
void pack(std::vector<Product>& products, const float* x, size_t T) {
    auto first_alike = [&](const Product& p) {
        return std::find_if(products.begin(), products.end(), [&](const Product& q) { return q.format() == p.format() && q.planes == p.planes; });
    };
    size_t bytes = 0;
    for (const Product& p : products)
        if (&*first_alike(p) == &p) bytes += p.packed_bytes(T);
    std::byte* room = shared_scratch(bytes);
    for (Product& p : products) {
        if (const Product& q = *first_alike(p); &q != &p) {
            p.packed = q.packed;
            continue;
        }
        p.packed = room;
        room += p.packed_bytes(T);
        if (p.gemm)
            parallel((p.job.in + 255) / 256, 1, double(T) * p.job.in * 8, [&](size_t begin, size_t end) {
                for (size_t b = begin; b < end; b++) p.gemm->pack(x, T, p.job.in, p.planes, b, p.packed);
            });
        if (p.gemv)
            for (size_t t = 0; t < T; t++)
                p.packed[t] = std::byte(p.gemv->pack(p.job.x + t * p.job.ldx, int(p.job.in), p.packed + rounded(T) + t * p.packed_each));
    }
}
}  // namespace

void multiply(const float* x, size_t T, const std::vector<Factor>& factors) {
    if (factors.empty() || !T) return;
    const size_t in = factors[0].w->cols;
    if (!in) {  // an empty sum is 0
        for (const Factor& f : factors)
            for (size_t i = 0; i < T * f.w->rows; i++) f.y[i] = f.bias ? f.bias[i % f.w->rows] : 0;
        return;
    }
    const PaddedRows rows(x, T, in);
    std::vector<Product> products;
    size_t chunks = 0;
    double work = 0;
    for (const Factor& f : factors) {
        if (!f.w->rows) continue;
        products.push_back(product(f, rows, T));
        chunks += products.back().chunks();
        work += double(T + 4) * double(in) * double(f.w->rows);  // decoding counts as much as 4 tokens
    }
    pack(products, x, T);
    parallel(chunks, 1, work, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; i++) {
            size_t k = 0, chunk = i;
            while (chunk >= products[k].chunks()) chunk -= products[k++].chunks();
            products[k].run(chunk, T);
        }
    });
}

namespace {
// x against every weight: shapes agree, or ConfigError.
std::vector<Out> linears(Floats x, const std::vector<const Weight*>& ws, const std::vector<std::optional<Floats>>& biases) {
    if (biases.size() != ws.size()) refuse(std::to_string(ws.size()) + " weights, but " + std::to_string(biases.size()) + " biases; expected one, or None, for each.");
    const size_t T = x.ndim() ? x.shape(0) : 0;
    std::vector<Out> outs;
    std::vector<Factor> factors;
    for (size_t i = 0; i < ws.size(); i++) {
        if (!ws[i]) refuse("weight " + std::to_string(i) + " is None; expected a Weight.");
        const Weight& w = *ws[i];
        if (x.ndim() != 2 || x.shape(1) != w.cols) refuse("x is " + shape_of(x) + "; " + w.name() + ", " + w.shape() + ", expects [any, " + std::to_string(w.cols) + "].");
        if (biases[i]) expect("bias", *biases[i], {int64_t(w.rows)});
        Fresh y{T, w.rows};
        factors.push_back({&w, biases[i] ? biases[i]->data() : nullptr, y.data});
        outs.push_back(y.array);
    }
    nb::gil_scoped_release released;
    multiply(x.data(), T, factors);
    return outs;
}

Out linear(Floats x, const Weight& w, std::optional<Floats> bias) { return linears(x, {&w}, {bias})[0]; }

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
}  // namespace

void bind_linear(nb::module_& m) {
    nb::class_<Weight>(m, "Weight", "A matrix [rows, cols] of any type that decodes to floats, read where it lies.")
        .def(nb::init<nb::object, Bytes, int, size_t, size_t, int>(), nb::arg("tensor"), nb::arg("data").noconvert(), nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("planes") = 0)
        .def_ro("tensor", &Weight::tensor, "The QTensor it was bound from.")
        .def_prop_ro("name", [](const Weight& w) { return w.tensor.attr("name"); })
        .def_prop_ro("type", [](const Weight& w) { return w.tensor.attr("type"); })
        .def_prop_ro("shape", [](const Weight& w) { return nb::make_tuple(w.rows, w.cols); })
        .def("__repr__", [](const Weight& w) { return "Weight(" + w.name() + ", " + w.format().name + ", " + w.shape() + ")"; });
    m.def("linear", &linear, nb::arg("x"), nb::arg("w"), nb::arg("bias").none() = nb::none(), "x [T, in] w [out, in]^T + bias [out]: [T, out].");
    m.def("linears", &linears, nb::arg("x"), nb::arg("ws"), nb::arg("biases"), "linear of one x by each weight, with its bias or None.");
    m.def("embedding", &embedding, nb::arg("tokens").noconvert(), nb::arg("w"), "Rows of w by id [T]: [T, cols].");
}
}  // namespace qt
