/* Burns CPU on very many distinct stacks: every call goes down another path of a binary tree of calls.
 *
 * Argument: CPU seconds. */
#include "workload.h"

#define DEPTH 16

APART uint64_t left(uint32_t path, int depth);

APART uint64_t right(uint32_t path, int depth) {
    OWN_FRAME();
    uint64_t result = depth == 0  ? BURN_LOOP(CHUNK / 8, 6364136223846793005ull)
                      : path & 1 ? right(path >> 1, depth - 1)
                                 : left(path >> 1, depth - 1);
    NO_TAIL_CALL();
    return result + 1;
}

APART uint64_t left(uint32_t path, int depth) {
    OWN_FRAME();
    uint64_t result = depth == 0  ? BURN_LOOP(CHUNK / 8, 2862933555777941757ull)
                      : path & 1 ? right(path >> 1, depth - 1)
                                 : left(path >> 1, depth - 1);
    NO_TAIL_CALL();
    return result + 2;
}

int main(int argc, char **argv) {
    uint64_t limit_ns = argc > 1 ? seconds_to_ns(argv[1]) : 1000000000ull;
    uint32_t path = 1;
    volatile uint64_t sink = 0;
    say_ready();
    while (thread_cpu_ns() < limit_ns) {
        path = path * 1664525u + 1013904223u;
        sink += left(path >> 8, DEPTH);
    }
    printf("{\"cpu_ns\": %llu}\n", (unsigned long long)thread_cpu_ns());
    return 0;
}
