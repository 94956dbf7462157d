// Products: arguments checked, x packed once for all weights that take it so, rows shared out.
#include "linear.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "pool.h"

namespace qt {
Weight::Weight(nb::object tensor, Bytes bytes, int type, size_t rows, size_t cols, int planes)
    : Matrix{bytes.data(), type, rows, cols, 0, planes}, tensor(tensor), bytes(bytes) {
    if (planes < 0 || planes > 2) refuse(name() + " is to be multiplied with " + std::to_string(planes) + " planes; expected 0 to 2.");
    if (type < 0 || type >= max_types || !formats.of[type].name) refuse(name() + " has type " + std::to_string(type) + ", which holds no floats.");
    const Format& f = format();
    if (cols % f.block_size) refuse(name() + " has rows of " + std::to_string(cols) + " values, no multiple of the block of " + std::to_string(f.block_size) + ".");
    row_bytes = cols / f.block_size * f.block_bytes;
    size_t expected;
    if (__builtin_mul_overflow(rows, row_bytes, &expected) || bytes.size() != expected)
        refuse(name() + " has " + std::to_string(bytes.size()) + " bytes; expected " + std::to_string(rows) + " rows of " + std::to_string(row_bytes) + ".");
}

Activation activation(const std::string& name) {
    std::string known;
    for (int a = 0; a < n_activations; a++) {
        if (name == activation_names[a]) return Activation(a);
        known += (a ? ", " : "") + std::string(activation_names[a]);
    }
    refuse("act='" + name + "'; expected one of " + known + ".");
}

namespace {
constexpr size_t few_columns_most = 8;  // int8 planes of all tokens up to which integer products go row by row; more are multiplied 16 tokens at a time
constexpr size_t chunk_bytes = 131072;  // of weights, claimed by a thread at a time where they are what takes time

constexpr size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// x [T, n] with rows padded by zeros where kernels would read past them.
struct PaddedRows {
    const float *from, *data;
    size_t T, stride;
    std::vector<float> copy;
    PaddedRows(const float* x, size_t T, size_t n) : from(x), data(x), T(T), stride(padded(n)) {
        if (stride == n) return;
        copy.resize(T * stride);
        for (size_t t = 0; t < T; t++) std::memcpy(copy.data() + t * stride, x + t * n, n * sizeof(float));
        data = copy.data();
    }
};

// A matrix, an x for it, and the kernels that multiply them.
struct Operand {
    size_t T;
    int planes;
    const float* x;
    LinearJob job;
    Linear exact;
    const Gemv* gemv;  // integer kernels where they suit, else both null
    const Gemm* gemm;
    std::byte* packed;

    const void* format() const { return gemv ? (const void*)gemv->pack : gemm ? (const void*)gemm->pack : nullptr; }
    bool shares_packed(const Operand& o) const { return x == o.x && T == o.T && format() == o.format() && planes == o.planes; }
    size_t packed_bytes() const { return gemv ? gemv->packed_bytes(T, job.in, planes) : gemm ? gemm->packed_bytes(T, job.in, planes) : 0; }
    size_t packs() const { return gemv || gemm ? (job.in + 255) / 256 : 0; }
    size_t scratch_floats() const { return padded(gemm ? gemm->tile_floats(T) : linear_tile); }

