/* Works in short bursts and sleeps between them, as most servers do.
 *
 * Arguments: how many bursts, milliseconds of sleep before each, milliseconds of CPU time of each.
 * Prints the CPU time of all bursts. */
#include <unistd.h>

#include "workload.h"

APART uint64_t burst_hot(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }

int main(int argc, char **argv) {
    if (argc < 4) {
        return 2;
    }
    uint64_t burst_ns = (uint64_t)atoll(argv[3]) * 1000000ull, spent_ns = 0;
    volatile uint64_t sink = 0;
    say_ready();
    for (int i = 0; i < atoi(argv[1]); i++) {
        usleep((useconds_t)atoi(argv[2]) * 1000);
        uint64_t start_ns = thread_cpu_ns();
        while (thread_cpu_ns() - start_ns < burst_ns) {
            sink += burst_hot(CHUNK / 20);
        }
        spent_ns += thread_cpu_ns() - start_ns;
    }
    printf("{\"bursts_ns\": %llu}\n", (unsigned long long)spent_ns);
    return 0;
}
