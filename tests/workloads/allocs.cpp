// Allocates by operator new, in two functions, three times as much in one as in the other, for so many seconds.
#include <new>

#include "workload.h"

static void *volatile kept;
static uint64_t of_one, of_many;

APART void one_here() {
    kept = ::operator new(100);
    of_one += 100;
    ::operator delete(kept);
}

APART void many_here() {
    kept = ::operator new[](300);
    of_many += 300;
    ::operator delete[](kept);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        return 2;
    }
    uint64_t end = clock_ns(CLOCK_MONOTONIC) + seconds_to_ns(argv[1]);
    say_ready();
    while (clock_ns(CLOCK_MONOTONIC) < end) {
        one_here();
        many_here();
    }
    printf("{\"one\": %lu, \"many\": %lu}\n", of_one, of_many);
    return 0;
}