    void pack(size_t block) const { (gemv ? gemv->pack : gemm->pack)(x, T, job.in, planes, block, packed); }
    GemmJob many(const LinearJob& j, float* y) const { return {j.w, j.row_bytes, j.in, j.out, T, planes, packed, j.bias, y}; }
    // Rows [r0, r1) of j, which is `job` or a part of it, times tokens [t0, t1).
    void multiply(const LinearJob& j, size_t r0, size_t r1, size_t t0, size_t t1, float* tile) const {
        if (gemm) return gemm->rows(many(j, j.y), r0, r1, tile);
        if (gemv) return gemv->rows({j.w, j.row_bytes, j.in, j.out, T, planes, packed, j.bias, j.y}, r0, r1);
        exact(j, r0, r1, t0, t1, tile);
    }
};

const Gemm* many_kernel(const Gemm& g, int planes) {
    static const bool bf16 = has_bf16();
    return g.rows && planes <= g.most_planes && (bf16 || !g.bf16) ? &g : nullptr;
}

Operand operand(const Matrix& w, const float* bias, float* y, const PaddedRows& x, size_t T) {
    const Kernels& k = current_kernels();
    Operand o{.T = T, .planes = w.planes, .x = x.from};
    o.job = {w.data, w.row_bytes, k.decode[w.type], w.format().block_size, w.format().block_bytes, w.type == id::F32, x.data, x.stride, w.cols, w.rows, bias, y};
    o.exact = k.linear[regime(T)][w.type];
    const bool few = T * w.planes <= few_columns_most;
    if (w.planes && few && k.gemv && k.gemv[w.type].rows) o.gemv = &k.gemv[w.type];
    if (w.planes && !few && k.gemm) o.gemm = many_kernel(k.gemm[w.type], w.planes);
    return o;
}

// One product of a call, or a gate and what it lets through, and the chunks it is shared out in.
struct Product {
    Operand up, gate;
    Gate act;  // or null: there is no gate
    size_t rows, tokens;  // of a chunk
    size_t row_chunks, token_chunks;
    size_t whole, pieces;  // chunks of `rows` come first; what they leave is parted alike, for the last one is waited for

