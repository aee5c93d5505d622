/* Makes system calls, each kind in a function of its own, and counts them.
 *
 * Arguments: "each ROUNDS", which reads, writes and fails to open so often and then sleeps, or "many SECONDS", which makes
 * the shortest of calls for that time. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "workload.h"

#define SLEEPS 60
#define SLEEP_NS 10000000

static uint64_t slept_ns[SLEEPS];

APART int read_here(int file) {
    char bytes[64];
    ssize_t length = read(file, bytes, sizeof bytes);
    NO_TAIL_CALL();
    return length == sizeof bytes;
}

APART int write_here(int file) {
    ssize_t length = write(file, "x", 1);
    NO_TAIL_CALL();
    return length == 1;
}

APART int fail_here(void) {
    int file = open("/there/is/no/such/file", O_RDONLY);
    NO_TAIL_CALL();
    return file < 0 && errno == ENOENT;
}

/* By number: the C library would take another call for it. */
APART void sleep_here(void) {
    struct timespec time = {.tv_nsec = SLEEP_NS};
    syscall(SYS_nanosleep, &time, NULL);
    NO_TAIL_CALL();
}

APART long shortest_here(void) {
    long parent = syscall(SYS_getppid);
    NO_TAIL_CALL();
    return parent;
}

static int by_value(const void *a, const void *b) {
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;
    return (first > second) - (first < second);
}

static int each(long rounds) {
    int zeros = open("/dev/zero", O_RDONLY | O_CLOEXEC), nothing = open("/dev/null", O_WRONLY | O_CLOEXEC);
    int works = 1;
    say_ready();
    for (long round = 0; round < rounds; round++) {
        works &= read_here(zeros);
        works &= read_here(zeros);
        works &= write_here(nothing);
        works &= fail_here();
    }
    uint64_t sum_ns = 0;
    for (int i = 0; i < SLEEPS; i++) {
        uint64_t before_ns = clock_ns(CLOCK_MONOTONIC);
        sleep_here();
        slept_ns[i] = clock_ns(CLOCK_MONOTONIC) - before_ns;
        sum_ns += slept_ns[i];
    }
    qsort(slept_ns, SLEEPS, sizeof *slept_ns, by_value);
    printf("{\"reads\": %ld, \"writes\": %ld, \"failures\": %ld, \"sleeps\": %d, \"sleep_p50_ns\": %llu, "
           "\"sleep_max_ns\": %llu, \"slept_ns\": %llu, \"works\": %s}\n",
           2 * rounds, rounds, rounds, SLEEPS, (unsigned long long)slept_ns[SLEEPS / 2],
           (unsigned long long)slept_ns[SLEEPS - 1], (unsigned long long)sum_ns, works ? "true" : "false");
    return 0;
}

static int many(uint64_t limit_ns) {
    volatile long sink = 0;
    uint64_t calls = 0;
    say_ready();
    uint64_t began_ns = clock_ns(CLOCK_MONOTONIC);
    while (clock_ns(CLOCK_MONOTONIC) - began_ns < limit_ns) {
        for (int i = 0; i < 1000; i++) {
            sink += shortest_here();
        }
        calls += 1000;
    }
    uint64_t wall_ns = clock_ns(CLOCK_MONOTONIC) - began_ns;
    printf("{\"calls\": %llu, \"wall_ns\": %llu, \"cpu_ns\": %llu}\n", (unsigned long long)calls,
           (unsigned long long)wall_ns, (unsigned long long)thread_cpu_ns());
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "each") == 0) {
        return each(strtol(argv[2], NULL, 10));
    }
    return argc > 2 && strcmp(argv[1], "many") == 0 ? many(seconds_to_ns(argv[2])) : 2;
}
