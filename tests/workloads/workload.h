/* What every workload shares: clocks, a loop that burns CPU, and the two lines of its protocol.
 *
 * A workload prints "ready" when it has set itself up and, as its last line, its own account of what it did as one
 * JSON object. It ends by itself after the CPU time it was given. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Kept as a function of its own, under its own name. */
#define APART __attribute__((noinline, noclone))

/* Put behind a call, keeps it from becoming a jump. */
#define NO_TAIL_CALL() __asm__ volatile("" ::: "memory")

/* Makes a function set up its frame pointer: gcc leaves that out of leaf functions whatever it is told, and a chain of
 * frame pointers then misses their callers. */
#ifdef WITHOUT_FRAME_POINTERS
#define OWN_FRAME()
#else
#define OWN_FRAME() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))
#endif

/* Iterations of the loops below in one call: some 0.5 ms. */
#define CHUNK 400000ull

static inline uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* CPU time of the calling thread. */
static inline uint64_t thread_cpu_ns(void) { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

static inline uint64_t seconds_to_ns(const char *text) { return (uint64_t)(strtod(text, NULL) * 1e9); }

/* A chain of dependent multiplications that no compiler can shorten. */
#define BURN_LOOP(n, multiplier)                                            \
    ({                                                                      \
        OWN_FRAME();                                                        \
        uint64_t value_ = (n);                                              \
        for (uint64_t i_ = 0; i_ < (n); i_++) {                             \
            value_ = value_ * (multiplier) + i_;                            \
            __asm__ volatile("" : "+r"(value_));                            \
        }                                                                   \
        value_;                                                             \
    })

static inline void say_ready(void) {
    puts("ready");
    fflush(stdout);
}

#endif
