// Memory kept for the next array of its size.
#include "spare.h"

#include <mutex>
#include <new>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace qt {
// What lies in the 64 bytes before the values.
struct alignas(64) Spare::Block {
    std::shared_ptr<Spare> home;  // null while the block is spare
    size_t bytes;                 // these 64 included
};

namespace {
constexpr std::align_val_t line{64};

#if defined(__unix__) || defined(__APPLE__)
// Large memory comes straight from the system: the C library might keep for itself what is let go.
void* obtain(size_t bytes) {
    if (bytes < Spare::smallest) return ::operator new(bytes, line);
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (bytes >= size_t(4) << 20) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}
void release(void* p, size_t bytes) noexcept { bytes < Spare::smallest ? ::operator delete(p, line) : (void)munmap(p, bytes); }
#else
void* obtain(size_t bytes) { return ::operator new(bytes, line); }
void release(void* p, size_t) noexcept { ::operator delete(p, line); }
#endif
}  // namespace

uint64_t forks() {
    static std::atomic<uint64_t> count{0};
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
#endif
    return count.load(std::memory_order_relaxed);
}

struct Spare::List {
    const uint64_t born = forks();
    std::mutex busy;
    std::vector<Block*> blocks;  // the oldest first
    size_t kept = 0;
};

Spare::Spare() : list_(new List) {}

// That of this process: one that came through a fork, perhaps locked, perhaps torn, is left behind.
Spare::List& Spare::list() {
    List* list = list_.load(std::memory_order_acquire);
    if (list->born == forks()) return *list;
    auto fresh = std::make_unique<List>();
    if (list_.compare_exchange_strong(list, fresh.get())) return *fresh.release();
    return *list;
}

void* Spare::take(const std::shared_ptr<Spare>& home, size_t values) {
    size_t bytes;
    if (__builtin_add_overflow(values, sizeof(Block), &bytes)) throw std::bad_alloc();
    const bool recycled = home && bytes >= smallest;
    if (recycled)
        if (Block* block = home->find(bytes)) {
            block->home = home;
            return block + 1;
        }
    return new (obtain(bytes)) Block{recycled ? home : nullptr, bytes} + 1;
}

void Spare::give_back(void* p) noexcept {
    Block* block = static_cast<Block*>(p) - 1;
    if (const auto home = std::move(block->home)) return home->keep(block);
    release(block, block->bytes);
}

// The smallest that suffices and wastes no more than a quarter.
Spare::Block* Spare::find(size_t bytes) {
    List& list = this->list();
    std::lock_guard lock(list.busy);
    auto& blocks = list.blocks;
    size_t best = blocks.size();
    for (size_t i = 0; i < blocks.size(); i++)
        if (blocks[i]->bytes >= bytes && blocks[i]->bytes - bytes <= bytes / 4 && (best == blocks.size() || blocks[i]->bytes < blocks[best]->bytes)) best = i;
    if (best == blocks.size()) return nullptr;
    Block* block = blocks[best];
    blocks.erase(blocks.begin() + best);
    list.kept -= block->bytes;
    return block;
}

void Spare::keep(Block* block) noexcept try {
    List& list = this->list();
    std::lock_guard lock(list.busy);
    auto& blocks = list.blocks;
    size_t gone = 0;
    for (; gone < blocks.size() && list.kept + block->bytes > limit; gone++) {
        list.kept -= blocks[gone]->bytes;
        release(blocks[gone], blocks[gone]->bytes);
    }
    blocks.erase(blocks.begin(), blocks.begin() + gone);
    if (list.kept + block->bytes > limit) return release(block, block->bytes);
    blocks.push_back(block);
    list.kept += block->bytes;
} catch (...) {
    release(block, block->bytes);
}

Spare::~Spare() {
    List* list = list_;
    if (list->born != forks()) return;
    for (Block* block : list->blocks) release(block, block->bytes);
    delete list;
}
}  // namespace qt
