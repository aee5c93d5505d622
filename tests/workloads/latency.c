/* Functions whose calls have known lengths: one that is fast nine times in ten, one that sleeps for half of its time, one
 * that calls itself, and one that is left by longjmp.
 *
 * Usage: latency CALLS [probed]. Prints `ready`, waits until its functions have probes where it is to, which it sees in its
 * own code, and prints the truth as one JSON line. */
#include <setjmp.h>
#include <string.h>

#include "workload.h"

static uint64_t total_ns;

APART static uint64_t work_mixed(uint64_t rounds) {
    uint64_t value = BURN_LOOP(rounds, 6364136223846793005ull);
    NO_TAIL_CALL();
    return value;
}

/* As much time on the CPU as off it. */
APART static uint64_t work_halves(uint64_t *on_ns, uint64_t *off_ns) {
    uint64_t cpu = thread_cpu_ns(), start = clock_ns(CLOCK_MONOTONIC), value = 0;
    while (thread_cpu_ns() - cpu < 4000000)
        value += BURN_LOOP(20000, 6364136223846793005ull);
    struct timespec pause = {0, 4000000};
    nanosleep(&pause, NULL);
    uint64_t on = thread_cpu_ns() - cpu;
    *on_ns += on;
    *off_ns += clock_ns(CLOCK_MONOTONIC) - start - on;
    return value;
}

APART static uint64_t work_deep(unsigned depth) {
    uint64_t value = BURN_LOOP(1000, 6364136223846793005ull);
    if (depth > 0)
        value += work_deep(depth - 1);
    NO_TAIL_CALL();
    return value;
}

static jmp_buf back;

APART static uint64_t work_left(uint64_t value) {
    if (value != 0)
        longjmp(back, 1);
    return value;
}

/* Calls that are left so. */
APART static unsigned leave(unsigned times) {
    static volatile unsigned left;
    for (left = 0; left < times;) {
        if (setjmp(back) != 0)
            left++;
        else
            work_left(1);
    }
    return left;
}

/* Bytes of a function within which a probe on its entry is. */
#define FIRST_BYTES 16

/* Waits until every function has a probe, a minute at most. */
static int wait_for_probes(void) {
    const volatile uint8_t *code[] = {(const uint8_t *)work_mixed, (const uint8_t *)work_halves, (const uint8_t *)work_deep,
                                      (const uint8_t *)work_left};
    enum { FUNCTIONS = sizeof code / sizeof *code };
    uint64_t end = clock_ns(CLOCK_MONOTONIC) + 60000000000ull;
    while (clock_ns(CLOCK_MONOTONIC) < end) {
        unsigned probed = 0;
        for (unsigned function = 0; function < FUNCTIONS; function++) {
            for (unsigned byte = 0; byte < FIRST_BYTES; byte++) {
                /* int3, which none of them begins with. */
                if (code[function][byte] == 0xcc) {
                    probed++;
                    break;
                }
            }
        }
        if (probed == FUNCTIONS)
            return 1;
        struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
    }
    return 0;
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments) {
    unsigned calls = (unsigned)atoi(arguments[1]), halves = calls / 20;
    uint64_t *times = calloc(calls, sizeof *times), sum = 0, on_ns = 0, off_ns = 0;
    say_ready();
    if (count > 2 && !wait_for_probes())
        return 1;
    for (unsigned call = 0; call < calls; call++) {
        uint64_t start = clock_ns(CLOCK_MONOTONIC);
        sum += work_mixed(call % 10 == 9 ? 4000000 : 400000);
        times[call] = clock_ns(CLOCK_MONOTONIC) - start;
        total_ns += times[call];
    }
    for (unsigned call = 0; call < halves; call++)
        sum += work_halves(&on_ns, &off_ns);
    for (unsigned call = 0; call < calls; call++)
        sum += work_deep(3);
    unsigned left = leave(50);
    /* The root by Newton's method, for want of the library of mathematics. */
    double mean = (double)total_ns / calls, variance = 0, deviation = mean;
    for (unsigned call = 0; call < calls; call++)
        variance += ((double)times[call] - mean) * ((double)times[call] - mean) / (calls - 1);
    for (int step = 0; step < 100; step++)
        deviation = (deviation + variance / deviation) / 2;
    qsort(times, calls, sizeof *times, compare);
    printf("{\"calls\": %u, \"total_ns\": %llu, \"p50_ns\": %llu, \"p99_ns\": %llu, \"max_ns\": %llu, \"deviation_ns\": %.0f, \"halves\": %u, "
           "\"on_ns\": %llu, \"off_ns\": %llu, \"deep\": %u, \"left\": %u, \"sum\": %llu}\n",
           calls, (unsigned long long)total_ns, (unsigned long long)times[calls / 2],
           (unsigned long long)times[calls - calls / 100 - 1], (unsigned long long)times[calls - 1], deviation, halves,
           (unsigned long long)on_ns, (unsigned long long)off_ns, 4 * calls, left, (unsigned long long)sum);
    return 0;
}
