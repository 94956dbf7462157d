// Which logits stay, without sorting.
//
// A stage keeps the beginning of an order, largest key first and ties by id. So all that need be found is the key where it ends,
// and how many of those equal to it belong to it: by a histogram, of which one bin is sorted. Where masses are asked of many logits,
// counts in bins bound it first, so that one pass of exponentials sums all that surely stays and leaves few to sort. What a stage
// keeps moves together, so that the next one has less to read.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pool.h"

namespace qt {
inline constexpr size_t sorted_most = 2048, race_block = 512, pieces = 4, many = 8192;
inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr size_t all_ties = std::numeric_limits<size_t>::max();
inline constexpr double pass_work = 20;  // of a logit, as parallel() counts

// The smallest float that is no less.
inline float at_least(double v) {
    const float f = float(v);
    return double(f) < v ? std::nextafter(f, infinity) : f;
}

// The logits that are still in the race, by rising id.
class Race {
  public:
    Race(const float* logits, size_t size, const Extremes& e, const Kernels& kernels) : x(logits), n(size), k(kernels), room_(padded(size) + lane_floats) {
        floats_ = reinterpret_cast<float*>(shared_scratch(5 * room_ * sizeof(float)));
        see(e);
    }
    const float* x;
    size_t n;
    double top;   // the largest
    float least;  // that may be
    const Kernels& k;

    int64_t id(size_t i) const { return ids_ ? ids_[i] : int64_t(i); }
    double mass(float v) const { return std::exp(double(v) - top); }

    // Sums over the race, in blocks of the same size on any number of threads.
    Mass weigh(double factor, bool energy, std::vector<double>* of_blocks = nullptr) const {
        std::vector<Mass> blocks((n + race_block - 1) / race_block);
        parallel(blocks.size(), 32, double(n) * pass_work, [&](size_t begin, size_t end) {
            for (size_t b = begin; b < end; b++) blocks[b] = k.weigh(x + b * race_block, std::min(race_block, n - b * race_block), top, factor, energy, nullptr);
        });
        Mass total{};
        for (const Mass& m : blocks) total.sum += m.sum, total.energy += m.energy;
        if (of_blocks)
            for (const Mass& m : blocks) of_blocks->push_back(m.sum);
        return total;
    }

    // Only what the cut leaves stays.
    void keep(const Cut& cut, const float* keys) {
        float* out = floats_ + room_;
        int32_t* ids = reinterpret_cast<int32_t*>(floats_ + 2 * room_);
        n = k.keep(keys, x, ids_, n, cut, out, ids);
        x = out, ids_ = ids;
    }
    void keep(const Cut& cut) {
        if (cut.ties == all_ties && cut.value <= least) return;
        keep(cut, x);
        least = cut.value;
    }
    void keep_from(double value) { keep({at_least(std::min(value, top)), all_ties}); }

    // Keys of the order nearest to `centre` first.
    float* nearest(double centre) const {
        float* keys = floats_ + 3 * room_;
        k.distances(x, n, centre, keys);
        return keys;
    }
    // If several are at least `value`, of those only the least stays, the first of equals.
    void keep_least_above(double value) {
        float* keys = floats_ + 3 * room_;
        const size_t found = k.keep(x, x, nullptr, n, {std::max(at_least(value), least), all_ties}, floats_, reinterpret_cast<int32_t*>(keys));
        if (found < 2) return;
        const float last = *std::min_element(floats_, floats_ + found);
        if (std::count(floats_, floats_ + found, last) == 1) {
            keep({-infinity, all_ties, last}, x);
        } else {
            for (size_t i = 0; i < n; i++) keys[i] = -x[i];
            keep({-last, 1}, keys);
        }
        top = last;
    }
    void look_again() { see(k.scan(x, n)); }

    // The shortest beginning of the order of `keys` within [low, high] whose count, or mass, reaches `wanted`.
    // `before` counts what precedes all of them.
    Cut reach(const float* keys, double wanted, bool masses, float low, float high, double before = 0) const {
        int32_t* at = reinterpret_cast<int32_t*>(floats_);
        double bins[sample_bins];
        for (;;) {
            const float scale = float(sample_bins) / (high * .5f - low * .5f);
            const bool flat = !std::isfinite(scale);  // equal, or closer than halves can tell
            const Range range{low, high, flat ? 0 : scale};
            masses ? histogram(keys, range, bins) : void(std::copy_n(tally(keys, range).begin(), sample_bins, bins));
            size_t b = 0;
            while (b + 1 < sample_bins && (!bins[b] || before + bins[b] < wanted)) before += bins[b++];
            const size_t found = k.collect(keys, n, range, int32_t(b), at);
            if (!flat && found > sorted_most) {
                const auto [least, most] = std::minmax_element(at, at + found, [&](int32_t i, int32_t j) { return keys[i] < keys[j]; });
                low = keys[*least], high = keys[*most];
                continue;
            }
            if (low < high)
                std::sort(at, at + found, [&](int32_t i, int32_t j) { return keys[i] > keys[j] || (keys[i] == keys[j] && i < j); });
            for (size_t i = 0, equal = 0; i < found; i++) {
                const float v = keys[at[i]];
                equal = i && keys[at[i - 1]] == v ? equal + 1 : 1;
                before += masses ? mass(x[at[i]]) : 1;
                if (before >= wanted) return {v, i + 1 < found && keys[at[i + 1]] == v ? equal : all_ties};
            }
            return {low, all_ties};  // rounding left the sum short of all
        }
    }
    Cut reach(double wanted, bool masses) const { return reach(x, wanted, masses, least, float(top)); }

