// Walking the strings of a GGUF header: each is a u64 length and that many bytes.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qt {

inline constexpr uint64_t max_string_bytes = uint64_t(1) << 30;

// A bounds-checked position; `big_endian` is the byte order of the lengths.
struct StringWalk {
    const uint8_t* data;
    uint64_t size;
    uint64_t at;
    bool big_endian;

    // The next string, or false when its length or bytes would pass the end (`at` then stays before it).
    bool next(const char*& text, uint64_t& length) {
        if (at > size || size - at < sizeof length) return false;
        std::memcpy(&length, data + at, sizeof length);
        if (big_endian != (std::endian::native == std::endian::big)) length = __builtin_bswap64(length);
        if (length > max_string_bytes || length > size - at - sizeof length) return false;
        text = reinterpret_cast<const char*>(data + at + sizeof length);
        at += sizeof length + length;
        return true;
    }

    // Passes over up to `count` strings; returns how many were whole.
    uint64_t skip(uint64_t count) {
        const char* text;
        uint64_t length, n = 0;
        while (n < count && next(text, length)) n++;
        return n;
    }
};
}  // namespace qt
