// Layers with a state of fixed size: arguments checked, heads and channels shared out.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "arrays.h"
#include "pool.h"

namespace qt {
namespace {
using State = nb::ndarray<float, nb::c_contig, nb::device::cpu>;  // writable

void check_sequences(const Ints& starts, size_t n, size_t T) {
    expect("starts", starts, {int64_t(n) + 1});
    check_starts(starts.data(), n + 1, T);
}

Out gated_delta(Floats q, Floats k, Floats v, Floats fade, Floats beta, Ints starts, const std::vector<State>& states) {
    expect("k", k, {-1, -1, -1});
    expect("v", v, {int64_t(k.shape(0)), -1, -1});
    const size_t T = k.shape(0), n_k = k.shape(1), d_k = k.shape(2), n_v = v.shape(1), d_v = v.shape(2);
    if (!n_k || n_v % n_k) refuse("k has " + std::to_string(n_k) + " heads and v " + std::to_string(n_v) + "; expected a multiple.");
    expect("q", q, {int64_t(T), int64_t(n_k), int64_t(d_k)});
    for (const auto& [name, a] : {std::pair("fade", &fade), std::pair("beta", &beta)}) expect(name, *a, {int64_t(T), int64_t(n_v)});
    check_sequences(starts, states.size(), T);
    for (const State& s : states) expect("a state", s, {int64_t(n_v), int64_t(d_k), int64_t(d_v)});
    Fresh y{T, n_v, d_v};
    std::vector<DeltaJob> jobs;
    for (size_t s = 0; s < states.size(); s++) {
        const size_t t = starts.data()[s], keys = t * n_k * d_k, values = t * n_v * d_v;
        jobs.push_back({q.data() + keys, k.data() + keys, v.data() + values, fade.data() + t * n_v, beta.data() + t * n_v, y.data + values, starts.data()[s + 1] - t, n_k, n_v, d_k, d_v});
    }
    constexpr size_t columns = delta_columns_most;  // of a thread at a time
    const size_t pieces = (d_v + columns - 1) / columns, each = n_v * pieces;
    const Kernels& kernels = current_kernels();
    nb::gil_scoped_release released;
    parallel(jobs.size() * each, 1, 4.0 * double(T) * n_v * d_k * d_v, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; i++) {
            const size_t s = i / each, head = i % each / pieces, c0 = i % pieces * columns;
            if (jobs[s].tokens) kernels.delta(jobs[s], head, c0, std::min(c0 + columns, d_v), states[s].data() + head * d_k * d_v, scratch(columns * d_k));
        }
    });
    return y.array;
}

// The last rows of a past and the tokens after it become the past of those to come.
void move_on(float* past, size_t before, const float* x, size_t tokens, size_t channels) {
    const size_t stay = before > tokens ? before - tokens : 0;
    std::memmove(past, past + (before - stay) * channels, stay * channels * sizeof(float));
    std::copy_n(x + (tokens - (before - stay)) * channels, (before - stay) * channels, past + stay * channels);
}

Out causal_conv(Floats x, Floats kernel, Ints starts, const std::vector<State>& pasts) {
    expect("x", x, {-1, -1});
    const size_t T = x.shape(0), channels = x.shape(1);
    expect("kernel", kernel, {int64_t(channels), -1});
    const size_t width = kernel.shape(1);
    if (!width) refuse("kernel is " + shape_of(kernel) + "; expected at least one token.");
    check_sequences(starts, pasts.size(), T);
    for (const State& p : pasts) expect("a past", p, {int64_t(width) - 1, int64_t(channels)});
    Fresh y{T, channels};
    struct Piece {
        size_t sequence, t0, t1;
    };
    std::vector<ConvJob> jobs;
    std::vector<Piece> pieces;
    for (size_t s = 0; s < pasts.size(); s++) {
        const size_t first = starts.data()[s], tokens = starts.data()[s + 1] - first;
        jobs.push_back({x.data() + first * channels, pasts[s].data(), kernel.data(), y.data + first * channels, channels, width});
        for (size_t t = 0; t < tokens; t += conv_tokens) pieces.push_back({s, t, std::min(t + conv_tokens, tokens)});
    }
    const size_t chunks = (channels + conv_channels - 1) / conv_channels;
    const Kernels& kernels = current_kernels();
    nb::gil_scoped_release released;
    parallel(pieces.size() * chunks, 1, double(T + 1) * channels * width, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; i++) {
            const Piece& p = pieces[i / chunks];
            const size_t c = i % chunks * conv_channels;
            kernels.conv(jobs[p.sequence], p.t0, p.t1, c, std::min(c + conv_channels, channels), scratch(width * conv_channels));
        }
    });
    for (size_t s = 0; s < pasts.size(); s++) move_on(pasts[s].data(), width - 1, jobs[s].x, starts.data()[s + 1] - starts.data()[s], channels);
    return y.array;
}
}  // namespace

void bind_recurrent(nb::module_& m) {
    m.def("gated_delta", &gated_delta, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("fade"), nb::arg("beta"), nb::arg("starts").noconvert(), nb::arg("states").noconvert(),
          "The gated delta rule; states [n_v, d_k, d_v], one for each sequence, go from before to after its tokens: [T, n_v, d_v].");
    m.def("causal_conv", &causal_conv, nb::arg("x"), nb::arg("kernel"), nb::arg("starts").noconvert(), nb::arg("pasts").noconvert(),
          "Each channel of x [T, C] with kernel [C, K] over its last K tokens, moving on pasts [K - 1, C]: [T, C].");
}
}  // namespace qt