    size_t chunks() const { return row_chunks * token_chunks; }
    size_t row(size_t i) const {
        if (i <= whole) return i * rows;
        const size_t left = up.job.out - whole * rows, before = left * (i - whole) / pieces;
        return whole * rows + (i < row_chunks ? before / gemm_strip * gemm_strip : left);
    }
    void run(size_t chunk) const {
        const size_t r0 = row(chunk / token_chunks), r1 = row(chunk / token_chunks + 1);
        const size_t t0 = chunk % token_chunks * tokens, t1 = std::min(t0 + tokens, up.T), n = r1 - r0;
        if (!act) return up.multiply(up.job, r0, r1, t0, t1, scratch(up.scratch_floats()));
        const size_t tile = std::max(up.scratch_floats(), gate.scratch_floats()), each = padded(up.T * n);
        if (up.gemm && gate.gemm) {  // in tiles, while they are in cache
            float* const room = scratch(2 * tile);
            GemmJob j = up.many(up.job, up.job.y);
            j.gate = room, j.act = act;
            for (size_t r = r0; r < r1; r += gemm_rows) {
                const size_t end = std::min(r + gemm_rows, r1);
                gate.gemm->rows(gate.many(gate.job, nullptr), r, end, room);
                up.gemm->rows(j, r, end, room + tile);
            }
            return;
        }
        float *const room = scratch(tile + 2 * each), *const a = room + tile, *const b = a + each;  // a, b: [T][n]
        auto part = [&](const Operand& o, float* y) {
            LinearJob j = o.job;
            j.w += r0 * j.row_bytes;
            j.bias = j.bias ? j.bias + r0 : nullptr;
            j.out = n;
            j.y = y;
            o.multiply(j, 0, n, t0, t1, room);
        };
        part(gate, a);
        part(up, b);
        for (size_t t = t0; t < t1; t++) act(a + t * n, b + t * n, up.job.y + t * up.job.out + r0, n);
    }
};

// Rows in chunks that fill a cache, or that leave several for each thread; tokens only where rows are too few.
void cut(Product& p) {
    const size_t threads = width(), out = p.up.job.out, T = p.up.T;
    p.tokens = T;
    const bool many = p.up.gemm || p.gate.gemm;
    if (many) {
        p.rows = gemm_rows;
    } else if (p.up.gemv || regime(T) != many_tokens) {
        p.rows = std::clamp(chunk_bytes / std::max<size_t>(p.up.job.row_bytes, 1), size_t(4), std::max<size_t>(4, out / (4 * threads)));
        p.rows = (p.rows + gemv_group - 1) / gemv_group * gemv_group;
    } else {
        p.rows = linear_rows;
        if (const size_t chunks = (out + p.rows - 1) / p.rows; threads > 1 && chunks < 4 * threads)
            p.tokens = std::max<size_t>(48, (T * chunks + 4 * threads - 1) / (4 * threads));  // fewer, and decoding would cost more than it feeds
    }
    // Many tokens come in whole chunks while each thread has more than one to come, then in smaller ones.
    const size_t rounds = out / (p.rows * threads), fair = rounds ? (rounds - 1) * threads : 0;
    p.pieces = many && threads > 1 ? 2 * threads : 1;
    p.whole = p.pieces > 1 ? fair : out / p.rows;
    p.row_chunks = p.whole + (out > p.whole * p.rows ? p.pieces : 0);
    p.token_chunks = (T + p.tokens - 1) / p.tokens;
}

// f(k, i - starts[k]) for all i in [begin, end), k being the part that i falls into.
template <class F>
void each_part(const std::vector<size_t>& starts, size_t begin, size_t end, F& f) {
    size_t k = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (size_t i = begin; i < end; i++) {
        while (i >= starts[k + 1]) k++;
        f(k, i - starts[k]);
    }
}
// The same for all i below the last of `starts`, on the pool's threads.
template <class F>
void parallel_parts(const std::vector<size_t>& starts, double work, F&& f) {
    parallel(starts.back(), 1, work, [&](size_t begin, size_t end) { each_part(starts, begin, end, f); });
}
// And so that a thread takes neighbours one after the other, as memory and what is fetched ahead like it best: each begins at
// a place of its own, and helps the others when it is through.
template <class F>
void parallel_streams(const std::vector<size_t>& starts, double work, F&& f) {
    struct alignas(64) Stream {
        std::atomic<size_t> next;
        size_t end;
    };
    const size_t n = width(), items = starts.back();
    std::vector<Stream> streams(n);
    for (size_t t = 0; t < n; t++) streams[t].next = items * t / n, streams[t].end = items * (t + 1) / n;
    parallel(n, 1, work, [&](size_t begin, size_t end) {
        for (size_t home = begin; home < end; home++)
            for (size_t k = 0; k < n; k++) {
                Stream& s = streams[(home + k) % n];
                for (size_t i; (i = s.next.fetch_add(1, std::memory_order_relaxed)) < s.end;) each_part(starts, i, i + 1, f);
            }
    });
}

// x as the integer kernels want it, once for neighbours that want the same; gone with what is returned.
Room<std::byte> pack(const std::vector<Operand*>& operands) {
    std::vector<Operand*> packers;
    std::vector<size_t> packer(operands.size()), starts{0};
    size_t bytes = 0, first = 0;  // of the packers, the first with the x at hand
    double work = 0;
    for (size_t i = 0; i < operands.size(); i++) {
        Operand* o = operands[i];
        if (!o->format()) continue;
        if (!packers.empty() && packers.back()->x != o->x) first = packers.size();
        size_t& k = packer[i];
        for (k = first; k < packers.size() && !packers[k]->shares_packed(*o);) k++;
        if (k < packers.size()) continue;
        packers.push_back(o);
        starts.push_back(starts.back() + o->packs());
        bytes += rounded(o->packed_bytes());
        work += double(o->T) * double(o->job.in) * 8;
    }
    Room<std::byte> packed(bytes);
    std::byte* room = packed.data;
    for (Operand* o : packers) {
        o->packed = room;
        room += rounded(o->packed_bytes());
    }
    for (size_t i = 0; i < operands.size(); i++)
        if (operands[i]->format()) operands[i]->packed = packers[packer[i]]->packed;
    parallel_parts(starts, work, [&](size_t k, size_t i) { packers[k]->pack(i); });
    return packed;
}
}  // namespace

void multiply(const std::vector<Factor>& factors) {
    std::vector<PaddedRows> xs;
    xs.reserve(factors.size());
    std::vector<Product> products;
    products.reserve(factors.size());
    std::vector<Operand*> operands;
    std::vector<size_t> starts{0};
    double work = 0;
    for (const Factor& f : factors) {
        if (!f.T || !f.w.rows) continue;
        const Gate act = f.gate.data ? current_kernels().gate[f.act] : nullptr;
        if (!f.w.cols) {  // an empty sum is 0
            const std::vector<float> zero(f.w.rows);
            for (size_t t = 0; t < f.T; t++) {
                float* y = f.y + t * f.w.rows;
                std::copy_n(f.bias ? f.bias : zero.data(), f.w.rows, y);
                if (act) act(f.gate_bias ? f.gate_bias : zero.data(), y, y, f.w.rows);
            }
            continue;
        }
        if (xs.empty() || xs.back().from != f.x || xs.back().T != f.T) xs.emplace_back(f.x, f.T, f.w.cols);
        Product& p = products.emplace_back(Product{.up = operand(f.w, f.bias, f.y, xs.back(), f.T), .act = act});
        if (act) operands.push_back(&(p.gate = operand(f.gate, f.gate_bias, nullptr, xs.back(), f.T)));
        operands.push_back(&p.up);
        cut(p);
        starts.push_back(starts.back() + p.chunks());
        work += double(f.T + 4) * double(f.w.cols) * double(f.w.rows) * (act ? 2 : 1);  // decoding counts as much as 4 tokens
    }
    const Room<std::byte> packed = pack(operands);
    auto run = [&](size_t k, size_t chunk) { products[k].run(chunk); };
    if (std::any_of(products.begin(), products.end(), [](const Product& p) { return p.up.gemm; })) return parallel_parts(starts, work, run);
    parallel_streams(starts, work, run);
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
        factors.push_back({x.data(), T, w, biases[i] ? biases[i]->data() : nullptr, y.data});
        outs.push_back(y.array);
    }
    nb::gil_scoped_release released;
    multiply(factors);
    return outs;
}

