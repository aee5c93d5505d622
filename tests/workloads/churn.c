/* Processes that start and end all the time: some at once, each of which forks one child after the other. A child
 * executes this program again, opens a library, burns CPU there and ends.
 *
 * Arguments: how many at once, how many children each has at most, wall seconds after which none has another, CPU
 * milliseconds of a child, the library. Prints how many processes ran, and their CPU time. */
#include <dlfcn.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

static int run_short(const char *milliseconds, const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    uint64_t (*entry)(uint64_t) = library ? (uint64_t (*)(uint64_t))dlsym(library, "plugin_entry") : NULL;
    if (entry == NULL) {
        return 1;
    }
    uint64_t limit_ns = strtoull(milliseconds, NULL, 10) * 1000000ull;
    volatile uint64_t sink = 0;
    while (thread_cpu_ns() < limit_ns) {
        sink += entry(CHUNK / 4);
    }
    return 0;
}

/* Returns how many processes it ran. */
static int start_and_wait(int most, uint64_t end_ns, char *milliseconds, char *path) {
    int children = 0;
    while (children < most && clock_ns(CLOCK_MONOTONIC) < end_ns) {
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            execl("/proc/self/exe", "churn", milliseconds, path, (char *)NULL);
            _exit(127);
        }
        int status = 0;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
            return -1;
        }
        children++;
    }
    return children;
}

int main(int argc, char **argv) {
    if (argc == 3) {
        return run_short(argv[1], argv[2]);
    }
    if (argc < 6) {
        return 2;
    }
    int at_once = atoi(argv[1]);
    uint64_t end_ns = clock_ns(CLOCK_MONOTONIC) + seconds_to_ns(argv[3]);
    int results[2];
    if (pipe(results) != 0) {
        return 1;
    }
    say_ready();
    for (int i = 0; i < at_once; i++) {
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            int children = start_and_wait(atoi(argv[2]), end_ns, argv[4], argv[5]);
            _exit(write(results[1], &children, sizeof children) == sizeof children ? 0 : 1);
        }
    }
    long processes = at_once;
    for (int i = 0; i < at_once; i++) {
        int children = 0;
        if (read(results[0], &children, sizeof children) != sizeof children || children < 0) {
            return 1;
        }
        processes += children;
        wait(NULL);
    }
    struct rusage usage;
    getrusage(RUSAGE_CHILDREN, &usage);
    uint64_t us = ((uint64_t)usage.ru_utime.tv_sec + (uint64_t)usage.ru_stime.tv_sec) * 1000000ull +
                  (uint64_t)usage.ru_utime.tv_usec + (uint64_t)usage.ru_stime.tv_usec;
    printf("{\"processes\": %ld, \"cpu_ns\": %llu}\n", processes, (unsigned long long)us * 1000);
    return 0;
}
