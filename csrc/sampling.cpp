// A token drawn from logits: the cuts of src/qtransformers/sampling.py without sorting.
//
// Every cut keeps a beginning of one order, likeliest first and ties by id, so all that need be found is the value where it
// ends, and how many of those equal to it belong to it: by a histogram, of which one bin is sorted.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "arrays.h"
#include "pool.h"

namespace qt {
namespace {
constexpr size_t sorted_most = 2048, block = 512, pieces = 4;
constexpr size_t all_ties = std::numeric_limits<size_t>::max();

struct Logits {
    const float* x;
    size_t n;
    double top;  // the largest
    const Kernels& k;

    double mass(float v) const { return std::exp(double(v) - top); }

    // In pieces of the same size on any number of threads, so that sums are the same.
    void histogram(const Range& range, bool masses, double* bins) const {
        std::vector<double> parts(pieces * (sample_bins + 1));
        const size_t each = ((n + pieces - 1) / pieces + 63) / 64 * 64;
        parallel(pieces, 1, double(n) * 20, [&](size_t begin, size_t end) {
            for (size_t i = begin; i < end && i * each < n; i++)
                k.histogram(x + i * each, std::min(each, n - i * each), range, top, masses, parts.data() + i * (sample_bins + 1));
        });
        for (size_t b = 0; b < sample_bins; b++) {
            bins[b] = 0;
            for (size_t i = 0; i < pieces; i++) bins[b] += parts[i * (sample_bins + 1) + b];
        }
    }

    // The shortest beginning of the order whose count reaches `wanted`, or whose mass reaches that part of `total` (0: of all
    // masses), of the logits in [low, high], the largest among them.
    Cut reach(double wanted, bool masses, float low, float high, double total = 0) const {
        int32_t* ids = reinterpret_cast<int32_t*>(shared_scratch(n * sizeof(int32_t)));
        double before = 0, bins[sample_bins];
        for (bool first = true;; first = false) {
            const float scale = float(sample_bins) / (high * .5f - low * .5f);
            const bool flat = !std::isfinite(scale);  // equal, or closer than halves can tell
            const Range range{low, high, flat ? 0 : scale};
            histogram(range, masses, bins);
            if (first && masses) {
                if (!total)
                    for (double bin : bins) total += bin;
                wanted *= total;
            }
            size_t b = 0;
            while (b + 1 < sample_bins && before + bins[b] < wanted) before += bins[b++];
            const size_t found = k.collect(x, n, range, int32_t(b), ids);
            if (!flat && found > sorted_most) {
                const auto [least, most] = std::minmax_element(ids, ids + found, [&](int32_t i, int32_t j) { return x[i] < x[j]; });
                low = x[*least], high = x[*most];
                continue;
            }
            std::stable_sort(ids, ids + found, [&](int32_t i, int32_t j) { return x[i] > x[j]; });
            for (size_t i = 0, equal = 0; i < found; i++) {
                const float v = x[ids[i]];
                equal = i && x[ids[i - 1]] == v ? equal + 1 : 1;
                before += masses ? mass(v) : 1;
                if (before >= wanted) return {v, i + 1 < found && x[ids[i + 1]] == v ? equal : all_ties};
            }
            return {low, all_ties};  // rounding left the sum short of all
        }
    }
};

// The smallest float that is no less.
float at_least(double v) {
    const float f = float(v);
    return double(f) < v ? std::nextafter(f, std::numeric_limits<float>::infinity()) : f;
}

// The id drawn by `u` in [0, 1); where the logits are broken, -1 - the id of one that is no finite number.
int64_t choose(const float* x, size_t n, double temperature, size_t top_k, double top_p, double min_p, double u) {
    const Kernels& k = current_kernels();
    const Extremes e = k.scan(x, n);
    if (e.broken >= 0) return -1 - e.broken;
    if (!n || e.most == -std::numeric_limits<float>::infinity()) return -1;
    if (temperature == 0) return e.best;
    const Logits logits{x, n, double(e.most), k};
    Cut cut{e.least, all_ties};
    if (top_k && top_k < n) cut = logits.reach(double(top_k), false, e.least, e.most);
    if (top_p < 1) {
        Cut left = cut;
        const bool all = cut.ties == all_ties;  // else the histogram counts ties that are out
        const Cut head = logits.reach(top_p, true, cut.value, e.most, all ? 0 : k.weigh(x, n, left, logits.top, 1, nullptr));
        if (head.value > cut.value || head.ties < cut.ties) cut = head;
    }
    if (min_p > 0)
        if (const float least = at_least(logits.top + std::log(min_p)); least > cut.value) cut = {least, all_ties};
    const double factor = std::min(1 / temperature, std::numeric_limits<double>::max());
    struct Block {
        double sum;
        size_t ties;  // left where it begins
    };
    std::vector<Block> blocks((n + block - 1) / block);
    auto weigh = [&](size_t b, size_t& ties, double* weights) {
        Cut left{cut.value, ties};
        const double sum = k.weigh(x + b * block, std::min(block, n - b * block), left, logits.top, factor, weights);
        if (ties != all_ties) ties = left.ties;
        return sum;
    };
    auto some = [&](size_t begin, size_t end) {
        for (size_t ties = cut.ties, b = begin; b < end; b++) {
            blocks[b].ties = ties;
            blocks[b].sum = weigh(b, ties, nullptr);
        }
    };
    if (cut.ties == all_ties)
        parallel(blocks.size(), 32, double(n) * 20, some);
    else
        some(0, blocks.size());
    double total = 0;
    for (const Block& b : blocks) total += b.sum;
    const double target = u * total;
    double before = 0, weights[block];
    int64_t last = e.best;
    for (size_t b = 0; b < blocks.size(); b++) {
        if (before + blocks[b].sum <= target && b + 1 < blocks.size()) {
            before += blocks[b].sum;
            continue;
        }
        const size_t first = b * block, size = std::min(block, n - first);
        weigh(b, blocks[b].ties, weights);
        for (size_t i = 0; i < size; i++) {
            if (weights[i] > 0) last = int64_t(first + i);
            if ((before += weights[i]) > target) return last;
        }
    }
    return last;
}

int64_t sample(Floats logits, double temperature, size_t top_k, double top_p, double min_p, double u) {
    expect("logits", logits, {-1});
    nb::gil_scoped_release released;
    return choose(logits.data(), logits.size(), temperature, top_k, top_p, min_p, u);
}
}  // namespace

void bind_sampling(nb::module_& m) {
    m.def("sample", &sample, nb::arg("logits"), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("u"),
          "The id that `u` in [0, 1) draws from logits [n], cut and tempered; -1 - id of a logit that is no finite number.");
}
}  // namespace qt
