// Three functions that burn CPU time as 50 : 30 : 20 beneath a chain of 20 callers: in C++, with a namespace, a class
// with virtual functions and templates, so that names must be demangled.
//
// Argument: CPU seconds. Prints the CPU time each function really took.
#include "workload.h"

#include <memory>
#include <vector>

namespace work {

class Hot {
public:
    virtual ~Hot() = default;
    virtual uint64_t burn(uint64_t n) = 0;
};

class Hot50 final : public Hot {
public:
    APART uint64_t burn(uint64_t n) override { return BURN_LOOP(n, 6364136223846793005ull); }
};

class Hot30 final : public Hot {
public:
    APART uint64_t burn(uint64_t n) override { return BURN_LOOP(n, 2862933555777941757ull); }
};

class Hot20 final : public Hot {
public:
    APART uint64_t burn(uint64_t n) override { return BURN_LOOP(n, 3202034522624059733ull); }
};

template <int Depth>
APART uint64_t chain(Hot &hot, uint64_t n) {
    uint64_t result;
    if constexpr (Depth < 20) {
        result = chain<Depth + 1>(hot, n);
    } else {
        result = hot.burn(n);
    }
    NO_TAIL_CALL();
    return result + Depth;
}

} // namespace work

int main(int argc, char **argv) {
    const uint64_t limit_ns = argc > 1 ? seconds_to_ns(argv[1]) : 1000000000ull;
    std::vector<std::unique_ptr<work::Hot>> hot;
    hot.push_back(std::make_unique<work::Hot50>());
    hot.push_back(std::make_unique<work::Hot30>());
    hot.push_back(std::make_unique<work::Hot20>());
    const uint64_t parts[3] = {5, 3, 2};
    uint64_t spent_ns[3] = {0, 0, 0};
    volatile uint64_t sink = 0;
    say_ready();
    uint64_t before_ns = thread_cpu_ns();
    while (before_ns < limit_ns) {
        for (int which = 0; which < 3; which++) {
            sink = sink + work::chain<1>(*hot[which], parts[which] * 2 * CHUNK);
            const uint64_t now_ns = thread_cpu_ns();
            spent_ns[which] += now_ns - before_ns;
            before_ns = now_ns;
        }
    }
    printf("{\"hot50\": %llu, \"hot30\": %llu, \"hot20\": %llu}\n", (unsigned long long)spent_ns[0],
           (unsigned long long)spent_ns[1], (unsigned long long)spent_ns[2]);
}
