/* Writes a function into memory and runs it, as a JIT compiler does.
 *
 * Arguments: CPU seconds, and optionally `map`: then it names the function in /tmp/perf-PID.map, where it also leaves
 * lines that a reader has to survive. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "workload.h"

/* push rbp; mov rbp, rsp; loop: dec rdi; jnz loop; pop rbp; ret. */
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3};

APART void jit_caller(void (*function)(uint64_t)) {
    function(CHUNK);
    NO_TAIL_CALL();
}

int main(int argc, char **argv) {
    uint64_t limit_ns = argc > 1 ? seconds_to_ns(argv[1]) : 1000000000ull;
    unsigned char *memory =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char path[64] = "";
    if (memory == MAP_FAILED) {
        return 1;
    }
    memcpy(memory + 256, code, sizeof code);
    if (argc > 2 && strcmp(argv[2], "map") == 0) {
        snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
        FILE *map = fopen(path, "w");
        if (map == NULL) {
            return 1;
        }
        fprintf(map, "not a line of a map\n%lx %x a neighbour\n%lx %x jit_hot(Array, int)\n", (unsigned long)memory, 16,
                (unsigned long)memory + 256, (unsigned)sizeof code);
        fclose(map);
    }
    say_ready();
    while (thread_cpu_ns() < limit_ns) {
        jit_caller((void (*)(uint64_t))(memory + 256));
    }
    if (path[0] != 0) {
        unlink(path);
    }
    printf("{\"cpu_ns\": %llu}\n", (unsigned long long)thread_cpu_ns());
    return 0;
}
