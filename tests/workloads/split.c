/* Three functions that burn CPU time as 50 : 30 : 20 beneath a chain of 20 callers.
 *
 * Arguments: CPU seconds, and optionally a file that is given {rounds, CPU ns} as two 64-bit numbers after every round.
 * Prints the CPU time each function really took. */
#include <fcntl.h>
#include <unistd.h>

#include "workload.h"

APART uint64_t hot50(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }
APART uint64_t hot30(uint64_t n) { return BURN_LOOP(n, 2862933555777941757ull); }
APART uint64_t hot20(uint64_t n) { return BURN_LOOP(n, 3202034522624059733ull); }

APART uint64_t c20(int which, uint64_t n) {
    uint64_t result = which == 0 ? hot50(n) : which == 1 ? hot30(n) : hot20(n);
    NO_TAIL_CALL();
    return result + 20;
}

#define CALLER(name, callee, number)              \
    APART uint64_t name(int which, uint64_t n) {  \
        uint64_t result = callee(which, n);       \
        NO_TAIL_CALL();                           \
        return result + number;                   \
    }

CALLER(c19, c20, 19)
CALLER(c18, c19, 18)
CALLER(c17, c18, 17)
CALLER(c16, c17, 16)
CALLER(c15, c16, 15)
CALLER(c14, c15, 14)
CALLER(c13, c14, 13)
CALLER(c12, c13, 12)
CALLER(c11, c12, 11)
CALLER(c10, c11, 10)
CALLER(c09, c10, 9)
CALLER(c08, c09, 8)
CALLER(c07, c08, 7)
CALLER(c06, c07, 6)
CALLER(c05, c06, 5)
CALLER(c04, c05, 4)
CALLER(c03, c04, 3)
CALLER(c02, c03, 2)
CALLER(c01, c02, 1)

int main(int argc, char **argv) {
    uint64_t limit_ns = argc > 1 ? seconds_to_ns(argv[1]) : 1000000000ull;
    int progress = argc > 2 ? open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
    static const uint64_t parts[3] = {5, 3, 2};
    uint64_t spent_ns[3] = {0, 0, 0};
    uint64_t done[2] = {0, 0};
    volatile uint64_t sink = 0;
    say_ready();
    uint64_t before_ns = thread_cpu_ns();
    while (before_ns < limit_ns) {
        for (int which = 0; which < 3; which++) {
            sink += c01(which, parts[which] * 2 * CHUNK);
            uint64_t now_ns = thread_cpu_ns();
            spent_ns[which] += now_ns - before_ns;
            before_ns = now_ns;
        }
        done[0]++;
        done[1] = before_ns;
        if (progress >= 0 && pwrite(progress, done, sizeof done, 0) != sizeof done) {
            return 1;
        }
    }
    printf("{\"hot50\": %llu, \"hot30\": %llu, \"hot20\": %llu, \"rounds\": %llu}\n", (unsigned long long)spent_ns[0],
           (unsigned long long)spent_ns[1], (unsigned long long)spent_ns[2], (unsigned long long)done[0]);
    return 0;
}
