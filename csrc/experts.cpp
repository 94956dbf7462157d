// Mixtures of experts: tokens choose experts, and every chosen expert multiplies all of its tokens at once.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "linear.h"
#include "pool.h"

namespace qt {
namespace {
// Matrices [rows, cols] of one shape, one below the other in the file.
struct Experts : Weight {
    size_t n;

    Experts(nb::object tensor, Bytes bytes, int type, size_t n, size_t rows, size_t cols, int planes)
        : Weight(tensor, bytes, type, all_rows(n, rows), cols, planes), n(n) {
        this->rows = rows;
    }
    static size_t all_rows(size_t n, size_t rows) {
        size_t all;
        if (__builtin_mul_overflow(n, rows, &all)) refuse(std::to_string(n) + " experts of " + std::to_string(rows) + " rows are more than can be.");
        return all;
    }
    Matrix of(size_t e) const {
        Matrix m = *this;
        m.data += e * rows * row_bytes;
        return m;
    }
    std::string shape() const { return "[" + std::to_string(n) + ", " + std::to_string(rows) + ", " + std::to_string(cols) + "]"; }
};

constexpr size_t wave_bytes = size_t(32) << 20;  // of activations at a time, so that prompts of wide models do not need gigabytes

// How weights follow from logits, and which experts are open to a token.
struct Routing {
    size_t n_experts, n_used;
    bool softmax;       // over all experts; else a sigmoid of each
    const float* bias;  // [n_experts] or null: counts in the choice only
    size_t n_groups, n_groups_used, group_top;
    bool normalize;
    double scale;
};

// The best `n` of `scores`, best first, ties to the smaller number; what is no number comes last.
void best(const double* scores, size_t count, size_t n, std::vector<int32_t>& order) {
    auto score = [&](int32_t i) { return std::isnan(scores[i]) ? -std::numeric_limits<double>::infinity() : scores[i]; };
    order.resize(count);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + n, order.end(), [&](int32_t a, int32_t b) {
        const double x = score(a), y = score(b);
        return x > y || (x == y && a < b);
    });
}

struct Router {
    const Routing& r;
    std::vector<double> weights, scores, of_groups, members;
    std::vector<int32_t> order;

    void operator()(const float* logits, int32_t* ids, float* chosen) {
        const size_t n = r.n_experts;
        weights.resize(n);
        if (r.softmax) {
            double top = logits[0], sum = 0;
            for (size_t e = 1; e < n; e++) top = std::max(top, double(logits[e]));
            for (size_t e = 0; e < n; e++) sum += weights[e] = std::exp(logits[e] - top);
            for (double& w : weights) w /= sum;
        } else {
            for (size_t e = 0; e < n; e++) weights[e] = 1 / (1 + std::exp(-double(logits[e])));
        }
        scores = weights;
        if (r.bias)
            for (size_t e = 0; e < n; e++) scores[e] += r.bias[e];
        if (r.n_groups > 1) close_groups();
        best(scores.data(), n, r.n_used, order);
        double sum = 1e-20;
        for (size_t k = 0; k < r.n_used; k++) sum += weights[order[k]];
        for (size_t k = 0; k < r.n_used; k++) {
            ids[k] = order[k];
            chosen[k] = float((r.normalize ? weights[order[k]] / sum : weights[order[k]]) * r.scale);
        }
    }