    // The `count` likeliest. Of many logits a few tell where about those end, so that not all need be counted.
    void keep_largest(size_t count) {
        if (count >= n) return;
        constexpr size_t seen = 1024;
        if (!ids_ && n > 16 * seen && count < n / 16) {
            const Race all = *this;
            float some[seen];
            for (size_t i = 0; i < seen; i++) some[i] = x[i * n / seen];
            const size_t rank = 2 * count * seen / n + 8;
            std::nth_element(some, some + rank, some + seen, std::greater<float>());
            keep({some[rank], all_ties});
            if (n < count) restore(all);
        }
        if (count < n) keep(reach(double(count), false));
    }

    // The likeliest, or those nearest to the expected logit, until they reach the part p of all mass.
    void keep_mass(double p, bool typical) {
        Ends ends;
        for (size_t every : {8, 1})
            if (n > every * many && bound(p, typical, every, ends) && keep_between(ends, p, typical)) return;
        const Mass m = weigh(1, typical);
        if (!typical) return keep(reach(p * m.sum, true));
        const double centre = expected(m), farthest = std::max(top - centre, std::abs(double(least) - centre));
        const float* keys = nearest(centre);
        keep(reach(keys, p * m.sum, true, -float(farthest), 0), keys);
        look_again();
    }

  private:
    double expected(const Mass& m) const { return top + m.energy / m.sum; }  // the logit whose surprise is the entropy

    // keep_mass() where it ends between `ends`, else false.
    bool keep_between(const Ends& ends, double p, bool typical) {
        const size_t n_blocks = (n + race_block - 1) / race_block;
        std::vector<Parts> blocks(n_blocks);
        float* near = floats_ + 3 * room_;
        parallel(n_blocks, 32, double(n) * pass_work, [&](size_t begin, size_t end) {
            float found[race_block + lane_floats];
            for (size_t b = begin; b < end; b++) {
                blocks[b] = k.divide(x + b * race_block, std::min(race_block, n - b * race_block), top, typical, ends, found);
                std::copy_n(found, blocks[b].found, near + b * race_block);
            }
        });
        Parts all{};
        for (size_t b = 0; b < n_blocks; b++) {
            const Parts& part = blocks[b];
            std::copy_n(near + b * race_block, part.found, near + all.found);
            all.all.sum += part.all.sum, all.all.energy += part.all.energy, all.inner += part.inner, all.found += part.found;
        }
        Race few = *this;
        few.x = near, few.n = all.found;
        const double wanted = p * all.all.sum, centre = expected(all.all);
        if (!all.found || !(all.inner < wanted && wanted < all.inner + few.weigh(1, false).sum)) return false;
        if (!typical) {
            keep(few.reach(near, wanted, true, std::max(least, ends.outer_low), float(std::min(top, double(ends.inner_low))), all.inner));
            return true;
        }
        float* keys = floats_ + 4 * room_;
        k.distances(near, few.n, centre, keys);
        const auto [farthest, nearest_one] = std::minmax_element(keys, keys + few.n);
        const Cut cut = few.reach(keys, wanted, true, *farthest, *nearest_one, all.inner);
        const double d = -double(cut.value), margin = 1e-6 * d;
        const bool some = ends.inner_low < ends.inner_high;
        const double inside = some ? std::max(centre - ends.inner_low, std::min(double(ends.inner_high), top) - centre) : -1;
        if (inside > d - margin || (ends.outer_low > least && centre - ends.outer_low < d + margin) || (ends.outer_high < top && ends.outer_high - centre < d + margin)) return false;
        if (cut.ties == all_ties) {  // both ends are logits then
            const auto last = [&](float out) {  // that stays, on the way there: a logit between whose neighbours lies no other
                for (float in = float(centre);;) {
                    const float middle = in * .5f + out * .5f;
                    if (middle == in || middle == out) return in;
                    (-float(std::abs(double(middle) - centre)) >= cut.value ? in : out) = middle;
                }
            };
            const float low = last(float(centre - 1.001 * d) - 1), high = last(float(centre + 1.001 * d) + 1);
            keep({low, all_ties, high}, x);
        } else {
            k.distances(x, n, centre, keys);
            keep(cut, keys);
        }
        look_again();
        return true;
    }

    void see(const Extremes& e) { top = e.most, least = e.least; }
    void restore(const Race& r) { x = r.x, n = r.n, least = r.least, ids_ = r.ids_; }

