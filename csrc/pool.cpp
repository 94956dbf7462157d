// The pool, and its binding as a context manager.
#include "pool.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arrays.h"

namespace nb = nanobind;

namespace qt {
namespace {
constexpr size_t cache_line = 64;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}
}  // namespace

struct Pool::Team {
    explicit Team(int threads) : born(forks()) {
        try {
            for (int t = 1; t < threads; t++) workers.emplace_back([this] { work(); });
        } catch (...) {
            dismiss();
            throw;
        }
    }
    ~Team() { dismiss(); }

    void dismiss() {
        stop = true;
        announce();
        for (auto& w : workers) w.join();
        workers.clear();
    }

    void run(size_t n, size_t step, Chunk f, void* p) {
        std::lock_guard one_at_a_time(busy);
        items = n, grain = step, chunk = f, argument = p;
        next.store(0, std::memory_order_relaxed);
        gate.fetch_or(open, std::memory_order_release);
        announce();
        claim([] { return false; });
        gate.fetch_and(~open, std::memory_order_relaxed);  // who has not come by now need not come
        for (int k = 0; gate.load(std::memory_order_acquire); k++)  // what is left is one chunk long
            k < 1 << 12 ? pause() : std::this_thread::yield();
        if (failed.load(std::memory_order_relaxed)) {
            failed.store(false, std::memory_order_relaxed);
            std::rethrow_exception(std::exchange(failure, nullptr));
        }
    }

    void announce() {
        epoch.fetch_add(1, std::memory_order_seq_cst);
        if (asleep.load(std::memory_order_seq_cst)) epoch.notify_all();
    }

    // Chunk after chunk, until none is left or `tired` says so; returns whether it was the latter.
    template <class F>
    bool claim(F&& tired) {
        try {
            for (;;) {
                if (tired()) return true;
                const size_t i = next.fetch_add(grain, std::memory_order_relaxed);
                if (i >= items) return false;
                chunk(argument, i, std::min(i + grain, items));
            }
        } catch (...) {
            next.store(items, std::memory_order_relaxed);
            if (!failed.exchange(true)) failure = std::current_exception();
        }
        return false;
    }

    void work() {
        using clock = std::chrono::steady_clock;
        constexpr auto turn = std::chrono::milliseconds(2);  // the system's own are longer
        auto rested = clock::now();
        for (uint32_t seen = 0;;) {
            seen = wait(seen);
            if (stop) return;
            // Whoever else wants this core gets it between two chunks: taken amid one, all would wait for its end.
            for (bool again = true; again;) {
                again = (gate.fetch_add(1, std::memory_order_acquire) & open) && claim([&] { return clock::now() - rested > turn; });
                gate.fetch_sub(1, std::memory_order_release);
                if (again) std::this_thread::yield(), rested = clock::now();
            }
        }
    }

    // The epoch after `seen`: spinning first, since the next operation of a forward pass is microseconds away.
    uint32_t wait(uint32_t seen) {
        using clock = std::chrono::steady_clock;
        const auto until = clock::now() + std::chrono::microseconds(200);
        for (uint32_t e;;) {
            for (int k = 0; k < 64; k++, pause())
                if ((e = epoch.load(std::memory_order_acquire)) != seen) return e;
            if (clock::now() < until) continue;
            asleep.fetch_add(1, std::memory_order_seq_cst);
            epoch.wait(seen, std::memory_order_seq_cst);
            asleep.fetch_sub(1, std::memory_order_relaxed);
        }
    }

    const uint64_t born;
    std::mutex busy;
    size_t items = 0, grain = 1;
    Chunk chunk = nullptr;
    void* argument = nullptr;
    std::atomic<bool> stop{false};
    std::exception_ptr failure;
    std::atomic<bool> failed{false};
    static constexpr uint32_t open = 1u << 31;
    alignas(cache_line) std::atomic<uint32_t> gate{0};  // open while there is work to claim, plus the workers inside
    alignas(cache_line) std::atomic<uint32_t> epoch{0};
    alignas(cache_line) std::atomic<int> asleep{0};
    alignas(cache_line) std::atomic<size_t> next{0};
    std::vector<std::thread> workers;
};

Pool::Pool(int threads, const Kernels& kernels) : threads_(threads), kernels_(kernels) {
    team_ = new Team(threads);
}

Pool::~Pool() {
    Team* team = team_;
    if (team->born == forks()) delete team;  // else its threads were never ours to join
}

