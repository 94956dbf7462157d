// Memory of output arrays, kept for the next one of its size: a prompt's activations come and go hundreds of times,
// and every page that the system hands out anew costs a fault and 4 KB of zeros (a sixth of the time of a prompt).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace qt {

// How often this process came out of a fork: locks and threads of before are those of its parent.
uint64_t forks();

// After a fork the child starts with none: another thread may have been at work on the list.
class Spare {
  public:
    static constexpr size_t limit = size_t(64) << 20;  // bytes kept; the oldest go first
    static constexpr size_t smallest = size_t(64) << 10;  // below this the C library recycles by itself

    Spare();
    ~Spare();
    Spare(const Spare&) = delete;

    // `values` bytes that begin at a multiple of 64, not initialised; throws std::bad_alloc. `home` may be null: nothing is kept then.
    static void* take(const std::shared_ptr<Spare>& home, size_t values);
    static void give_back(void* p) noexcept;  // of take, on any thread, even after `home` has let go of the rest

  private:
    struct Block;
    struct List;
    List& list();
    Block* find(size_t bytes);
    void keep(Block* block) noexcept;

    std::atomic<List*> list_;
};
}  // namespace qt