    // f(where bins are added, begin, n) over pieces of the same size on any number of threads, so that sums are the same.
    template <class T, class F>
    std::vector<T> in_pieces(F&& f) const {
        std::vector<T> parts(pieces * (sample_bins + 1));
        const size_t each = ((n + pieces - 1) / pieces + 63) / 64 * 64;
        parallel(pieces, 1, double(n) * pass_work, [&](size_t begin, size_t end) {
            for (size_t i = begin; i < end && i * each < n; i++) f(parts.data() + i * (sample_bins + 1), i * each, std::min(each, n - i * each));
        });
        for (size_t i = 1; i < pieces; i++)
            for (size_t b = 0; b <= sample_bins; b++) parts[b] += parts[i * (sample_bins + 1) + b];
        return parts;
    }
    void histogram(const float* keys, const Range& range, double* bins) const {
        const auto masses = in_pieces<double>([&](double* to, size_t at, size_t size) { k.histogram(keys + at, x + at, size, range, top, to); });
        std::copy_n(masses.begin(), sample_bins, bins);
    }
    std::vector<uint32_t> tally(const float* keys, const Range& range, size_t every = 1) const {
        return in_pieces<uint32_t>([&](uint32_t* to, size_t at, size_t size) { k.tally(keys + at, size, every, range, to); });
    }

    // Between which logits the part p ends, of the likeliest or of those nearest to the expected logit, by bounds of each bin's mass.
    // Of one vector in so many, whose chance is allowed for; false where that is too much.
    bool bound(double p, bool typical, size_t every, Ends& ends) const {
        constexpr double depth = 24;  // below it all together are next to nothing, and a bound accounts for them
        constexpr double deviations = 4, doubt_most = .1, slack = .01, far = std::numeric_limits<double>::infinity();
        const float low = std::max(least, float(top - depth));
        const Range range{low, float(top), float(sample_bins) / (float(top) * .5f - low * .5f)};
        if (!std::isfinite(range.scale)) return false;
        const std::vector<uint32_t> counts = tally(x, range, every);
        const double width = (top - low) / sample_bins, step = std::exp(-width);
        struct Before {
            double most, fewest, squares;  // mass, and the squares of the weights that make it
        } before[sample_bins + 1] = {};
        double edge = 1, sum = 0, square = 0, off = 0;
        for (size_t b = 0; b < sample_bins; b++, edge *= step) {
            const double y = (double(b) + .5) * width, mass = counts[b] * edge;
            before[b + 1] = {before[b].most + mass * (1 + 2 * slack * width), before[b].fewest + mass * step * (1 - 2 * slack * width), before[b].squares + mass * edge};
            sum += mass * y, square += mass * y * y;
        }
        const Before& all = before[sample_bins];
        const double rest = low > least ? counts[sample_bins] * edge * 1.01 : 0, z_most = all.most + rest, chance = every > 1 ? deviations : 0;
        if (chance * std::sqrt(all.squares) > doubt_most * all.most) return false;
        const double middle = sum / all.most, spread = std::sqrt(std::max(0., square / all.most - middle * middle));
        if (typical) off = width * (1 + spread) + chance * spread * std::sqrt(all.squares) / all.most;
        const double centre = typical ? top - middle : top;
        const auto bin = [&](double v, bool up) {  // the first that begins at v or below, the last that ends above it
            const double at = (top - v) / width;
            return size_t(std::clamp(up ? std::ceil(at + slack) : std::floor(at - slack), 0., double(sample_bins)));
        };
        const auto doubt = [&](size_t a, size_t b) {  // of p times what is outside less 1 - p times what is inside
            const double inside = before[b].squares - before[a].squares;
            return chance * std::sqrt(p * p * (all.squares - inside) + (1 - p) * (1 - p) * inside);
        };
        // What is perhaps or surely further than d from the centre.
        const auto perhaps = [&](double d) {
            const size_t a = typical ? bin(centre + d - off, true) : 0, b = bin(centre - d + off, false);
            return a < b ? z_most - (before[b].most - before[a].most) + doubt(a, b) : far;
        };
        const auto surely = [&](double d) {
            const size_t a = typical ? bin(centre + d + off, false) : 0, b = bin(centre - d - off, true);
            return before[a].fewest + (all.fewest - before[b].fewest) - doubt(a, b);
        };
        const auto nearest_with = [&](auto&& outside, double mass) {  // bins from the centre beyond which there is no more
            size_t a = 0, b = 2 * sample_bins;
            while (a < b) {
                const size_t m = (a + b) / 2;
                outside(double(m) * width) > mass ? a = m + 1 : b = m;
            }
            return a;
        };
        const size_t outer = nearest_with(perhaps, (1 - p) * all.fewest), inner = nearest_with(surely, (1 - p) * z_most);
        const double d_outer = outer < 2 * sample_bins ? double(outer) * width + off : far, d_inner = (double(inner) - 1) * width - off;
        ends = {float(centre - d_outer), float(centre - d_inner), float(typical ? centre + d_inner : far), float(typical ? centre + d_outer : far)};
        return true;
    }

    const int32_t* ids_ = nullptr;  // null: counted from 0
    size_t room_;
    float* floats_;  // five arrays: positions that reach() collects, logits and ids that stay, keys or logits near an end, the keys of those
};
}  // namespace qt
