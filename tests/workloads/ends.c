/* Threads that work and end, one after another and several at once, some before they were ever switched out.
 *
 * Arguments: how many threads, milliseconds of CPU time of each, how many at once.
 * Prints how many there were, and the CPU time that they had. */
#include <pthread.h>
#include <stdatomic.h>

#include "workload.h"

static uint64_t work_ns;
static _Atomic uint64_t spent_ns;

APART uint64_t end_hot(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }

static void *work(void *unused) {
    volatile uint64_t sink = 0;
    while (thread_cpu_ns() < work_ns) {
        sink += end_hot(CHUNK / 100);
    }
    atomic_fetch_add(&spent_ns, thread_cpu_ns());
    return unused;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        return 2;
    }
    int all = atoi(argv[1]), at_once = atoi(argv[3]);
    work_ns = (uint64_t)(atof(argv[2]) * 1e6);
    say_ready();
    pthread_t threads[64];
    for (int done = 0; done < all; done += at_once) {
        for (int i = 0; i < at_once; i++) {
            if (pthread_create(&threads[i], NULL, work, NULL) != 0) {
                return 1;
            }
        }
        for (int i = 0; i < at_once; i++) {
            pthread_join(threads[i], NULL);
        }
    }
    printf("{\"threads\": %d, \"spent_ns\": %llu, \"main_ns\": %llu}\n", all, (unsigned long long)spent_ns,
           (unsigned long long)thread_cpu_ns());
    return 0;
}
