// The string walk on good, damaged and random bytes, each in a buffer of exactly its size, for address and
// undefined-behaviour sanitizers. Usage: walk [rounds]; prints how many strings were whole.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "gguf.h"

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 100000;
    std::mt19937_64 random(1);
    auto below = [&](uint64_t n) { return random() % n; };
    const uint64_t special[] = {0, 1, 7, 8, 255, 1u << 30, (1u << 30) + 1, uint64_t(1) << 32, uint64_t(1) << 63, ~uint64_t(0), ~uint64_t(0) - 7};
    uint64_t whole = 0, sum = 0;
    for (int round = 0; round < rounds; round++) {
        const uint64_t size = below(200);
        const bool big_endian = below(2);
        std::unique_ptr<uint8_t[]> data(new uint8_t[size]);
        for (uint64_t i = 0; i < size; i++) data[i] = uint8_t(random());
        for (uint64_t at = 0; below(8) && size - at >= 8;) {  // mostly good strings, some lengths wrong
            uint64_t length = below(20);
            if (below(10) == 0) length = special[below(sizeof special / sizeof *special)] + below(3);
            for (int k = 0; k < 8; k++) data[at + k] = uint8_t(length >> 8 * (big_endian ? 7 - k : k));
            at += 8;
            if (length > size - at) break;
            at += length;
        }
        const uint64_t start = below(4) ? below(size + 1) * (below(2)) : special[below(sizeof special / sizeof *special)];
        const uint64_t count = below(4) ? below(40) : ~uint64_t(0);
        qt::StringWalk walk{data.get(), size, start, big_endian}, again = walk;
        const uint64_t n = walk.skip(count);
        const char* text = nullptr;
        uint64_t length = 0;
        for (uint64_t i = 0; i < n; i++) {
            if (!again.next(text, length)) return std::puts("the second walk stopped early"), 1;
            for (uint64_t k = 0; k < length; k++) sum += uint8_t(text[k]);
        }
        if (again.at != walk.at || (n < count && again.next(text, length)) || (start <= size && walk.at > size)) return std::puts("the walks differ"), 1;
        whole += n;
    }
    std::printf("%llu strings whole in %d buffers (%llx)\n", (unsigned long long)whole, rounds, (unsigned long long)sum);
    return whole == 0;
}
