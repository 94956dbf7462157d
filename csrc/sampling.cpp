// A token drawn from logits: the stages of src/qtransformers/sampling/definition.py without sorting; race.h tells how.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "race.h"

namespace qt {
namespace {
// What a request asks for, in the order of the stages; sampling/settings.py explains and checks it.
struct Stages {
    double temperature, top_n_sigma;
    size_t top_k;
    double typical_p, top_p, min_p, xtc_probability, xtc_threshold, dynatemp_range, dynatemp_exponent;
    bool mirostat;
};

double entropy(const Mass& m) { return std::log(m.sum) - m.energy / m.sum; }  // nats, of weights e^y

// The stages in their order; 1 / temperature.
double run(Race& race, const Stages& s, double coin, double mu, double& z) {
    if (s.top_n_sigma) {
        const Moments m = race.k.moments(race.x, race.n, race.top);
        const double mean = m.sum / m.count;
        race.keep_from(race.top - s.top_n_sigma * std::sqrt(std::max(0.0, m.squares / m.count - mean * mean)));
    }
    if (s.top_k) race.keep_largest(s.top_k);
    if (s.typical_p < 1) race.keep_mass(s.typical_p, true);
    if (s.top_p < 1) race.keep_mass(s.top_p, false);
    if (s.min_p) race.keep_from(race.top + std::log(s.min_p));
    if (coin < s.xtc_probability) race.keep_least_above(race.top + std::log(s.xtc_threshold * race.weigh(1, false).sum));
    double temperature = s.temperature;
    if (s.dynatemp_range) {
        const double n = race.k.moments(race.x, race.n, race.top).count, low = std::max(0.0, temperature - s.dynatemp_range);
        const double unclear = n > 1 ? std::clamp(entropy(race.weigh(1, true)) / std::log(n), 0.0, 1.0) : 0;
        temperature = low + (temperature + s.dynatemp_range - low) * std::pow(unclear, s.dynatemp_exponent);
    }
    const double factor = std::min(1 / temperature, std::numeric_limits<double>::max());
    if (s.mirostat) {
        z = race.weigh(factor, false).sum;
        race.keep_from(race.top + (std::log(z) - mu * std::log(2.0)) / factor);
    }
    return factor;
}

// Where nothing can be drawn: -1 - the id of a logit that is no finite number.
int64_t broken(const Extremes& e, size_t n) { return e.broken >= 0 ? -1 - e.broken : !n || e.most == -infinity ? -1 : 0; }

struct Choice {
    int64_t id;
    double bits;  // of surprise before mirostat cut, where it does
};

// What `u` in [0, 1) draws.
Choice choose(const float* x, size_t n, const Stages& s, double u, double coin, double mu) {
    const Kernels& k = current_kernels();
    const Extremes e = k.scan(x, n);
    if (const int64_t none = broken(e, n)) return {none, 0};
    if (s.temperature == 0) return {e.best, 0};
    Race race(x, n, e, k);
    double z = 0;
    const double factor = run(race, s, coin, mu, z);
    std::vector<double> blocks;
    const double target = u * race.weigh(factor, false, &blocks).sum;
    double before = 0, weights[race_block];
    size_t last = 0;
    for (size_t b = 0; b < blocks.size(); b++) {
        if (before + blocks[b] <= target && b + 1 < blocks.size()) {
            before += blocks[b];
            continue;
        }
        const size_t first = b * race_block, size = std::min(race_block, race.n - first);
        k.weigh(race.x + first, size, race.top, factor, false, weights);
        for (size_t i = 0; i < size && before <= target; i++) {
            if (weights[i] > 0) last = first + i;
            before += weights[i];
        }
        if (before > target) break;
    }
    return {race.id(last), s.mirostat ? std::log2(z) - (double(race.x[last]) - race.top) * factor / std::log(2.0) : 0};
}

std::tuple<int64_t, double> sample(Floats logits, const Stages& stages, double u, double coin, double mu) {
    expect("logits", logits, {-1});
    nb::gil_scoped_release released;
    const Choice c = choose(logits.data(), logits.size(), stages, u, coin, mu);
    return {c.id, c.bits};
}

using Ids = nb::ndarray<nb::numpy, int64_t>;
using Doubles = nb::ndarray<nb::numpy, double>;
template <class T>
nb::ndarray<nb::numpy, T> owned(std::vector<T>&& values) {
    auto* v = new std::vector<T>(std::move(values));
    const size_t n = v->size();
    return nb::ndarray<nb::numpy, T>(v->data(), {n}, nb::capsule(v, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); }));
}

