/* Holds memory in five ways, each in a function of its own, and says at the end what each holds.
 *
 * Arguments: seconds, and how many pairs of malloc and free a millisecond (12). Beside these: 20 kB a second that are never
 * freed, a cache of 10 MB that fills in the first third and stays, one of 1 MB whose entries are replaced, and 40 MB that are
 * there for a fifth of the time, in the middle. It computes all the time, so that the calls are a small part of it. */
#include "workload.h"

enum { LEAKED = 200, ENTRY = 1000, ENTRIES = 10000, REPLACED = 1000, BATCHES = 40, BATCH = 1000000 };

static void *volatile kept;
static void *volatile cache[ENTRIES], *volatile replaced[REPLACED];
static void *volatile batches[BATCHES];
static uint64_t leaked, cached, churned, held;

APART void leak_here(void) {
    kept = malloc(LEAKED);
    NO_TAIL_CALL();
    leaked += LEAKED;
}

APART void fill_here(uint64_t entry) {
    cache[entry] = malloc(ENTRY);
    NO_TAIL_CALL();
    cached += ENTRY;
}

APART void replace_here(uint64_t entry) {
    if (replaced[entry] == NULL) {
        held += ENTRY;
    }
    free(replaced[entry]);
    replaced[entry] = malloc(ENTRY);
    NO_TAIL_CALL();
}

APART void hold_here(void) {
    for (int i = 0; i < BATCHES; i++) {
        batches[i] = malloc(BATCH);
        NO_TAIL_CALL();
    }
}

static void let_go(void) {
    for (int i = 0; i < BATCHES; i++) {
        free(batches[i]);
    }
}

APART void churn_here(void) {
    kept = malloc(100);
    NO_TAIL_CALL();
    churned += 100;
    free(kept);
}

int main(int argc, char **argv) {
    if (argc != 2 && argc != 3) {
        return 2;
    }
    uint64_t pairs = argc == 3 ? strtoull(argv[2], NULL, 10) : 12;
    uint64_t length = seconds_to_ns(argv[1]), start = clock_ns(CLOCK_MONOTONIC), now = start, filled = 0, next = 0;
    int holds = 0;
    say_ready();
    for (uint64_t tick = 0; now < start + length; tick++) {
        while ((now = clock_ns(CLOCK_MONOTONIC)) < start + tick * 1000000) {
        }
        for (uint64_t pair = 0; pair < pairs; pair++) {
            churn_here();
        }
        if (tick % 10 == 0) {
            leak_here();
        }
        if (holds == 0 && now - start > length * 2 / 5) {
            hold_here();
            holds = 1;
        } else if (holds == 1 && now - start > length * 3 / 5) {
            let_go();
            holds = 2;
        }
        for (uint64_t wanted = (now - start) * ENTRIES / (length / 3); filled < wanted && filled < ENTRIES; filled++) {
            fill_here(filled);
        }
        if (tick % 5 == 0) {
            replace_here(next++ % REPLACED);
        }
    }
    printf("{\"leaked\": %lu, \"cached\": %lu, \"replaced\": %lu, \"churned\": %lu, \"wall_ns\": %lu}\n", leaked, cached,
           held, churned, now - start);
    return 0;
}