    // All but the best groups: no expert of theirs can be chosen.
    void close_groups() {
        const size_t size = r.n_experts / r.n_groups, top = std::min(r.group_top, size);
        of_groups.assign(r.n_groups, 0);
        for (size_t g = 0; g < r.n_groups; g++) {
            members.assign(scores.begin() + g * size, scores.begin() + (g + 1) * size);
            best(members.data(), size, top, order);
            for (size_t i = top; i-- > 0;) of_groups[g] += members[order[i]];
        }
        best(of_groups.data(), r.n_groups, r.n_groups_used, order);
        for (size_t i = r.n_groups_used; i < r.n_groups; i++)
            std::fill_n(scores.begin() + order[i] * size, size, -std::numeric_limits<double>::infinity());
    }
};

nb::tuple route(Floats logits, size_t n_used, const std::string& gate, std::optional<Floats> bias, size_t n_groups, size_t n_groups_used, size_t group_top, bool normalize, double scale) {
    if (logits.ndim() != 2) refuse("logits is " + shape_of(logits) + "; expected [T, n_experts].");
    const size_t T = logits.shape(0), n = logits.shape(1);
    if (gate != "softmax" && gate != "sigmoid") refuse("gate='" + gate + "'; expected softmax or sigmoid.");
    if (!group_top || !n_groups || !n_groups_used || n_groups_used > n_groups || n % n_groups)
        refuse(std::to_string(n_groups_used) + " of " + std::to_string(n_groups) + " groups of " + std::to_string(n) + " experts, judged by " + std::to_string(group_top) +
               " of each; expected equal groups, and at least one of each.");
    const size_t open = n / n_groups * n_groups_used;
    if (!n_used || n_used > open) refuse("n_used is " + std::to_string(n_used) + "; expected 1 to the " + std::to_string(open) + " experts that are open.");
    if (bias) expect("bias", *bias, {int64_t(n)});
    const Routing routing{n, n_used, gate == "softmax", bias ? bias->data() : nullptr, n_groups, n_groups_used, group_top, normalize, scale};
    int32_t* ids = new int32_t[T * n_used];
    nb::ndarray<nb::numpy, int32_t> chosen(ids, {T, n_used}, nb::capsule(ids, [](void* p) noexcept { delete[] static_cast<int32_t*>(p); }));
    Fresh weights{T, n_used};
    {
        nb::gil_scoped_release released;
        parallel(T, 16, 10.0 * T * n, [&](size_t begin, size_t end) {
            Router router{.r = routing};
            for (size_t t = begin; t < end; t++) router(logits.data() + t * n, ids + t * n_used, weights.data + t * n_used);
        });
    }
    return nb::make_tuple(chosen, weights.array);
}

// Every choice of a token is a row; rows stand by expert, and by token within one.
struct Rows {
    std::vector<size_t> starts;  // [n_experts + 1]
    std::vector<size_t> token;   // [T * k], of each row
    std::vector<size_t> of;      // [T * k], the row of each choice

