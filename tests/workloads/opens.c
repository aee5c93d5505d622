/* Burns CPU itself for the first third of its time, then opens a library and burns it there.
 *
 * Arguments: CPU seconds, the library. Prints the CPU time spent in each. */
#include <dlfcn.h>

#include "workload.h"

APART uint64_t own_hot(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }

int main(int argc, char **argv) {
    if (argc < 3) {
        return 2;
    }
    uint64_t limit_ns = seconds_to_ns(argv[1]);
    volatile uint64_t sink = 0;
    say_ready();
    while (thread_cpu_ns() < limit_ns / 3) {
        sink += own_hot(CHUNK);
    }
    uint64_t own_ns = thread_cpu_ns();
    void *library = dlopen(argv[2], RTLD_NOW);
    uint64_t (*entry)(uint64_t) = library ? (uint64_t (*)(uint64_t))dlsym(library, "plugin_entry") : NULL;
    if (entry == NULL) {
        return 1;
    }
    while (thread_cpu_ns() < limit_ns) {
        sink += entry(CHUNK);
    }
    printf("{\"own\": %llu, \"plugin\": %llu}\n", (unsigned long long)own_ns,
           (unsigned long long)(thread_cpu_ns() - own_ns));
    return 0;
}
