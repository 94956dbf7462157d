// A file that is mapped and becomes shorter: whoever reads what is gone gets SIGBUS, and no word of why.
#include <nanobind/nanobind.h>

#if defined(__unix__) || defined(__APPLE__)
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace nb = nanobind;

namespace qt {
namespace {
constexpr size_t longest_path = 4096;
struct sigaction before;
std::atomic<bool> watching{false}, told{false};

// All that runs in the handler may run in one: no memory is taken, no lock, nothing of the C library but what POSIX lists.
void say(const char* text, size_t n) {
    while (n) {
        const ssize_t written = write(STDERR_FILENO, text, n);
        if (written <= 0) return;
        text += written;
        n -= size_t(written);
    }
}

void say(const char* text) { say(text, strlen(text)); }

// The path of the mapping that holds an address, by the kernel's list: `begin-end rights offset device inode   path` a line.
size_t path_at(uintptr_t address, char (&path)[longest_path]) {
    const int list = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (list < 0) return 0;
    char part[512];
    uintptr_t bounds[2] = {0, 0};
    size_t field = 0, n = 0;  // field: 0 begin, 1 end, 2 to 5 until the inode, 6 the path
    bool gap = false;
    for (ssize_t had; (had = read(list, part, sizeof part)) > 0;) {
        for (ssize_t i = 0; i < had; i++) {
            const char c = part[i];
            if (c == '\n') {
                if (n && bounds[0] <= address && address < bounds[1]) {
                    close(list);
                    return n;
                }
                bounds[0] = bounds[1] = field = n = 0;
                gap = false;
            } else if (field < 2) {
                if (c == '-' || c == ' ') field++;
                else bounds[field] = bounds[field] * 16 + uintptr_t(c <= '9' ? c - '0' : c - 'a' + 10);
            } else if (field < 6) {
                if (gap && c != ' ') field++;
                gap = c == ' ';
                if (field == 6) path[n++] = c;
            } else if (n < longest_path) {
                path[n++] = c;
            }
        }
    }
    close(list);
    return 0;
}

void tell(const void* address) {
    char path[longest_path];
    const size_t n = path_at(uintptr_t(address), path);
    say("qtransformers: ");
    if (n && path[0] == '/') say(path, n);
    else say("a mapped file");
    say(" has become shorter, or cannot be read, while it is in use. Replace a model by moving another over it (mv), never by writing into it (cp, truncate); then start again.\n");
}

// Then it happens again, to whom it would have happened without us: a handler of before, or the end of the process.
void on_bus_error(int signal, siginfo_t* info, void*) {
    const int kept = errno;
    if (info->si_code == BUS_ADRERR) {
        if (told.exchange(true)) {  // another thread is about to say it
            const timespec wait{1, 0};
            nanosleep(&wait, nullptr);
        } else {
            tell(info->si_addr);
        }
    }
    sigaction(SIGBUS, &before, nullptr);
    if (info->si_code <= 0) raise(signal);  // somebody sent it
    errno = kept;
}

void watch_mappings() {
    if (watching.exchange(true)) return;
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}
}  // namespace
#else
namespace nb = nanobind;

namespace qt {
namespace {
void watch_mappings() {}  // there a file that is mapped cannot become shorter
}  // namespace
#endif

void bind_faults(nb::module_& m) {
    m.def("watch_mappings", &watch_mappings, "From now on the process says so on standard error before it ends because a mapped file has become shorter.");
}
}  // namespace qt