    Rows(const int32_t* ids, size_t T, size_t k, size_t n) : starts(n + 1), token(T * k), of(T * k) {
        for (size_t i = 0; i < T * k; i++) starts[ids[i] + 1]++;
        std::partial_sum(starts.begin(), starts.end(), starts.begin());
        std::vector<size_t> next(starts.begin(), starts.end() - 1);
        for (size_t i = 0; i < T * k; i++) token[of[i] = next[ids[i]]++] = i / k;
    }
};

struct Layer {
    const Experts &gate, &up, &down;
    const float *gate_bias, *up_bias, *down_bias;  // [n, rows] or null
    Activation act;
};

// Rows [first, last) of x by its experts [e0, e1), weighted and added to y.
void some_experts(const Layer& l, const Rows& rows, size_t e0, size_t e1, const float* x, const float* weights, size_t T, size_t k, float* y) {
    const size_t first = rows.starts[e0], n = rows.starts[e1] - first, in = l.up.cols, ff = l.up.rows, out = l.down.rows;
    Room<float> gathered(n * in), hidden(n * ff), outputs(n * out);
    auto bias = [](const float* b, size_t e, const Experts& w) { return b ? b + e * w.rows : nullptr; };
    std::vector<Factor> wide, narrow;
    std::vector<size_t> copied;
    for (size_t e = e0; e < e1; e++) {
        const size_t r = rows.starts[e] - first, m = rows.starts[e + 1] - rows.starts[e];
        if (!m) continue;
        const float* from = m == 1 ? x + rows.token[first + r] * in : gathered.data + r * in;  // one token is read where it lies
        if (m > 1)
            for (size_t i = r; i < r + m; i++) copied.push_back(i);
        float* h = hidden.data + r * ff;
        wide.push_back({from, m, l.up.of(e), bias(l.up_bias, e, l.up), h, l.gate.of(e), bias(l.gate_bias, e, l.gate), l.act});
        narrow.push_back({h, m, l.down.of(e), bias(l.down_bias, e, l.down), outputs.data + r * out});
    }
    parallel(copied.size(), 16, double(copied.size()) * in, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; i++) std::copy_n(x + rows.token[first + copied[i]] * in, in, gathered.data + copied[i] * in);
    });
    multiply(wide);
    multiply(narrow);
    parallel(T, 8, double(n) * out, [&](size_t begin, size_t end) {
        std::vector<std::pair<size_t, float>> mine;  // rows of a token, by expert, so that sums have one order
        for (size_t t = begin; t < end; t++) {
            mine.clear();
            for (size_t i = t * k; i < (t + 1) * k; i++)
                if (rows.of[i] >= first && rows.of[i] < first + n) mine.emplace_back(rows.of[i], weights[i]);
            std::sort(mine.begin(), mine.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
            for (const auto& [row, weight] : mine) {
                const float* from = outputs.data + (row - first) * out;
                for (size_t c = 0; c < out; c++) y[t * out + c] += weight * from[c];
            }
        }
    });
}

Out moe(Floats x, Ints ids, Floats weights, const Experts& gate, const Experts& up, const Experts& down, const std::string& act, std::optional<Floats> gate_bias, std::optional<Floats> up_bias,
        std::optional<Floats> down_bias) {
    if (gate.n != up.n || gate.rows != up.rows || gate.cols != up.cols) refuse(gate.name() + " is " + gate.shape() + " and " + up.name() + " is " + up.shape() + "; expected the same shape.");
    if (down.n != up.n || down.cols != up.rows)
        refuse(down.name() + " is " + down.shape() + " and " + up.name() + " is " + up.shape() + "; expected [" + std::to_string(up.n) + ", any, " + std::to_string(up.rows) + "].");
    expect("x", x, {-1, int64_t(up.cols)});
    const size_t T = x.shape(0);
    expect("ids", ids, {int64_t(T), -1});
    const size_t k = ids.shape(1);
    expect("weights", weights, {int64_t(T), int64_t(k)});
    for (size_t i = 0; i < T * k; i++)
        if (ids.data()[i] < 0 || size_t(ids.data()[i]) >= up.n)
            refuse("token " + std::to_string(i / k) + " goes to expert " + std::to_string(ids.data()[i]) + "; " + up.name() + " has " + std::to_string(up.n) + ".");
    if (gate_bias) expect("gate_bias", *gate_bias, {int64_t(up.n), int64_t(up.rows)});
    if (up_bias) expect("up_bias", *up_bias, {int64_t(up.n), int64_t(up.rows)});
    if (down_bias) expect("down_bias", *down_bias, {int64_t(up.n), int64_t(down.rows)});
    auto data = [](const std::optional<Floats>& b) { return b ? b->data() : nullptr; };
    const Layer layer{gate, up, down, data(gate_bias), data(up_bias), data(down_bias), activation(act)};
    Fresh y{T, down.rows};
    nb::gil_scoped_release released;
    std::fill_n(y.data, T * down.rows, 0.f);
    const Rows rows(ids.data(), T, k, up.n);
    const size_t most = std::max<size_t>(1, wave_bytes / sizeof(float) / (up.cols + up.rows + down.rows));
    for (size_t e0 = 0, e1 = 0; e0 < up.n; e0 = e1) {
        for (e1 = e0 + 1; e1 < up.n && rows.starts[e1 + 1] - rows.starts[e0] <= most;) e1++;
        if (rows.starts[e1] > rows.starts[e0]) some_experts(layer, rows, e0, e1, x.data(), weights.data(), T, k, y.data);
    }
    return y.array;
}
// Head h of x [T, n, cols] by matrix h.
Out per_head(Floats x, const Experts& w) {
    expect("x", x, {-1, int64_t(w.n), int64_t(w.cols)});
    const size_t T = x.shape(0), n = w.n, in = w.cols, out = w.rows;
    Fresh y{T, n, out};
    nb::gil_scoped_release released;
    std::vector<Factor> factors;
    if (T == 1) {  // lies as the products want it
        for (size_t h = 0; h < n; h++) factors.push_back({x.data() + h * in, 1, w.of(h), nullptr, y.data + h * out});
        multiply(factors);
        return y.array;
    }
    const size_t most = std::max<size_t>(1, wave_bytes / sizeof(float) / std::max<size_t>(1, T * (in + out)));  // heads at a time
    for (size_t h0 = 0; h0 < n; h0 += most) {
        const size_t heads = std::min(most, n - h0);
        Room<float> from(heads * T * in), to(heads * T * out);
        auto transpose = [&](const float* a, float* b, size_t width, bool gather) {  // [T][n] or [heads][T] of rows
            parallel(heads * T, 64, double(heads) * T * width, [&](size_t begin, size_t end) {
                for (size_t i = begin; i < end; i++) {
                    const size_t apart = (i % T * n + h0 + i / T) * width, together = i * width;
                    std::copy_n(a + (gather ? apart : together), width, b + (gather ? together : apart));
                }
            });
        };
        transpose(x.data(), from.data, in, true);
        factors.clear();
        for (size_t h = 0; h < heads; h++) factors.push_back({from.data + h * T * in, T, w.of(h0 + h), nullptr, to.data + h * T * out});
        multiply(factors);
        transpose(to.data, y.data, out, false);
    }
    return y.array;
}
}  // namespace

