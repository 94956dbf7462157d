// Fork-join threads, and which of them the calling thread has at hand.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "isa.h"
#include "spare.h"

namespace qt {

// A team of threads, the caller of run() being one of them. Chunks of the work are claimed from a counter, so that an
// interrupted thread does not hold the others up, and one that comes late is not waited for. Idle threads spin for about 200 us, then sleep.
// Runs are serialised; an exception in a chunk ends the run and is thrown on; a pool inherited through fork() starts anew.
class Pool {
  public:
    Pool(int threads, const Kernels& kernels);  // throws std::system_error where threads cannot be had
    ~Pool();
    Pool(const Pool&) = delete;
    int threads() const { return threads_; }
    const Kernels& kernels() const { return kernels_; }
    const std::shared_ptr<Spare>& spare() const { return spare_; }  // memory of the arrays made inside it

    // f(begin, end) for chunks of up to `grain` of `items`
    template <class F>
    void run(size_t items, size_t grain, F& f) {
        run(items, grain, [](void* p, size_t begin, size_t end) { (*static_cast<F*>(p))(begin, end); }, &f);
    }

  private:
    using Chunk = void (*)(void* f, size_t begin, size_t end);
    struct Team;
    void run(size_t items, size_t grain, Chunk, void* f);
    Team& team();

    const int threads_;
    const Kernels& kernels_;
    const std::shared_ptr<Spare> spare_ = std::make_shared<Spare>();
    std::atomic<Team*> team_;
};

// The pool that the calling thread has entered, or null.
Pool* current_pool();

// The kernels of that pool, or the best this machine has.
const Kernels& current_kernels();

// f(begin, end) over all items: by the current pool where `work`, in multiplications or so, is worth waking it for.
template <class F>
void parallel(size_t items, size_t grain, double work, F&& f) {
    constexpr double worthwhile = 200000;
    Pool* pool = current_pool();
    if (pool && pool->threads() > 1 && items > grain && work > worthwhile) {
        pool->run(items, grain, f);
    } else if (items) {
        f(size_t(0), items);
    }
}

// How many threads parallel() would use.
inline int width() {
    Pool* pool = current_pool();
    return pool ? pool->threads() : 1;
}

// Floats for the calling thread alone, at least n, until its next call; not initialised.
float* scratch(size_t n);

// Other such memory of the calling thread, 64-byte aligned, that its pool may use during a call. It stays with the thread: for
// little. What is large is a Room.
std::byte* shared_scratch(size_t bytes);

// Memory that the calling thread shares with its pool for the length of a block: n values at a multiple of 64, not initialised.
void* borrow(size_t bytes);
template <class T>
struct Room {
    T* data;
    explicit Room(size_t n) : data(static_cast<T*>(borrow(n * sizeof(T)))) {}
    Room(Room&& from) : data(std::exchange(from.data, nullptr)) {}
    ~Room() {
        if (data) Spare::give_back(data);
    }
};
}  // namespace qt
