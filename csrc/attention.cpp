// Attention over the paged cache: arguments checked, new keys and values stored, tiles of queries shared out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "arrays.h"
#include "pool.h"

namespace qt {
namespace {
using Pages = nb::ndarray<uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;  // writable

// A tile of query rows of one sequence and KV head, and where the partial results of its segments of keys go.
struct Tile {
    size_t sequence, kv_head, row, n;
    size_t first_segment, n_segments;
    size_t state;  // floats into the table of partial results
};

struct Call {
    std::vector<AttendJob> jobs;  // one a sequence
    std::vector<size_t> first;    // its first token
    std::vector<Tile> tiles;
};

const KvKind& kind(const char* what, int id, size_t d) {
    if (id < 0 || id >= n_kv_kinds) refuse(std::string(what) + " of the cache are of kind " + std::to_string(id) + "; expected 0 to " + std::to_string(n_kv_kinds - 1) + ".");
    const KvKind& k = kv_kinds[id];
    if (!d) refuse(std::string(what) + " have heads of 0 values; expected at least 1.");
    if (k.coded() && d % 8) refuse(std::string(what) + " have heads of " + std::to_string(d) + " values, and a cache type of " + k.name + " needs a multiple of 8. Choose f16.");
    return k;
}

// Positions of a sequence follow each other, since keys of a gap were never written; every page that is read or written exists.
void check_sequence(size_t s, const AttendJob& job, size_t n, size_t table, size_t n_pages) {
    auto refuse = [&](const std::string& message) { qt::refuse("sequence " + std::to_string(s) + ": " + message); };
    for (size_t t = 0; t < n; t++)
        if (job.positions[t] < 0 || (t && job.positions[t] - 1 != job.positions[t - 1]))
            refuse("positions must follow each other from 0 or more, found " + std::to_string(job.positions[t]) + (t ? " after " + std::to_string(job.positions[t - 1]) : std::string()) + " at its row " + std::to_string(t) + ".");
    const size_t last = (job.end(n - 1) - 1) / page_tokens;
    if (last >= table) refuse("position " + std::to_string(job.positions[n - 1]) + " lies beyond its " + std::to_string(table) + " pages.");
    for (size_t p = job.begin(0) / page_tokens; p <= last; p++)
        if (job.table[p] < 0 || size_t(job.table[p]) >= n_pages)
            refuse("page " + std::to_string(p) + " is number " + std::to_string(job.table[p]) + "; the cache has pages 0 to " + std::to_string(int64_t(n_pages) - 1) + ".");
}

void cut(Call& call, size_t s, size_t n_tokens) {
    const AttendJob& job = call.jobs.back();
    const size_t rows = n_tokens * job.group();
    for (size_t row = (rows - 1) / attend_rows * attend_rows;; row -= attend_rows) {  // the longest first
        const size_t n = std::min(attend_rows, rows - row);
        const size_t begin = job.begin(row / job.group()) / attend_segment, end = (job.end((row + n - 1) / job.group()) - 1) / attend_segment + 1;
        for (size_t h = 0; h < job.n_kv_heads; h++) call.tiles.push_back({s, h, row, n, begin, end - begin, 0});
        if (!row) break;
    }
}

// Keys and values of a sequence's tokens into their slots. Neighbours share words, so a page's stay in one thread.
void store(const AttendJob& job, size_t n, const float* k, const float* v, const Kernels& kernels) {
    auto snap = [&](size_t t) {
        while (t && t < n && job.positions[t] / page_tokens == job.positions[t - 1] / page_tokens) t++;
        return t;
    };
    parallel(n * job.n_kv_heads, 64, double(n) * job.n_kv_heads * (job.d + job.dv), [&](size_t begin, size_t end) {
        float* room = scratch(kv_store_scratch(job.d, job.dv));
        for (size_t h = begin / n; h * n < end; h++) {
            const size_t t0 = snap(begin > h * n ? begin - h * n : 0), t1 = snap(std::min(n, end - h * n));
            for (size_t t = t0; t < t1; t++) {
                const size_t at = t * job.n_kv_heads + h;
                kernels.kv_store(job, h, size_t(job.positions[t]), k + at * job.d, v + at * job.dv, room);
            }
        }
    });
}

// Adds the partial result `b` of later keys to `a`: [n] rows of output, largest score, sum.
void merge(float* a, const float* b, size_t n, size_t dv, size_t ld) {
    for (size_t r = 0; r < n; r++, a += ld, b += ld) {
        float &top = a[ld - 2], &total = a[ld - 1];
        if (b[ld - 1] == 0) continue;  // saw no key
        if (total == 0) {
            std::memcpy(a, b, ld * sizeof(float));
            continue;
        }
        const float most = std::max(top, b[ld - 2]), up = std::exp2(top - most), other = std::exp2(b[ld - 2] - most);
        for (size_t i = 0; i < dv; i++) a[i] = a[i] * up + b[i] * other;
        total = total * up + b[ld - 1] * other;
        top = most;
    }
}

// Whole tiles where there are enough of them for all threads, else every segment by itself; the sums are the same.
void attend(Call& call, const Kernels& kernels, float* out) {
    const AttendJob& any = call.jobs.front();
    const size_t ld = any.state_floats(), scratch_floats = attend_scratch(any.d, any.dv);
    double work = 0;
    size_t states = 0, segments = 0;
    for (Tile& tile : call.tiles) {
        tile.state = states;
        states += tile.n_segments * tile.n * ld;
        segments += tile.n_segments;
        const AttendJob& j = call.jobs[tile.sequence];
        const size_t first = tile.row / j.group(), last = (tile.row + tile.n - 1) / j.group();
        work += 4 * double(j.end(last) - j.begin(first)) * double(tile.n * (any.d + any.dv));  // exponentials, and what is read
    }
    auto job = [&](const Tile& tile) -> const AttendJob& { return call.jobs[tile.sequence]; };
    auto to = [&](const Tile& tile) { return out + call.first[tile.sequence] * any.n_heads * any.dv; };
    if (call.tiles.size() >= 4 * size_t(width()) || segments == call.tiles.size()) {
        parallel(call.tiles.size(), 1, work, [&](size_t begin, size_t end) {
            constexpr size_t some = 4;  // segments of a tile whose results wait to be merged
            float *states = scratch(scratch_floats + some * attend_rows * ld), *room = states + some * attend_rows * ld;
            for (size_t i = begin; i < end; i++) {
                const Tile& tile = call.tiles[i];
                const size_t each = tile.n * ld, last = tile.first_segment + tile.n_segments;
                size_t kept = 0;
                for (size_t s = tile.first_segment; s < last;) {
                    const size_t n = std::min(some - kept, last - s);
                    kernels.attend(job(tile), tile.kv_head, tile.row, tile.n, s, s + n, states + kept * each, room);
                    for (size_t k = 1; k < n + kept; k++) merge(states, states + k * each, tile.n, any.dv, ld);
                    s += n, kept = 1;
                }
                kernels.attend_finish(job(tile), tile.kv_head, tile.row, tile.n, states, to(tile));
            }
        });
        return;
    }
    Room<float> partial(states);
    struct Item {
        size_t tile, begin, end;  // segments
    };
    std::vector<Item> items;
    // Neighbours in one thread: they share the queries, and the end of a segment has fetched the beginning of the next.
    const size_t together = std::max<size_t>(1, segments / (8 * size_t(width())));
    for (size_t i = 0; i < call.tiles.size(); i++)
        for (size_t s = 0; s < call.tiles[i].n_segments; s += together) items.push_back({i, s, std::min(s + together, call.tiles[i].n_segments)});
    std::vector<std::atomic<size_t>> left(call.tiles.size());
    for (size_t i = 0; i < left.size(); i++) left[i].store(call.tiles[i].n_segments, std::memory_order_relaxed);
    parallel(items.size(), 1, work, [&](size_t begin, size_t end) {
        float* room = scratch(scratch_floats);
        for (size_t i = begin; i < end; i++) {
            const Item& item = items[i];
            const Tile& tile = call.tiles[item.tile];
            float* state = partial.data + tile.state;
            const size_t each = tile.n * ld, first = tile.first_segment, n = item.end - item.begin;
            kernels.attend(job(tile), tile.kv_head, tile.row, tile.n, first + item.begin, first + item.end, state + item.begin * each, room);
            if (left[item.tile].fetch_sub(n, std::memory_order_acq_rel) != n) continue;  // who comes last puts the tile together
            for (size_t s = 1; s < tile.n_segments; s++) merge(state, state + s * each, tile.n, any.dv, ld);
            kernels.attend_finish(job(tile), tile.kv_head, tile.row, tile.n, state, to(tile));
        }
    });
}

Out attention(Floats q, Floats k, Floats v, Pages pages, int keys, int values, Ints positions, Ints starts, Ints tables, float scale, int64_t window, float softcap,
              std::optional<Floats> sinks, bool causal) {
    expect("q", q, {-1, -1, -1});
    const size_t T = q.shape(0), n_heads = q.shape(1), d = q.shape(2);
    expect("k", k, {int64_t(T), -1, int64_t(d)});
    const size_t n_kv = k.shape(1);
    expect("v", v, {int64_t(T), int64_t(n_kv), -1});
    const size_t dv = v.shape(2), n_pages = pages.shape(0);
    const KvKind &key_kind = kind("keys", keys, d), &value_kind = kind("values", values, dv);
    const size_t of_keys = key_bytes(key_kind, d), of_head = of_keys + value_bytes(value_kind, dv);
    expect("pages", pages, {-1, int64_t(n_kv), int64_t(of_head)});
    expect("positions", positions, {int64_t(T)});
    expect("starts", starts, {-1});
    expect("page_tables", tables, {int64_t(std::max<size_t>(starts.size(), 1)) - 1, -1});
    if (!n_kv || !n_heads || n_heads % n_kv) refuse("q has " + std::to_string(n_heads) + " heads; expected a multiple of the " + std::to_string(n_kv) + " of k.");
    if (window < 0) refuse("window is " + std::to_string(window) + "; expected 0 or more tokens.");
    if (!(softcap >= 0) || std::isinf(softcap)) refuse("softcap is " + std::to_string(softcap) + "; expected 0 (none) or more.");
    if (sinks) expect("sinks", *sinks, {int64_t(n_heads)});
    constexpr size_t everything = std::numeric_limits<int32_t>::max();
    const size_t before = !window ? everything : causal ? window - 1 : window / 2, after = causal ? 0 : window ? window / 2 : everything;
    Call call;
    const Kernels& kernels = current_kernels();
    const int32_t* s0 = starts.data();
    check_starts(s0, starts.size(), T);
    for (size_t s = 0; s + 1 < starts.size(); s++) {
        if (s0[s + 1] == s0[s]) continue;
        const size_t first = s0[s];
        call.jobs.push_back({q.data() + first * n_heads * d, n_heads, n_kv, d, dv, pages.data(), of_keys, of_head, keys, values, tables.data() + s * tables.shape(1),
                             positions.data() + first, scale, before, after, size_t(positions.data()[s0[s + 1] - 1]) + 1, softcap, sinks ? sinks->data() : nullptr});
        call.first.push_back(first);
        check_sequence(s, call.jobs.back(), s0[s + 1] - first, tables.shape(1), n_pages);
        cut(call, call.jobs.size() - 1, s0[s + 1] - first);
    }
    Fresh out{T, n_heads * dv};
    nb::gil_scoped_release released;
    for (size_t s = 0; s < call.jobs.size(); s++) {
        const AttendJob& job = call.jobs[s];
        const size_t first = call.first[s], n = (s + 1 < call.jobs.size() ? call.first[s + 1] : T) - first;
        store(job, n, k.data() + first * n_kv * d, v.data() + first * n_kv * dv, kernels);
    }
    if (!call.jobs.empty()) attend(call, kernels, out.data);
    return out.array;
}
}  // namespace

void bind_attention(nb::module_& m) {
    m.def("attention", &attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("pages").noconvert(), nb::arg("keys"), nb::arg("values"), nb::arg("positions").noconvert(),
          nb::arg("starts").noconvert(), nb::arg("page_tables").noconvert(), nb::arg("scale"), nb::arg("window") = 0, nb::arg("softcap") = 0.f, nb::arg("sinks") = nb::none(), nb::arg("causal") = true,
          "Store k and v in the pages, then grouped-query attention: [T, n_heads * D_v].");
}
}  // namespace qt