void bind_experts(nb::module_& m) {
    nb::class_<Experts>(m, "Experts", "Matrices [rows, cols], one for each expert, of any type that decodes to floats, read where they lie.")
        .def(nb::init<nb::object, Bytes, int, size_t, size_t, size_t, int>(), nb::arg("tensor"), nb::arg("data").noconvert(), nb::arg("type"), nb::arg("n"), nb::arg("rows"), nb::arg("cols"),
             nb::arg("planes") = 0)
        .def_ro("tensor", &Experts::tensor, "The QTensor it was bound from.")
        .def_prop_ro("name", [](const Experts& w) { return w.tensor.attr("name"); })
        .def_prop_ro("type", [](const Experts& w) { return w.tensor.attr("type"); })
        .def_prop_ro("shape", [](const Experts& w) { return nb::make_tuple(w.n, w.rows, w.cols); })
        .def("__repr__", [](const Experts& w) { return "Experts(" + w.name() + ", " + w.format().name + ", " + w.shape() + ")"; });
    m.def("route", &route, nb::arg("logits"), nb::arg("n_used"), nb::arg("gate"), nb::arg("bias").none(), nb::arg("n_groups"), nb::arg("n_groups_used"), nb::arg("group_top"), nb::arg("normalize"),
          nb::arg("scale"), "The experts of each token and their weights, both [T, n_used].");
    m.def("moe", &moe, nb::arg("x"), nb::arg("ids").noconvert(), nb::arg("weights"), nb::arg("gate"), nb::arg("up"), nb::arg("down"), nb::arg("act"), nb::arg("gate_bias").none(),
          nb::arg("up_bias").none(), nb::arg("down_bias").none(), "Each token through its experts, summed with their weights: [T, n_embd].");
    m.def("per_head", &per_head, nb::arg("x"), nb::arg("w"), "Each head of x [T, n, cols] by a matrix of its own: [T, n, rows].");
}
}  // namespace qt
