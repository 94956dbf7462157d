// Products with few tokens, straight from the blocks: fills `Kernels::gemv` where there are VNNI and VBMI; gemv_rows.cpp elsewhere.
#include "gemv.h"

#ifdef QT_ISA_avx512
#include "gemv_32.h"
#include "gemv_books.h"
#include "gemv_k.h"
#include "gemv_small.h"
#endif

namespace qt::QT_ISA {
#ifdef QT_ISA_avx512

// Weights are one sequential stream a thread, fetched into L2 this far ahead.
constexpr size_t ahead_bytes = 12288;
// Columns that every row reads again stay in L1 up to this size; beyond, they come in parts of the second for groups of rows.
constexpr int columns_bytes = 24576, part_bytes = 8192;

// Blocks of a row that are multiplied at a time. Records are whole.
template <class Rows, int C>
static int chunk_of(int blocks) {
    constexpr int record = Rows::record, each = C * int(sizeof(typename Rows::Record));
    constexpr int part = part_bytes < each ? 1 : part_bytes / each;
    const int records = (blocks + record - 1) / record, chunks = C == 1 || records * each <= columns_bytes ? 1 : (records + part - 1) / part;
    return ((records + chunks - 1) / chunks + 1) / 2 * 2 * record;  // an even number: types that take two blocks at a time
}

// What sums are times, where a type leaves a power of two to the end of a row.
template <class Rows>
constexpr float unit_of = [] { if constexpr (requires { Rows::unit; }) return Rows::unit; else return 1.f; }();

// Sums of C columns of row r, brought together and stored.
template <class Rows, int C>
QT_INLINE void finish(const GemvJob& j, size_t r, int c0, const V* sum) {
    const float bias = j.bias ? j.bias[r] : 0;
    QT_UNROLL for (int c = 0; c < C; c++) {
        const size_t t = size_t(c0 + c) / j.planes;
        if (t >= j.T) break;
        if (j.planes == 1) {
            j.y[t * j.out + r] = _mm512_reduce_add_ps(sum[c]) * unit_of<Rows> + bias;
        } else if (C > 1 && c % 2 == 0) {
            j.y[t * j.out + r] = _mm512_reduce_add_ps(_mm512_add_ps(sum[c], sum[(c + 1) % C])) * unit_of<Rows> + bias;
        }
    }
}

// Rows [r0, r1) against columns [c0, c0 + C): a row at a time, or where a row comes in chunks a group of them.
template <class Rows, int C>
static __attribute__((noinline)) const uint8_t* tile(const GemvJob& j, size_t r0, size_t r1, int columns, int c0, const uint8_t* ahead) {
    const Rows rows;
    const int blocks = int(j.in) / Rows::block_size, chunk = chunk_of<Rows, C>(blocks);
    const auto* a = (const typename Rows::Record*)j.packed + c0;
    if (C == 1 || chunk >= blocks) {
        const uint8_t* w = j.w + r0 * j.row_bytes;
        for (size_t r = r0; r < r1; r++, w += j.row_bytes) {
            V s[C];
            QT_UNROLL for (int c = 0; c < C; c++) s[c] = _mm512_setzero_ps();
            rows.template dots<C>(w, a, columns, blocks, s, ahead);
            finish<Rows, C>(j, r, c0, s);
        }
        return ahead;
    }
    V sum[gemv_group][C];
    for (size_t r = r0; r < r1; r += gemv_group) {
        const int n = r1 - r < gemv_group ? int(r1 - r) : int(gemv_group);
        for (int b = 0; b < blocks; b += chunk) {
            const int part = blocks - b < chunk ? blocks - b : chunk;
            const uint8_t* w = j.w + r * j.row_bytes + size_t(b) * Rows::block_bytes;
            for (int i = 0; i < n; i++, w += j.row_bytes) {
                V s[C];
                QT_UNROLL for (int c = 0; c < C; c++) s[c] = b ? sum[i][c] : _mm512_setzero_ps();
                rows.template dots<C>(w, a + size_t(b / Rows::record) * columns, columns, part, s, ahead);
                QT_UNROLL for (int c = 0; c < C; c++) sum[i][c] = s[c];
            }
        }
        for (int i = 0; i < n; i++) finish<Rows, C>(j, r + i, c0, sum[i]);
    }
    return ahead;
}

template <class Rows>
static const uint8_t* tile_of(int C, const GemvJob& j, size_t r0, size_t r1, int columns, int c0, const uint8_t* ahead) {
    switch (C) {
        case 1: return tile<Rows, 1>(j, r0, r1, columns, c0, ahead);
        case 2: return tile<Rows, 2>(j, r0, r1, columns, c0, ahead);
        case 3: return tile<Rows, 3>(j, r0, r1, columns, c0, ahead);
        case 4: return tile<Rows, 4>(j, r0, r1, columns, c0, ahead);
        case 6: return tile<Rows, 6>(j, r0, r1, columns, c0, ahead);
        default: return tile<Rows, 8>(j, r0, r1, columns, c0, ahead);
    }
}

// Where columns are more than a tile, each group of rows meets all tiles while it is in L2; only the first fetches ahead.
template <class Rows>
static void rows_of(const GemvJob& j, size_t r0, size_t r1) {
    const int columns = padded_columns(int(j.T) * j.planes);
    const size_t group = columns == 1 ? 0 : gemv_group * j.row_bytes;  // which may come in any order within
    const uint8_t* ahead = j.w + r0 * j.row_bytes + (group > ahead_bytes ? group : ahead_bytes);
    if (columns <= column_tile) {
        tile_of<Rows>(columns, j, r0, r1, columns, 0, ahead);
        return;
    }
    for (size_t r = r0; r < r1; r += gemv_group) {
        const size_t end = r1 - r < gemv_group ? r1 : r + gemv_group;
        const uint8_t* again = ahead;
        for (int c = 0; c < columns; c += column_tile) {
            const uint8_t* next = tile_of<Rows>(columns - c < column_tile ? columns - c : column_tile, j, r, end, columns, c, again);
            if (!c) ahead = next, again = j.w;
        }
    }
}

template <class Rows>
static size_t packed_bytes(size_t T, size_t in, int planes) {
    constexpr size_t columns = size_t(Rows::record) * Rows::block_size;
    return (in + columns - 1) / columns * padded_columns(int(T) * planes) * sizeof(typename Rows::Record);
}

template <class Q>
constexpr Gemv book_rows = {packed_bytes<RowsBook<Q>>, pack_256<Q::order, Q::offset, Q::n>, rows_of<RowsBook<Q>>};
template <class Q>
constexpr Gemv point_rows = {packed_bytes<RowsPoints<Q>>, pack_256<Q::order, Q::offset, Q::n>, rows_of<RowsPoints<Q>>};
template <class Q>
constexpr Gemv k_rows = {packed_bytes<RowsK<Q>>, pack_1024<Q::order, Q::rest, Q::offset, Q::places>, rows_of<RowsK<Q>>};

static consteval GemvTable list() {
    GemvTable t{};
    t.of[id::Q4_0] = book_rows<GemvQ4_0>;
    t.of[id::Q4_1] = book_rows<GemvQ4_1>;
    t.of[id::Q5_0] = book_rows<GemvQ5_0>;
    t.of[id::Q5_1] = book_rows<GemvQ5_1>;
    t.of[id::Q8_0] = book_rows<GemvQ8_0>;
    t.of[id::Q2_K] = k_rows<GemvQ2_K>;
    t.of[id::Q3_K] = k_rows<GemvQ3_K>;
    t.of[id::Q4_K] = k_rows<GemvQ4_K>;
    t.of[id::Q5_K] = k_rows<GemvQ5_K>;
    t.of[id::Q6_K] = k_rows<GemvQ6_K>;
    t.of[id::IQ2_XXS] = book_rows<GemvIQ2_XXS>;
    t.of[id::IQ2_XS] = book_rows<GemvIQ2_XS>;
    t.of[id::IQ3_XXS] = book_rows<GemvIQ3_XXS>;
    t.of[id::IQ1_S] = point_rows<GemvIQ1_S>;
    t.of[id::IQ4_NL] = book_rows<GemvIQ4_NL>;
    t.of[id::IQ3_S] = book_rows<GemvIQ3_S>;
    t.of[id::IQ2_S] = book_rows<GemvIQ2_S>;
    t.of[id::IQ4_XS] = k_rows<GemvIQ4_XS>;
    t.of[id::IQ1_M] = point_rows<GemvIQ1_M>;
    t.of[id::TQ1_0] = book_rows<GemvTQ1_0>;
    t.of[id::TQ2_0] = k_rows<GemvTQ2_0>;
    t.of[id::MXFP4] = book_rows<GemvMXFP4>;
    t.of[id::NVFP4] = book_rows<GemvNVFP4>;
    t.of[id::Q1_0] = book_rows<GemvQ1_0>;
    t.of[id::Q2_0] = book_rows<GemvQ2_0>;
    return t;
}
extern const GemvTable gemv_table;
constinit const GemvTable gemv_table = list();
#endif
}  // namespace qt::QT_ISA
