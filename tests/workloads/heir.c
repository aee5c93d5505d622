/* A thread executes the program anew: it ends all others and takes over the number of the first.
 *
 * Arguments: milliseconds of CPU time before and after. Prints the CPU time that the process had. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "workload.h"

static char **arguments;

APART uint64_t heir_hot(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }

static void work_for(const char *milliseconds) {
    uint64_t until_ns = thread_cpu_ns() + (uint64_t)(atof(milliseconds) * 1e6);
    volatile uint64_t sink = 0;
    while (thread_cpu_ns() < until_ns) {
        sink += heir_hot(CHUNK / 100);
    }
}

static void *inherit(void *unused) {
    work_for(arguments[1]);
    usleep(100000);
    execl("/proc/self/exe", arguments[0], arguments[1], arguments[2], "heir", (char *)NULL);
    return unused;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        return 2;
    }
    if (argc > 3) {
        work_for(argv[2]);
        usleep(100000);
        printf("{\"spent_ns\": %llu}\n", (unsigned long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
        return 0;
    }
    arguments = argv;
    say_ready();
    pthread_t thread;
    if (pthread_create(&thread, NULL, inherit, NULL) != 0) {
        return 1;
    }
    pthread_join(thread, NULL);
    return 1;
}
