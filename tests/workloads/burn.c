/* Burns CPU in one function of its own.
 *
 * Arguments: CPU seconds, then optionally one of
 *   delete  its binary's file is removed first
 *   libc    half of the time is spent in the C library, which has no frame pointers (qsort)
 *   vdso    reads the clock all the time */
#include <string.h>
#include <unistd.h>

#include "workload.h"

APART uint64_t burn_hot(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }

APART uint64_t burn_caller(uint64_t n) {
    uint64_t result = burn_hot(n);
    NO_TAIL_CALL();
    return result + 1;
}

#define NUMBERS 20000

static uint32_t numbers[NUMBERS];

APART int compare(const void *left, const void *right) {
    OWN_FRAME();
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

APART uint64_t sort_in_libc(void) {
    uint32_t state = 12345;
    for (int i = 0; i < NUMBERS; i++) {
        state = state * 1664525u + 1013904223u;
        numbers[i] = state;
    }
    qsort(numbers, NUMBERS, sizeof numbers[0], compare);
    NO_TAIL_CALL();
    return numbers[NUMBERS / 2];
}

APART uint64_t read_clock(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 10000; i++) {
        sum += clock_ns(CLOCK_MONOTONIC);
    }
    NO_TAIL_CALL();
    return sum;
}

int main(int argc, char **argv) {
    uint64_t limit_ns = argc > 1 ? seconds_to_ns(argv[1]) : 1000000000ull;
    const char *mode = argc > 2 ? argv[2] : "";
    if (strcmp(mode, "delete") == 0 && unlink(argv[0]) != 0) {
        return 1;
    }
    int in_libc = strcmp(mode, "libc") == 0, in_vdso = strcmp(mode, "vdso") == 0;
    volatile uint64_t sink = 0;
    say_ready();
    while (thread_cpu_ns() < limit_ns) {
        if (in_libc) {
            sink += sort_in_libc();
        }
        sink += in_vdso ? read_clock() : burn_caller(CHUNK);
    }
    printf("{\"cpu_ns\": %llu}\n", (unsigned long long)thread_cpu_ns());
    return 0;
}