std::tuple<Ids, Doubles, double> distribution(Floats logits, const Stages& stages, double coin, double mu) {
    expect("logits", logits, {-1});
    std::vector<int64_t> ids;
    std::vector<double> p;
    double part = 1;
    {
        nb::gil_scoped_release released;
        const Kernels& k = current_kernels();
        const Extremes e = k.scan(logits.data(), logits.size());
        if (const int64_t none = broken(e, logits.size())) {
            ids = {none};
        } else if (stages.temperature == 0) {
            ids = {e.best}, p = {1};
        } else {
            Race race(logits.data(), logits.size(), e, k);
            double z = 0;
            const double factor = run(race, stages, coin, mu, z);
            race.keep({race.least, all_ties}, race.x);  // those of minus infinity are out
            p.resize(race.n), ids.resize(race.n);
            const double sum = race.weigh(factor, false).sum;
            k.weigh(race.x, race.n, race.top, factor, false, p.data());
            for (size_t i = 0; i < race.n; i++) ids[i] = race.id(i), p[i] /= sum;
            if (stages.mirostat) part = sum / z;
        }
    }
    return {owned(std::move(ids)), owned(std::move(p)), part};
}

std::tuple<double, Ids, Doubles> logprobs(Floats logits, size_t token, size_t n_top) {
    expect("logits", logits, {-1});
    if (token >= logits.size()) refuse("token is " + std::to_string(token) + "; expected an id below " + std::to_string(logits.size()) + ".");
    std::vector<int64_t> ids;
    std::vector<double> values;
    double found = 0;
    {
        nb::gil_scoped_release released;
        const Kernels& k = current_kernels();
        const Extremes e = k.scan(logits.data(), logits.size());
        if (const int64_t none = broken(e, logits.size())) {
            ids = {none};
        } else {
            Race race(logits.data(), logits.size(), e, k);
            const double z = race.top + std::log(race.weigh(1, false).sum);
            found = double(logits.data()[token]) - z;
            if (n_top) {
                race.keep_largest(n_top);
                race.keep({race.least, all_ties}, race.x);
                std::vector<size_t> order(race.n);
                for (size_t i = 0; i < race.n; i++) order[i] = i;
                std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return race.x[i] > race.x[j]; });
                for (size_t i : order) ids.push_back(race.id(i)), values.push_back(double(race.x[i]) - z);
            }
        }
    }
    return {found, owned(std::move(ids)), owned(std::move(values))};
}
}  // namespace

void bind_sampling(nb::module_& m) {
    nb::class_<Stages>(m, "Stages", "What is drawn from, by the fields of Sampling.")
        .def(
            "__init__",
            [](Stages* s, double temperature, double top_n_sigma, size_t top_k, double typical_p, double top_p, double min_p, double xtc_probability,
               double xtc_threshold, double dynatemp_range, double dynatemp_exponent, bool mirostat) {
                new (s) Stages{temperature, top_n_sigma, top_k, typical_p, top_p, min_p, xtc_probability, xtc_threshold, dynatemp_range, dynatemp_exponent, mirostat};
            },
            nb::arg("temperature") = 1.0, nb::arg("top_n_sigma") = 0.0, nb::arg("top_k") = 0, nb::arg("typical_p") = 1.0, nb::arg("top_p") = 1.0, nb::arg("min_p") = 0.0,
            nb::arg("xtc_probability") = 0.0, nb::arg("xtc_threshold") = 0.1, nb::arg("dynatemp_range") = 0.0, nb::arg("dynatemp_exponent") = 1.0,
            nb::arg("mirostat") = false);
    m.def("sample", &sample, nb::arg("logits"), nb::arg("stages"), nb::arg("u"), nb::arg("coin") = 1.0, nb::arg("mu") = 0.0,
          "The id that `u` in [0, 1) draws from logits [n], and its surprise in bits where mirostat asks for it; -1 - id of a logit that is no finite number.");
    m.def("distribution", &distribution, nb::arg("logits"), nb::arg("stages"), nb::arg("coin") = 1.0, nb::arg("mu") = 0.0,
          "All that sample() could draw from logits [n]: ids, rising, their probabilities, and what part of all mirostat left; no ids, as sample(), for broken logits.");
    m.def("logprobs", &logprobs, nb::arg("logits"), nb::arg("token"), nb::arg("n_top"),
          "Log-softmax of logits [n] at a token, and the `n_top` largest: ids and values; the first id negative, as sample(), for broken logits.");
}
}  // namespace qt
