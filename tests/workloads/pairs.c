/* A fixed amount of work with pairs of malloc and free between, and what CPU time it took.
 *
 * Arguments: how many pairs, and how many rounds of multiplications before each. */
#include "workload.h"

static void *volatile kept;

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    uint64_t pairs = strtoull(argv[1], NULL, 10), rounds = strtoull(argv[2], NULL, 10), sum = 0;
    say_ready();
    uint64_t before = thread_cpu_ns();
    for (uint64_t pair = 0; pair < pairs; pair++) {
        sum += BURN_LOOP(rounds, 6364136223846793005ull);
        kept = malloc(64 + sum % 64);
        free(kept);
    }
    printf("{\"cpu_ns\": %lu, \"pairs\": %lu}\n", thread_cpu_ns() - before, pairs);
    return 0;
}