Out linear(Floats x, const Weight& w, std::optional<Floats> bias) { return linears(x, {&w}, {bias})[0]; }

Out gated(Floats x, const Weight& gate, const Weight& up, const std::string& act, std::optional<Floats> gate_bias, std::optional<Floats> up_bias) {
    for (const Weight* w : {&gate, &up})
        if (x.ndim() != 2 || x.shape(1) != w->cols) refuse("x is " + shape_of(x) + "; " + w->name() + ", " + w->shape() + ", expects [any, " + std::to_string(w->cols) + "].");
    if (gate.rows != up.rows) refuse(gate.name() + " is " + gate.shape() + " and " + up.name() + " is " + up.shape() + "; expected the same shape.");
    if (gate_bias) expect("gate_bias", *gate_bias, {int64_t(gate.rows)});
    if (up_bias) expect("up_bias", *up_bias, {int64_t(up.rows)});
    auto from = [](const std::optional<Floats>& b) { return b ? b->data() : nullptr; };
    Fresh y{x.shape(0), up.rows};
    const Factor f{x.data(), x.shape(0), up, from(up_bias), y.data, gate, from(gate_bias), activation(act)};
    nb::gil_scoped_release released;
    multiply({f});
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
        for (size_t t = begin; t < end; t++) decode(w.data + ids[t] * w.row_bytes, y.data + t * w.cols, n_blocks);
    });
    return y.array;
}

// Memory beside x and y, for planning: x rounded, or padded where floats are multiplied; and a tile of y.
nb::tuple scratch_bytes(int type, size_t T, size_t cols, int planes) {
    if (type < 0 || type >= max_types) refuse("type " + std::to_string(type) + " is none; expected 0 to " + std::to_string(max_types - 1) + ".");
    const Kernels& k = current_kernels();
    const Gemm* gemm = planes && T * planes > few_columns_most && k.gemm ? many_kernel(k.gemm[type], planes) : nullptr;
    const size_t x = gemm ? gemm->packed_bytes(T, cols, planes) : padded(cols) == cols ? 0 : T * padded(cols) * sizeof(float);
    return nb::make_tuple(x, padded(gemm ? gemm->tile_floats(T) : linear_tile) * sizeof(float));
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
    m.def("scratch_bytes", &scratch_bytes, nb::arg("type"), nb::arg("T"), nb::arg("cols"), nb::arg("planes"), "What a product of T tokens needs for x, shared by all threads, and for a tile of y in each: (bytes, bytes).");
    m.def("linear", &linear, nb::arg("x"), nb::arg("w"), nb::arg("bias").none() = nb::none(), "x [T, in] w [out, in]^T + bias [out]: [T, out].");
    m.def("linears", &linears, nb::arg("x"), nb::arg("ws"), nb::arg("biases"), "linear of one x by each weight, with its bias or None.");
    m.def("gated", &gated, nb::arg("x"), nb::arg("w_gate"), nb::arg("w_up"), nb::arg("act"), nb::arg("gate_bias").none(), nb::arg("up_bias").none(), "act(x w_gate^T + gate_bias, x w_up^T + up_bias): [T, out].");
    m.def("embedding", &embedding, nb::arg("tokens").noconvert(), nb::arg("w"), "Rows of w by id [T]: [T, cols].");
}
}  // namespace qt
