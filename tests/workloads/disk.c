/* Reads and writes known numbers of bytes, and times what it waits for.
 *
 * Arguments: "direct FILE SIZE COUNT", which writes and then reads past the page cache, in requests of SIZE bytes; "writers
 * DIRECTORY BYTES", in which two processes write BYTES and twice as much to a file each, and a third one syncs; "append FILE BYTES", which appends
 * BYTES and syncs. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

#define BLOCK 65536

static uint64_t longest_ns;

APART uint64_t write_here(int file, char *bytes, size_t size, off_t at) {
    uint64_t before_ns = clock_ns(CLOCK_MONOTONIC);
    ssize_t length = pwrite(file, bytes, size, at);
    uint64_t took_ns = clock_ns(CLOCK_MONOTONIC) - before_ns;
    NO_TAIL_CALL();
    return length == (ssize_t)size ? took_ns : 0;
}

APART uint64_t read_here(int file, char *bytes, size_t size, off_t at) {
    uint64_t before_ns = clock_ns(CLOCK_MONOTONIC);
    ssize_t length = pread(file, bytes, size, at);
    uint64_t took_ns = clock_ns(CLOCK_MONOTONIC) - before_ns;
    NO_TAIL_CALL();
    return length == (ssize_t)size ? took_ns : 0;
}

static int direct(const char *path, size_t size, long count) {
    int file = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    char *bytes;
    if (file < 0 || posix_memalign((void **)&bytes, 4096, size) != 0) {
        printf("{\"error\": \"%s\"}\n", strerror(errno));
        return 0;
    }
    memset(bytes, 'x', size);
    say_ready();
    uint64_t written_ns = 0, read_ns = 0;
    int works = 1;
    for (long i = 0; i < count; i++) {
        uint64_t took_ns = write_here(file, bytes, size, i * (off_t)size);
        works &= took_ns > 0;
        written_ns += took_ns;
    }
    for (long i = 0; i < count; i++) {
        uint64_t took_ns = read_here(file, bytes, size, i * (off_t)size);
        works &= took_ns > 0;
        longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
        read_ns += took_ns;
    }
    printf("{\"requests\": %ld, \"bytes\": %llu, \"write_ns\": %llu, \"read_ns\": %llu, \"longest_read_ns\": %llu, "
           "\"works\": %s}\n",
           count, (unsigned long long)count * size, (unsigned long long)written_ns, (unsigned long long)read_ns,
           (unsigned long long)longest_ns, works ? "true" : "false");
    return 0;
}

APART int dirty_here(int file, const char *bytes) {
    ssize_t length = write(file, bytes, BLOCK);
    NO_TAIL_CALL();
    return length == BLOCK;
}

/* A process of its own that does one thing. */
static int apart(const char *name, const char *directory, long bytes) {
    pid_t child = fork();
    if (child != 0) {
        int status;
        return waitpid(child, &status, 0) == child && status == 0;
    }
    prctl(PR_SET_NAME, name);
    if (bytes == 0) {
        sync();
        _exit(0);
    }
    static char block[BLOCK];
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600), works = file >= 0;
    for (long at = 0; works && at < bytes; at += BLOCK) {
        works = dirty_here(file, block);
    }
    _exit(works ? 0 : 1);
}

static int writers(const char *directory, long bytes) {
    say_ready();
    int works = apart("writer-one", directory, bytes) && apart("writer-two", directory, 2 * bytes) &&
                apart("syncer", directory, 0);
    printf("{\"one\": %ld, \"two\": %ld, \"works\": %s}\n", bytes, 2 * bytes, works ? "true" : "false");
    return 0;
}

static int append(const char *path, long bytes) {
    static char block[BLOCK];
    int file = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    say_ready();
    int works = file >= 0 && bytes <= BLOCK && write(file, block, bytes) == bytes && fsync(file) == 0;
    printf("{\"bytes\": %ld, \"works\": %s}\n", bytes, works ? "true" : "false");
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 4 && strcmp(argv[1], "direct") == 0) {
        return direct(argv[2], strtoul(argv[3], NULL, 10), strtol(argv[4], NULL, 10));
    }
    if (argc > 3 && strcmp(argv[1], "append") == 0) {
        return append(argv[2], strtol(argv[3], NULL, 10));
    }
    return argc > 3 && strcmp(argv[1], "writers") == 0 ? writers(argv[2], strtol(argv[3], NULL, 10)) : 2;
}
