/* Named threads that burn CPU: two from the start, and later ones, one after the other, while it runs.
 *
 * Arguments: CPU seconds of each of the first two, CPU seconds of each later one, how many later ones.
 * Prints the CPU time of every thread by its name. */
#include <pthread.h>

#include "workload.h"

struct work {
    pthread_t thread;
    char name[16];
    uint64_t limit_ns;
    uint64_t spent_ns;
};

APART uint64_t thread_hot(uint64_t n) { return BURN_LOOP(n, 2862933555777941757ull); }

static void *run(void *argument) {
    struct work *work = argument;
    volatile uint64_t sink = 0;
    pthread_setname_np(pthread_self(), work->name);
    while (thread_cpu_ns() < work->limit_ns) {
        sink += thread_hot(CHUNK);
    }
    work->spent_ns = thread_cpu_ns();
    return NULL;
}

#define MAX_LATER 64

int main(int argc, char **argv) {
    static struct work work[2 + MAX_LATER];
    if (argc < 4) {
        return 2;
    }
    int later = atoi(argv[3]);
    later = later < MAX_LATER ? later : MAX_LATER;
    say_ready();
    for (int i = 0; i < 2 + later; i++) {
        snprintf(work[i].name, sizeof work[i].name, i < 2 ? "early-%d" : "late-%d", i < 2 ? i : i - 2);
        work[i].limit_ns = seconds_to_ns(argv[i < 2 ? 1 : 2]);
        if (pthread_create(&work[i].thread, NULL, run, &work[i]) != 0) {
            return 1;
        }
        if (i >= 2) {
            pthread_join(work[i].thread, NULL);
        }
    }
    pthread_join(work[0].thread, NULL);
    pthread_join(work[1].thread, NULL);
    putchar('{');
    for (int i = 0; i < 2 + later; i++) {
        printf("%s\"%s\": %llu", i > 0 ? ", " : "", work[i].name, (unsigned long long)work[i].spent_ns);
    }
    puts("}");
    return 0;
}
