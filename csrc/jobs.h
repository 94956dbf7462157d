// The operations of a forward pass, as each instruction set provides them. One call is one thread's share;
// who shares out the work (csrc/*.cpp) need not know how it is done, and kernels are replaced in the table of isa.h.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kv.h"

namespace qt {
using Decode = void (*)(const uint8_t* blocks, float* out, size_t n_blocks);

// Rows of floats into blocks, which follow each other from row to row.
struct EncodeJob {
    const float* x;
    uint8_t* blocks;
    const float* importance;  // [values of a row], or null
    const float* power;       // [rows] mean squares, where there is importance
    size_t per_row;           // blocks of a row
    const uint16_t* near_ids;   // of a codebook the 16 points nearest to each place of levels, as quants/points.py lists them
    const int8_t* near_values;  // their values, [places][values][16]
};
using Encode = size_t (*)(const EncodeJob&, size_t first, size_t last);  // blocks; returns the first that the type cannot hold, or last

// Rows of floats are padded to this many where kernels read them: the widest vector there is.
inline constexpr size_t lane_floats = 16;
QT_INLINE constexpr size_t padded(size_t n) { return (n + lane_floats - 1) / lane_floats * lane_floats; }

// y[T][out] = x[T][in] w[out][in]^T + bias
struct LinearJob {
    const uint8_t* w;  // [out] rows of row_bytes
    size_t row_bytes;
    Decode decode;
    size_t block_size, block_bytes;
    bool plain;      // w is F32
    const float* x;  // [T], rows ldx apart, zero from `in` to padded(in)
    size_t ldx, in, out;
    const float* bias;  // [out] or null
    float* y;           // [T][out]
};

// Rows [r0, r1) of w times tokens [t0, t1). Every element of y is summed in the same order whatever the ranges are,
// so results depend neither on the number of threads nor on what else is in the batch.
using Linear = void (*)(const LinearJob&, size_t r0, size_t r1, size_t t0, size_t t1, float* tile);
inline constexpr size_t linear_rows = 32, linear_depth = 1024;  // rows and columns decoded at a time
inline constexpr size_t linear_tile = linear_rows * linear_depth;  // floats a kernel may use at `tile`

// How many tokens share a product decides which kernel suits.
enum Regime { one_token, few_tokens, many_tokens, n_regimes };
QT_INLINE constexpr Regime regime(size_t T) { return T <= 1 ? one_token : T <= 8 ? few_tokens : many_tokens; }

// out = x / sqrt(mean(x^2) + eps) * weight for `rows` rows of n
using RmsNorm = void (*)(const float* x, const float* weight, double eps, float* out, size_t rows, size_t n);

// out = silu(gate) * up; tanh-approximated gelu(gate) * up; gpt-oss's, with both clamped
enum Activation { silu, gelu, gpt_oss, n_activations };
inline constexpr const char* activation_names[n_activations] = {"silu", "gelu", "gpt_oss"};
using Gate = void (*)(const float* gate, const float* up, float* out, size_t n);

// out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias for `rows` rows of n; bias may be null
using LayerNorm = void (*)(const float* x, const float* weight, const float* bias, double eps, float* out, size_t rows, size_t n);

// out = f(x), times up unless that is null; kernels/table.py has the same numbers
enum Function { act_silu, act_gelu, act_gelu_erf, act_sigmoid, act_tanh, n_functions };
using Activate = void (*)(int kind, const float* x, const float* up, float* out, size_t n);

struct RopeJob {
    const float* x;  // [T][heads][dim]
    float* out;
    size_t heads, dim, half;
    const int32_t* positions;  // [T]
    const double* freqs;       // [half]
    bool interleaved;
    float magnitude;  // what is rotated grows by this much
};
using Rope = void (*)(const RopeJob&, size_t t0, size_t t1, float* turns);  // turns: room for 4 * half floats

// Queries of one sequence against its pages. A row is one query head of one token: rows count tokens, then the
// heads that share a KV head, so that K and V are read once for all of them.
struct AttendJob {
    const float* q;  // [tokens][n_heads][d]
    size_t n_heads, n_kv_heads, d, dv;
    uint8_t* pages;  // [n_pages][n_kv_heads][head_bytes]: keys, then values
    size_t key_bytes, head_bytes;
    int keys, values;          // kinds
    const int32_t* table;      // pages of the sequence, in order
    const int32_t* positions;  // [tokens]
    float scale;
    size_t before, after;  // how many positions a token sees on either side of its own
    size_t length;         // positions there are: one more than that of the last token
    float softcap;         // scores become softcap * tanh(score / softcap); 0: they stay
    const float* sinks;    // [n_heads] logits that join each row's softmax, or null