// The team of this process. One that came through fork() has no threads and perhaps a locked mutex: it is left behind.
Pool::Team& Pool::team() {
    Team* team = team_.load(std::memory_order_acquire);
    if (team->born == forks()) return *team;
    auto fresh = std::make_unique<Team>(threads_);
    if (team_.compare_exchange_strong(team, fresh.get())) return *fresh.release();
    return *team;
}

void Pool::run(size_t items, size_t grain, Chunk chunk, void* f) { team().run(items, grain, chunk, f); }

namespace {
using Entered = std::vector<std::shared_ptr<Pool>>;
Entered& entered() {
    thread_local Entered pools;
    return pools;
}

struct Release {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t(cache_line)); }
};
}  // namespace

Pool* current_pool() {
    const Entered& pools = entered();
    return pools.empty() ? nullptr : pools.back().get();
}

const std::shared_ptr<Spare>& current_spare() {
    static const std::shared_ptr<Spare> none;
    Pool* pool = current_pool();
    return pool ? pool->spare() : none;
}

const Kernels& current_kernels() {
    static const Kernels& best = kernels("");
    Pool* pool = current_pool();
    return pool ? pool->kernels() : best;
}

namespace {
// Memory that grows as needed and is freed with its thread.
struct Arena {
    std::unique_ptr<float[], Release> floats;
    size_t size = 0;
    float* at_least(size_t n) {
        if (n > size) {
            size = 0;
            floats.reset();
            floats.reset(static_cast<float*>(::operator new[](n * sizeof(float), std::align_val_t(cache_line))));
            size = n;
        }
        return floats.get();
    }
};
}  // namespace

float* scratch(size_t n) {
    thread_local Arena arena;
    return arena.at_least(n);
}

std::byte* shared_scratch(size_t bytes) {
    thread_local Arena arena;
    return reinterpret_cast<std::byte*>(arena.at_least((bytes + sizeof(float) - 1) / sizeof(float)));
}

void* borrow(size_t bytes) { return Spare::take(current_spare(), bytes); }

namespace {
// What Python holds. The pool itself lives on while any thread is inside it.
struct PoolHandle {
    std::shared_ptr<Pool> pool;

    PoolHandle(nb::object wanted, nb::object set) {
        constexpr int most = 4096;
        int threads = 0;
        if (!nb::try_cast(wanted, threads, false) || threads < 1 || threads > most) refuse("threads is " + shown(wanted) + "; expected 1 to " + std::to_string(most) + ".");
        std::string isa;
        if (!nb::try_cast(set, isa, false)) refuse("isa is " + shown(set) + "; expected the name of an instruction set, or \"\".");
        try {
            pool = std::make_shared<Pool>(threads, kernels(isa));
        } catch (const std::invalid_argument& e) {
            refuse(e.what());
        } catch (const std::system_error& e) {
            refuse("threads is " + std::to_string(threads) + ", but the system gave fewer (" + e.what() + "). Ask for fewer threads.");
        }
    }
    static std::string shown(nb::handle x) { return nb::cast<std::string>(nb::repr(x)).substr(0, 60); }
    void enter() { entered().push_back(pool); }
    void exit() {
        Entered& pools = entered();
        for (size_t i = pools.size(); i-- > 0;)
            if (pools[i] == pool) {
                pools.erase(pools.begin() + i);
                return;
            }
        refuse("this thread left a Pool that it had not entered; leave it on the thread that entered it.");
    }
};
}  // namespace

void bind_pool(nb::module_& m) {
    nb::class_<PoolHandle>(m, "Pool",
                           "Threads for kernels: `with Pool(threads):` lets every kernel call of this Python thread use them. Blocks may nest;\n"
                           "the innermost counts. Without a pool, kernels run on the calling thread alone. `isa` (empty: the best here) is the\n"
                           "instruction set that kernels use inside the block. ConfigError for a bad number of threads or instruction set.")
        .def(nb::init<nb::object, nb::object>(), nb::arg("threads").none(), nb::arg("isa").none() = "")
        .def_prop_ro("threads", [](const PoolHandle& h) { return h.pool->threads(); }, "Threads, the caller's included.")
        .def_prop_ro("isa", [](const PoolHandle& h) { return h.pool->kernels().name; }, "The instruction set of its kernels.")
        .def("__enter__", [](nb::object self) {
            nb::cast<PoolHandle&>(self).enter();
            return self;
        })
        .def("__exit__", [](PoolHandle& h, nb::args) { h.exit(); });
}
}  // namespace qt
