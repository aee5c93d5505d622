/* A tree of processes: a child that runs for as long as its parent, and short ones, one after the other, each of which
 * executes this program again.
 *
 * Arguments: wall seconds, CPU milliseconds of each short child. The first short child starts 100 ms after "ready".
 * Prints how many short children ran, and the CPU time of the short ones and of the long one. */
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

APART uint64_t long_child_hot(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }
APART uint64_t short_child_hot(uint64_t n) { return BURN_LOOP(n, 2862933555777941757ull); }

static uint64_t usage_ns(const struct rusage *usage) {
    return ((uint64_t)usage->ru_utime.tv_sec + (uint64_t)usage->ru_stime.tv_sec) * 1000000000ull +
           ((uint64_t)usage->ru_utime.tv_usec + (uint64_t)usage->ru_stime.tv_usec) * 1000ull;
}

int main(int argc, char **argv) {
    volatile uint64_t sink = 0;
    if (argc < 3) {
        return 2;
    }
    if (strcmp(argv[1], "short") == 0) {
        uint64_t limit_ns = (uint64_t)atoll(argv[2]) * 1000000ull;
        while (thread_cpu_ns() < limit_ns) {
            sink += short_child_hot(CHUNK / 4);
        }
        return 0;
    }
    uint64_t end_ns = clock_ns(CLOCK_MONOTONIC) + seconds_to_ns(argv[1]);
    pid_t long_child = fork();
    if (long_child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (clock_ns(CLOCK_MONOTONIC) < end_ns) {
            sink += long_child_hot(CHUNK);
        }
        _exit(0);
    }
    say_ready();
    usleep(100000);
    struct rusage usage;
    uint64_t short_ns = 0;
    int children = 0;
    while (clock_ns(CLOCK_MONOTONIC) < end_ns) {
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            execl("/proc/self/exe", "family", "short", argv[2], (char *)NULL);
            _exit(127);
        }
        wait4(child, NULL, 0, &usage);
        short_ns += usage_ns(&usage);
        children++;
    }
    wait4(long_child, NULL, 0, &usage);
    printf("{\"children\": %d, \"short_ns\": %llu, \"long_ns\": %llu, \"pid\": %d, \"long_pid\": %d}\n", children,
           (unsigned long long)short_ns, (unsigned long long)usage_ns(&usage), (int)getpid(), (int)long_child);
    return 0;
}
