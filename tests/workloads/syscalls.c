/* Spends its time in the kernel, in read(2) of /dev/zero, called without the C library so that every frame of the
 * program has a frame pointer; or in very many short ones through the C library, which has none.
 *
 * Arguments: CPU seconds, and optionally "libc". Prints its user and kernel time. */
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "workload.h"

static char buffer[1 << 16];

APART long read_zeros(int file) {
    long result = SYS_read;
    OWN_FRAME();
    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"((long)file), "S"(buffer), "d"(sizeof buffer)
                     : "rcx", "r11", "memory");
    return result;
}

APART long read_by_libc(int file) {
    OWN_FRAME();
    long result = read(file, buffer, 1);
    NO_TAIL_CALL();
    return result;
}

APART long many_reads(int file, int by_libc) {
    long sum = 0;
    for (int i = 0; i < 100; i++) {
        sum += by_libc ? read_by_libc(file) : read_zeros(file);
    }
    NO_TAIL_CALL();
    return sum;
}

int main(int argc, char **argv) {
    uint64_t limit_ns = argc > 1 ? seconds_to_ns(argv[1]) : 1000000000ull;
    int file = open("/dev/zero", O_RDONLY);
    volatile long sink = 0;
    if (file < 0) {
        return 1;
    }
    say_ready();
    while (thread_cpu_ns() < limit_ns) {
        sink += many_reads(file, argc > 2);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"user_ns\": %llu, \"kernel_ns\": %llu}\n",
           (unsigned long long)usage.ru_utime.tv_sec * 1000000000ull + (unsigned long long)usage.ru_utime.tv_usec * 1000,
           (unsigned long long)usage.ru_stime.tv_sec * 1000000000ull + (unsigned long long)usage.ru_stime.tv_usec * 1000);
    return 0;
}
