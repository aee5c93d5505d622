/* A library that opens.c opens while it runs. */
#include "workload.h"

APART uint64_t plugin_hot(uint64_t n) { return BURN_LOOP(n, 3202034522624059733ull); }

uint64_t plugin_entry(uint64_t n) {
    uint64_t result = plugin_hot(n);
    NO_TAIL_CALL();
    return result + 1;
}
