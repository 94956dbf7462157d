// Products with few tokens where there is no AVX-512: each 256 columns of a row are unpacked once, to registers, for up to
// four columns of x. The instructions are those of dot8.h, the layouts of blocks those of unpack.h.
#include "gemv.h"

#ifndef QT_ISA_avx512
#include "rows.h"

namespace qt::QT_ISA {

constexpr size_t ahead_bytes = 12288;  // one sequential stream a thread, fetched into L2 this far ahead

// One row times C columns of x; those of a block lie `stride` records after those of the last.
template <class Block, int C>
static __attribute__((noinline)) void dot_row(const Block* w, const RowActs* a, size_t stride, size_t blocks, float* y) {
    using Of = CodingOf<Block>;
    constexpr size_t per = panel_columns / Block::size;
    V total[C] = {};
    for (size_t b = 0; b < blocks; b += per, w += per, a += stride) {
        for (size_t k = 0; k < per * sizeof(Block); k += 64) __builtin_prefetch((const uint8_t*)w + ahead_bytes + k, 0, 1);
        alignas(32) float s[panel_columns / Of::sub], m[panel_columns / Of::sub];
        BlockSums<Of, C> sums;
        const auto use = [&](int j, Codes c) __attribute__((always_inline)) { sums.add(a, s, j, c); };
        if (blocks - b < per) [[unlikely]] unpack(Rest<Block>(w, blocks - b).blocks, s, m, use);
        else unpack(w, s, m, use);
        sums.finish(a, s, m, total);
    }
    for (int t = 0; t < C; t++) y[t] = sum(total[t]);
}

template <class Block>
static void gemv_rows_of(const GemvJob& j, size_t r0, size_t r1) {
    const size_t columns = j.T * size_t(j.planes), blocks = j.in / Block::size;
    for (size_t r = r0; r < r1; r += gemv_group)
        for (size_t c = 0; c < columns;) {
            const size_t n = columns - c >= 4 ? 4 : columns - c >= 2 ? 2 : 1;
            for (size_t i = r; i < r1 && i < r + gemv_group; i++) {
                const Block* w = (const Block*)(j.w + i * j.row_bytes);
                const RowActs* a = (const RowActs*)j.packed + c;
                float y[4];
                n == 4 ? dot_row<Block, 4>(w, a, columns, blocks, y) : n == 2 ? dot_row<Block, 2>(w, a, columns, blocks, y) : dot_row<Block, 1>(w, a, columns, blocks, y);
                for (size_t k = 0; k < n; k++) {
                    const size_t t = (c + k) / size_t(j.planes);
                    float& to = j.y[t * j.out + i];
                    to = y[k] + ((c + k) % size_t(j.planes) ? to : j.bias ? j.bias[i] : 0);
                }
            }
            c += n;
        }
}

static consteval GemvTable list() {
    GemvTable t{};
#define QT_GEMV(name, ...) t.of[id::name] = {rows_packed_bytes, pack_rows, gemv_rows_of<block::name>};
    QT_INTEGER_TYPES(QT_GEMV)
#undef QT_GEMV
    return t;
}
extern const GemvTable gemv_table;
constinit const GemvTable gemv_table = list();
}  // namespace qt::QT_ISA
#endif
