/* Faults pages in, each way in a function of its own, and counts its faults by the kernel's own account.
 *
 * Arguments: "each DIRECTORY", which touches fresh memory and a cold file of its own in that directory, or "many SECONDS",
 * which touches fresh memory for that CPU time. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "workload.h"

#define PAGE 4096
#define FRESH_PAGES 1000
#define WRITTEN_PAGES 300
#define FILE_PAGES 200
/* Pages of the file that are touched: so far apart that none comes with another. */
#define APART_PAGES 64

struct faults {
    long minor, major;
};

static struct faults faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return (struct faults){usage.ru_minflt, usage.ru_majflt};
}

APART void touch_fresh(volatile char *memory, size_t pages) {
    OWN_FRAME();
    for (size_t page = 0; page < pages; page++) {
        memory[page * PAGE] = 1;
    }
}

/* The kernel faults here, on behalf of the program. */
APART int read_into(int file, char *memory, size_t pages) {
    ssize_t bytes = read(file, memory, pages * PAGE);
    NO_TAIL_CALL();
    return bytes == (ssize_t)(pages * PAGE);
}

APART long touch_file(volatile const char *memory, size_t pages) {
    long sum = 0;
    OWN_FRAME();
    for (size_t page = 0; page < pages; page++) {
        sum += memory[page * APART_PAGES * PAGE];
    }
    return sum;
}

static char *fresh(size_t pages) {
    char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || madvise(memory, pages * PAGE, MADV_NOHUGEPAGE) != 0) {
        exit(1);
    }
    return memory;
}

/* A file that is not in the cache, mapped; NULL where it cannot be had. */
static const char *cold_file(const char *directory) {
    char path[4096];
    static char block[APART_PAGES * PAGE];
    snprintf(path, sizeof path, "%s/faults-file", directory);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    memset(block, 7, sizeof block);
    for (int i = 0; file >= 0 && i < FILE_PAGES; i++) {
        if (write(file, block, sizeof block) != (ssize_t)sizeof block) {
            return NULL;
        }
    }
    if (file < 0 || fsync(file) != 0 || unlink(path) != 0 || posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) != 0) {
        return NULL;
    }
    size_t bytes = (size_t)FILE_PAGES * sizeof block;
    const char *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED || madvise((void *)memory, bytes, MADV_RANDOM) != 0) {
        return NULL;
    }
    return memory;
}

static int each(const char *directory) {
    static volatile long sink;
    char *memory = fresh(FRESH_PAGES), *target = fresh(WRITTEN_PAGES);
    const char *file = cold_file(directory);
    int zeros = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    say_ready();
    struct faults before = faults();
    touch_fresh(memory, FRESH_PAGES);
    struct faults touched = faults();
    int works = read_into(zeros, target, WRITTEN_PAGES);
    struct faults written = faults();
    if (file != NULL) {
        sink += touch_file(file, FILE_PAGES);
    }
    struct faults after = faults();
    printf("{\"fresh\": %ld, \"written\": %ld, \"file_major\": %ld, \"file_minor\": %ld, \"works\": %s}\n",
           touched.minor - before.minor, written.minor - touched.minor, after.major - written.major,
           after.minor - written.minor, works ? "true" : "false");
    return 0;
}

static int many(uint64_t limit_ns) {
    enum { PAGES = 4096 };
    char *memory = fresh(PAGES);
    uint64_t passes = 0;
    say_ready();
    struct faults before = faults();
    uint64_t began_ns = clock_ns(CLOCK_MONOTONIC);
    while (thread_cpu_ns() < limit_ns) {
        touch_fresh(memory, PAGES);
        if (madvise(memory, PAGES * PAGE, MADV_DONTNEED) != 0) {
            return 1;
        }
        passes++;
    }
    struct faults after = faults();
    printf("{\"fresh\": %ld, \"passes\": %llu, \"cpu_ns\": %llu, \"wall_ns\": %llu}\n", after.minor - before.minor,
           (unsigned long long)passes, (unsigned long long)thread_cpu_ns(),
           (unsigned long long)(clock_ns(CLOCK_MONOTONIC) - began_ns));
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "each") == 0) {
        return each(argv[2]);
    }
    return argc > 2 && strcmp(argv[1], "many") == 0 ? many(seconds_to_ns(argv[2])) : 2;
}