    QT_INLINE size_t group() const { return n_heads / n_kv_heads; }
    QT_INLINE size_t end(size_t token) const { return length - positions[token] > after ? positions[token] + after + 1 : length; }
    QT_INLINE size_t begin(size_t token) const { return size_t(positions[token]) > before ? positions[token] - before : 0; }
    QT_INLINE size_t state_floats() const { return padded(dv) + 2; }  // of a row: unnormalised output, largest score times log2(e), sum
    QT_INLINE uint8_t* head(size_t page, size_t kv_head) const { return pages + (size_t(table[page]) * n_kv_heads + kv_head) * head_bytes; }
};
inline constexpr size_t attend_rows = 32, attend_block = 64;  // keys that are decoded to floats at a time
inline constexpr size_t attend_segment = 1024;  // keys; partial results of segments are merged in order, in any batch
QT_INLINE size_t attend_scratch(size_t d, size_t dv) {  // floats
    const size_t widest = padded(d) > padded(dv) ? padded(d) : padded(dv);
    return attend_rows * (2 * padded(d) + page_tokens) + 2 * 8 * page_tokens + attend_block * widest;
}
// Rows [row, row + n) of a KV head over the keys of each segment from `begin` to `end`, into `state` [segments][n][state_floats()].
using Attend = void (*)(const AttendJob&, size_t kv_head, size_t row, size_t n, size_t begin, size_t end, float* state, float* scratch);
// The output of such rows, from the merged states of all segments, for `out` [tokens][n_heads][dv].
using AttendFinish = void (*)(const AttendJob&, size_t kv_head, size_t row, size_t n, const float* state, float* out);
// Keys [d] and values [dv] of one KV head and position into their slot.
using KvStore = void (*)(const AttendJob&, size_t kv_head, size_t position, const float* k, const float* v, float* scratch);
QT_INLINE size_t kv_store_scratch(size_t d, size_t dv) { return 2 * (padded(d) > padded(dv) ? padded(d) : padded(dv)) + 64; }  // floats

// The gated delta rule over tokens of one sequence: a head's state [d_k][d_v] fades, is corrected at k, and read by q.
struct DeltaJob {
    const float *q, *k;        // [tokens][n_k][d_k], of length 1 but for what q is scaled by
    const float* v;            // [tokens][n_v][d_v]
    const float *fade, *beta;  // [tokens][n_v]
    float* y;                  // [tokens][n_v][d_v]
    size_t tokens, n_k, n_v, d_k, d_v;
};
// Columns [c0, c1) of a head of v; columns of a state know nothing of each other. scratch: delta_columns_most * d_k floats.
using Delta = void (*)(const DeltaJob&, size_t head, size_t c0, size_t c1, float* state, float* scratch);
inline constexpr size_t delta_columns_most = 64;

// Each channel with a kernel of its own over the last `width` tokens; tokens before the first are rows of `past`.
struct ConvJob {
    const float* x;       // [tokens][channels]
    const float* past;    // [width - 1][channels]
    const float* kernel;  // [channels][width]
    float* y;             // [tokens][channels]
    size_t channels, width;
};
inline constexpr size_t conv_channels = 256, conv_tokens = 64;  // of a thread at a time
// Tokens [t0, t1) of channels [c0, c1), at most conv_channels; scratch: width * conv_channels floats.
using Conv = void (*)(const ConvJob&, size_t t0, size_t t1, size_t c0, size_t c1, float* scratch);

// Choosing from logits; those of minus infinity take no part.
struct Extremes {
    float most, least;
    int64_t best, broken;  // the first of the largest; the first that is NaN or infinite, or -1
};
using Scan = Extremes (*)(const float* x, size_t n);

// A beginning of an order, ties by id: all above `value`, and the first `ties` of those equal to it; none beyond `most`.
struct Cut {
    float value;
    size_t ties;
    float most = __builtin_inff();
};
// Values from high to low in equal bins; scale is bins over half of the width, for halves do not overflow.
struct Range {
    float low, high, scale;
};
inline constexpr size_t sample_bins = 1024;
// Add to the bin of each key exp(x - top), or 1 for one vector among so many; bins[sample_bins] takes those out of range.
using Histogram = void (*)(const float* keys, const float* x, size_t n, const Range&, double top, double* bins);
using Tally = void (*)(const float* keys, size_t n, size_t every, const Range&, uint32_t* bins);
using Collect = size_t (*)(const float* keys, size_t n, const Range&, int32_t bin, int32_t* at);  // where the keys of a bin are
// Copies what the cut leaves of x and its ids (null: counted from 0); `out` may be the input, and has room for lane_floats more.
using Keep = size_t (*)(const float* keys, const float* x, const int32_t* ids, size_t n, Cut, float* out_x, int32_t* out_ids);
using Distances = void (*)(const float* x, size_t n, double centre, float* out);  // -|x - centre|
struct Moments {
    double count, sum, squares;  // of x - top, where x is finite
};
using MomentsOf = Moments (*)(const float* x, size_t n, double top);
struct Mass {
    double sum, energy;  // of e^y, and of y e^y, where y = (x - top) factor
};
using Weigh = Mass (*)(const float* x, size_t n, double top, double factor, bool energy, double* weights);  // [n] e^y, or null
// Logits between the inner ends surely stay, those beyond the outer ones surely do not.
struct Ends {
    float outer_low, inner_low, inner_high, outer_high;
};
struct Parts {
    Mass all;
    double inner;
    size_t found;
};
// Sums of all and of those between the inner ends; what is undecided goes to out, with room for lane_floats more.
using Divide = Parts (*)(const float* x, size_t n, double top, bool energy, const Ends&, float* out);
}  // namespace qt
