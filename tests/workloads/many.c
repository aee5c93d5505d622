/* Burns CPU on very many distinct stacks: every call goes down another path of a binary tree of calls.
 *
 * Arguments: CPU seconds; optionally the depth of the tree, and "quarters": the seconds are wall time then, and the
 * process is named after the quarter that it is in. Prints its CPU time, and that of each quarter. */
#include <pthread.h>

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
    int depth = argc > 2 ? atoi(argv[2]) : DEPTH;
    clockid_t clock = argc > 3 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
    uint64_t start_ns = clock_ns(clock);
    uint32_t path = 1;
    uint64_t quarters_ns[4] = {0};
    volatile uint64_t sink = 0;
    say_ready();
    for (uint64_t quarter = 0, before_ns = thread_cpu_ns(); quarter < 4; quarter++) {
        char name[16];
        snprintf(name, sizeof name, "quarter-%llu", (unsigned long long)quarter);
        if (argc > 3) {
            pthread_setname_np(pthread_self(), name);
        }
        while (clock_ns(clock) - start_ns < limit_ns * (quarter + 1) / 4) {
            path = path * 1664525u + 1013904223u;
            sink += left(path >> 8, depth);
        }
        quarters_ns[quarter] = thread_cpu_ns() - before_ns;
        before_ns += quarters_ns[quarter];
    }
    printf("{\"cpu_ns\": %llu, \"quarters_ns\": [%llu, %llu, %llu, %llu]}\n", (unsigned long long)thread_cpu_ns(),
           (unsigned long long)quarters_ns[0], (unsigned long long)quarters_ns[1], (unsigned long long)quarters_ns[2],
           (unsigned long long)quarters_ns[3]);
    return 0;
}
