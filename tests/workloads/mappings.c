/* A process with very many mappings, which then burns CPU.
 *
 * Arguments: CPU seconds, then
 *   lines N       N mappings of anonymous memory, alternately readable and not
 *   executable N  N executable mappings of one page of its own file
 * Prints how many it made. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "workload.h"

APART uint64_t mapped_hot(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }

static long alternate(long wanted, long page) {
    char *start = mmap(NULL, (size_t)(wanted * page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) {
        return 0;
    }
    long made = 1;
    for (long i = 1; i < wanted; i += 2, made += 2) {
        if (mprotect(start + i * page, (size_t)page, PROT_READ) != 0) {
            break;
        }
    }
    return made;
}

static long executable(long wanted, long page) {
    int file = open("/proc/self/exe", O_RDONLY);
    long made = 0;
    while (made < wanted && mmap(NULL, (size_t)page, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED) {
        made++;
    }
    close(file);
    return made;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        return 2;
    }
    uint64_t limit_ns = seconds_to_ns(argv[1]);
    long wanted = atol(argv[3]), page = sysconf(_SC_PAGESIZE);
    long made = strcmp(argv[2], "lines") == 0 ? alternate(wanted, page) : executable(wanted, page);
    volatile uint64_t sink = 0;
    say_ready();
    uint64_t start_ns = thread_cpu_ns();
    while (thread_cpu_ns() - start_ns < limit_ns) {
        sink += mapped_hot(CHUNK);
    }
    printf("{\"made\": %ld}\n", made);
    return 0;
}
