/* Opens one library after the other, each for the first time, waits and burns CPU there.
 *
 * Arguments: milliseconds to wait after each was opened, CPU milliseconds in each, then the libraries.
 * Prints the CPU time spent in all of them. */
#include <dlfcn.h>
#include <unistd.h>

#include "workload.h"

APART uint64_t in_library(uint64_t (*entry)(uint64_t), uint64_t n) {
    uint64_t result = entry(n);
    NO_TAIL_CALL();
    return result + 1;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        return 2;
    }
    uint64_t spent_ns = 0;
    volatile uint64_t sink = 0;
    say_ready();
    /* Time for a recording to begin. */
    usleep(500000);
    for (int i = 3; i < argc; i++) {
        void *library = dlopen(argv[i], RTLD_NOW);
        uint64_t (*entry)(uint64_t) = library ? (uint64_t (*)(uint64_t))dlsym(library, "plugin_entry") : NULL;
        if (entry == NULL) {
            return 1;
        }
        usleep((useconds_t)atoi(argv[1]) * 1000);
        uint64_t before_ns = thread_cpu_ns(), limit_ns = before_ns + (uint64_t)atoi(argv[2]) * 1000000ull;
        while (thread_cpu_ns() < limit_ns) {
            sink += in_library(entry, CHUNK / 4);
        }
        spent_ns += thread_cpu_ns() - before_ns;
    }
    printf("{\"libraries\": %d, \"cpu_ns\": %llu}\n", argc - 3, (unsigned long long)spent_ns);
    return 0;
}
