/* Does units of work of which one function has half of the time, and three others the rest.
 *
 * Arguments: CPU seconds, and by how many per cent the function is slower. Prints how many units it did. */
#include "workload.h"

APART uint64_t half_here(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }
APART uint64_t rest_one(uint64_t n) { return BURN_LOOP(n, 3935559000370003845ull); }
APART uint64_t rest_two(uint64_t n) { return BURN_LOOP(n, 2862933555777941757ull); }
APART uint64_t rest_three(uint64_t n) { return BURN_LOOP(n, 3202034522624059733ull); }

/* One unit. `extra`: iterations that the slow function does beyond its half. */
APART uint64_t unit_of_work(uint64_t extra) {
    uint64_t sum = half_here(CHUNK / 2 + extra);
    sum += rest_one(CHUNK / 4);
    sum += rest_two(CHUNK / 8);
    sum += rest_three(CHUNK / 8);
    NO_TAIL_CALL();
    return sum;
}

int main(int argc, char **argv) {
    uint64_t limit_ns = argc > 1 ? seconds_to_ns(argv[1]) : 1000000000ull;
    double slower = argc > 2 ? strtod(argv[2], NULL) : 0;
    uint64_t extra = (uint64_t)((double)(CHUNK / 2) * slower / 100.0), units = 0;
    volatile uint64_t sink = 0;
    say_ready();
    while (thread_cpu_ns() < limit_ns) {
        sink += unit_of_work(extra);
        units++;
    }
    printf("{\"units\": %llu, \"cpu_ns\": %llu}\n", (unsigned long long)units, (unsigned long long)thread_cpu_ns());
    return 0;
}
