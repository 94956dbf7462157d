// Products with many tokens where rows of codes times rows of activations is the best there is: codes of 256 columns of a row
// are unpacked to bytes in L1, then used by all tokens. Sums are those of gemv_rows.cpp, to the bit.
#include "gemm.h"

#if !defined(__AVX2__) && !defined(__aarch64__)
#include "rows.h"

namespace qt::QT_ISA {

template <class Of, int C>
static __attribute__((noinline)) void block_products(const uint8_t* q, const float* s, const float* m, const RowActs* a, V* total) {
    BlockSums<Of, C> sums;
    for (int j = 0; j < 8; j++) sums.add(a, s, j, load_codes(q + 32 * j));
    sums.finish(a, s, m, total);
}

template <class Block>
static void gemm_rows_of(const GemmJob& j, size_t r0, size_t r1, float* tile) {
    using All = CodingOf<Block>;
    using Of = Coding<All::sub, All::offset, All::minima, All::wild>;  // one kernel for all types alike
    constexpr size_t per = panel_columns / Block::size;
    const size_t columns = j.T * size_t(j.planes), blocks = j.in / Block::size;
    V* total = (V*)tile;
    float* out = tile + columns * VL;  // [T][gemm_rows]
    for (size_t r = r0; r < r1; r++) {
        __builtin_memset(tile, 0, columns * sizeof(V));
        const RowActs* a = (const RowActs*)j.packed;
        for (size_t b = 0; b < blocks; b += per, a += columns) {
            const Block* w = (const Block*)(j.w + r * j.row_bytes) + b;
            uint8_t q[panel_columns];
            alignas(32) float s[panel_columns / Of::sub], m[panel_columns / Of::sub];
            const auto put_codes = [&](int k, Codes c) __attribute__((always_inline)) { store_codes(q + 32 * k, c); };
            if (blocks - b < per) unpack(Rest<Block>(w, blocks - b).blocks, s, m, put_codes);
            else unpack(w, s, m, put_codes);
            size_t t = 0;
            for (; t + 4 <= columns; t += 4) block_products<Of, 4>(q, s, m, a + t, total + t);
            for (; t < columns; t++) block_products<Of, 1>(q, s, m, a + t, total + t);
        }
        const size_t place = (r - r0) % gemm_rows, done = place + 1 == gemm_rows || r + 1 == r1 ? place + 1 : 0;
        for (size_t t = 0; t < j.T; t++) {
            float* to = out + t * gemm_rows;
            to[place] = j.bias ? j.bias[r] : 0;
            for (size_t p = 0; p < size_t(j.planes); p++) to[place] += sum(total[t * size_t(j.planes) + p]);
            if (j.act && done) j.act(j.gate + columns * VL + t * gemm_rows, to, to, done);
            if (j.y && done) __builtin_memcpy(j.y + t * j.out + r + 1 - done, to, done * sizeof(float));
        }
    }
}

static size_t tile_floats(size_t T) { return T * (2 * VL + gemm_rows); }  // for up to two planes

static consteval GemmTable list() {
    GemmTable t{};
#define QT_GEMM(name, ...) t.of[id::name] = {rows_packed_bytes, pack_rows, tile_floats, gemm_rows_of<block::name>};
    QT_INTEGER_TYPES(QT_GEMM)
#undef QT_GEMM
    return t;
}
extern const GemmTable gemm_table;
constinit const GemmTable gemm_table = list();
}  // namespace qt::QT_ISA
#endif
