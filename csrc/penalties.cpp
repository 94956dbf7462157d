// What repetitions cost: logits changed where the history says so. src/qtransformers/sampling/definition.py defines it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "arrays.h"
#include "pool.h"

namespace qt {
namespace {
using Logits = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
constexpr double most_penalty = 1e9;  // far beyond any logit, and finite

// A finite logit stays finite.
float bounded(double v, float was) {
    constexpr double most = std::numeric_limits<float>::max();
    return std::isfinite(was) ? float(std::clamp(v, -most, most)) : float(v);
}

// A number for each token of the history: zero at first, and only those of the history are touched.
struct Counts {
    uint32_t* of;
    const int32_t *begin, *end;
    size_t n;
    Counts(size_t n_logits, const int32_t* begin, const int32_t* end) : of(reinterpret_cast<uint32_t*>(shared_scratch(n_logits * sizeof(uint32_t)))), begin(begin), end(end), n(n_logits) {
        each([&](size_t t, const int32_t*) { of[t] = 0; });
    }
    template <class F>
    void each(F&& f) const {
        for (const int32_t* p = begin; p < end; p++)
            if (*p >= 0 && size_t(*p) < n) f(size_t(*p), p);
    }
    // f(token, its number) once for each token whose number is not zero
    template <class F>
    void once(F&& f) const {
        each([&](size_t t, const int32_t*) {
            if (const uint32_t count = of[t]) of[t] = 0, f(t, count);
        });
    }
};

void penalise(Logits logits, Tokens tokens, size_t n_prompt, size_t range, double repetition, double frequency, double presence) {
    nb::gil_scoped_release released;
    const int32_t* end = tokens.data() + tokens.size();
    const int32_t* answer = tokens.data() + std::min(n_prompt, tokens.size());
    Counts counts(logits.size(), end - std::min(range, tokens.size()), end);
    counts.each([&](size_t t, const int32_t* p) { counts.of[t] = (counts.of[t] | 1) + 2 * (p >= answer); });  // twice how often it is in the answer, plus 1
    counts.once([&](size_t t, uint32_t count) {
        float& x = logits.data()[t];
        const double v = x > 0 ? x / repetition : x * repetition;
        x = bounded(v - ((count >> 1) * frequency + (count > 1) * presence), x);
    });
}

void dry(Logits logits, Tokens tokens, std::optional<Flags> breaks, size_t limit, size_t range, double multiplier, double base, size_t allowed) {
    if (breaks) expect("breaks", *breaks, {int64_t(logits.size())});
    nb::gil_scoped_release released;
    const int32_t* end = tokens.data() + tokens.size();
    const size_t m = std::min(range, tokens.size());
    auto back = [&](size_t i) { return end[-1 - ptrdiff_t(i)]; };  // the i-th token from the end
    auto stops = [&](int32_t t) { return breaks && t >= 0 && size_t(t) < logits.size() && breaks->data()[t]; };
    limit = std::min(limit, m);
    for (size_t i = 0; i < limit; i++)
        if (stops(back(i))) limit = i;
    if (limit < allowed || m <= allowed) return;
    Counts longest(logits.size(), end - m, end);
    uint32_t* same = reinterpret_cast<uint32_t*>(scratch(m));  // how far the history up to k tokens ago ends as it ends now
    for (size_t k = 1, left = 0, right = 0; k < m; k++) {  // [left, right) is known to be the same as [0, right - left)
        size_t n = k < right ? std::min<size_t>(same[k - left], right - k) : 0;
        while (k + n < m && back(n) == back(k + n)) n++;
        if (k + n > right) left = k, right = k + n;
        same[k] = uint32_t(n);
        const int32_t next = back(k - 1);
        n = std::min(n, limit);
        if (n >= allowed && next >= 0 && size_t(next) < logits.size() && !stops(next)) longest.of[next] = std::max(longest.of[next], uint32_t(n));
    }
    longest.once([&](size_t t, uint32_t n) {
        float& x = logits.data()[t];
        x = bounded(x - std::min(most_penalty, multiplier * std::pow(base, double(n - allowed))), x);
    });
}
}  // namespace

void bind_penalties(nb::module_& m) {
    m.def("penalise", &penalise, nb::arg("logits").noconvert(), nb::arg("tokens"), nb::arg("n_prompt"), nb::arg("range"), nb::arg("repetition"), nb::arg("frequency"),
          nb::arg("presence"), "Changes logits [n] of the tokens among the last `range`, the first `n_prompt` of all being the prompt's.");
    m.def("dry", &dry, nb::arg("logits").noconvert(), nb::arg("tokens"), nb::arg("breaks").none(), nb::arg("limit"), nb::arg("range"), nb::arg("multiplier"), nb::arg("base"),
          nb::arg("allowed"), "Lowers logits [n] of what would go on with a repetition of at most `limit` tokens, none of which `breaks` [n].");
}
}  // namespace qt
