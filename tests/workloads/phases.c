/* A program whose use of things changes at a known time: it burns half of a CPU, and then has more threads, descriptors
 * and memory.
 *
 * Arguments: wall seconds, second of the change, threads, descriptors, MiB.
 * Prints CPU time and minor faults by getrusage, and the time of the change in ns since "ready". */
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "workload.h"

APART uint64_t burn_half(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }

static void *sleep_on(void *argument) {
    pause();
    return argument;
}

static uint64_t time_ns(struct timeval time) { return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_usec * 1000ull; }

static int change(long threads, long descriptors, long mib) {
    for (long i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, sleep_on, NULL) != 0) {
            return 0;
        }
    }
    for (long i = 0; i < descriptors; i++) {
        if (open("/dev/null", O_RDONLY | O_CLOEXEC) < 0) {
            return 0;
        }
    }
    char *memory = malloc((size_t)mib << 20);
    if (memory == NULL) {
        return 0;
    }
    memset(memory, 1, (size_t)mib << 20);
    __asm__ volatile("" : : "r"(memory) : "memory");
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 6) {
        return 2;
    }
    volatile uint64_t sink = 0;
    uint64_t begin_ns = clock_ns(CLOCK_MONOTONIC), change_ns = 0;
    uint64_t end_ns = begin_ns + seconds_to_ns(argv[1]), due_ns = begin_ns + seconds_to_ns(argv[2]);
    say_ready();
    for (;;) {
        uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
        if (now_ns >= end_ns) {
            break;
        }
        if (change_ns == 0 && now_ns >= due_ns) {
            if (!change(atol(argv[3]), atol(argv[4]), atol(argv[5]))) {
                return 1;
            }
            change_ns = clock_ns(CLOCK_MONOTONIC) - begin_ns;
        }
        uint64_t used_ns = thread_cpu_ns();
        while (thread_cpu_ns() - used_ns < 5000000ull) {
            sink += burn_half(CHUNK / 4);
        }
        uint64_t burnt_ns = clock_ns(CLOCK_MONOTONIC) - now_ns;
        usleep((useconds_t)(burnt_ns / 1000));
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"cpu_ns\": %llu, \"minor_faults\": %ld, \"change_ns\": %llu}\n",
           (unsigned long long)(time_ns(usage.ru_utime) + time_ns(usage.ru_stime)), usage.ru_minflt,
           (unsigned long long)change_ns);
    return 0;
}
