/* Burns CPU in a function that is inlined twice over: inlined_inner in inlined_middle in outer.
 *
 * Argument: CPU seconds. */
#include "workload.h"

static inline __attribute__((always_inline)) uint64_t inlined_inner(uint64_t n) {
    uint64_t value = n;
    for (uint64_t i = 0; i < n; i++) {
        value = value * 6364136223846793005ull + i;
        __asm__ volatile("" : "+r"(value));
    }
    return value;
}

static inline __attribute__((always_inline)) uint64_t inlined_middle(uint64_t n) {
    uint64_t value = inlined_inner(n);
    __asm__ volatile("" : "+r"(value));
    return value ^ 5;
}

APART uint64_t outer(uint64_t n) {
    OWN_FRAME();
    uint64_t value = inlined_middle(n);
    __asm__ volatile("" : "+r"(value));
    return value + 1;
}

int main(int argc, char **argv) {
    uint64_t limit_ns = argc > 1 ? seconds_to_ns(argv[1]) : 1000000000ull;
    volatile uint64_t sink = 0;
    say_ready();
    while (thread_cpu_ns() < limit_ns) {
        sink += outer(CHUNK);
    }
    printf("{\"cpu_ns\": %llu}\n", (unsigned long long)thread_cpu_ns());
    return 0;
}
