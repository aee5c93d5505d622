/* Reads, writes and syncs files in every way there is, each way in a file of its own, and says what it has done to each.
 *
 * Arguments: "each DIRECTORY", or "pages DIRECTORY", which writes to mapped memory and reads what is and what is not in the
 * page cache, or "shared FILE WRITES", which appends to a file that others append to, or "many FILE
 * SECONDS", which makes short reads for that time, or "cost FILE ROUNDS", which says what calls cost. */
#include <fcntl.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "workload.h"

#define MAX_FILES 32
#define FILL 65536

/* What was done to a file. */
static struct file {
    const char *name;
    int descriptor;
    long reads, read, writes, written, syncs, opens, errors;
} files[MAX_FILES];
static int count, works = 1;
static char bytes[FILL];

static struct file *make(const char *name, int flags) {
    struct file *file = &files[count++];
    file->name = name;
    file->descriptor = open(name, flags | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    works &= file->descriptor >= 0;
    file->opens++;
    return file;
}

static struct file *did_read(struct file *file, ssize_t length, ssize_t expected) {
    works &= length == expected;
    file->reads++;
    file->read += length > 0 ? length : 0;
    file->errors += length < 0;
    return file;
}

static struct file *did_write(struct file *file, ssize_t length, ssize_t expected) {
    works &= length == expected;
    file->writes++;
    file->written += length > 0 ? length : 0;
    file->errors += length < 0;
    return file;
}

static struct file *filled(const char *name) {
    struct file *file = make(name, O_RDWR);
    return did_write(file, pwrite(file->descriptor, bytes, FILL, 0), FILL);
}

APART void read_here(struct file *file) {
    did_read(file, read(file->descriptor, bytes, 1000), 1000);
    NO_TAIL_CALL();
}

APART void write_here(struct file *file) {
    did_write(file, write(file->descriptor, bytes, 333), 333);
    NO_TAIL_CALL();
}

APART void sync_here(struct file *file) {
    works &= fsync(file->descriptor) == 0;
    file->syncs++;
    NO_TAIL_CALL();
}

APART int rename_here(int way) {
    int result = way == 0   ? rename("linked", "renamed")
                 : way == 1 ? renameat(AT_FDCWD, "renamed", AT_FDCWD, "again")
                            : (int)syscall(SYS_renameat2, AT_FDCWD, "again", AT_FDCWD, "linked", 0);
    NO_TAIL_CALL();
    return result;
}

static void by_vector(void) {
    struct iovec two[2] = {{bytes, 100}, {bytes + 100, 20}};
    struct file *file = filled("readv");
    for (int i = 0; i < 5; i++) {
        did_read(file, readv(file->descriptor, two, 2), 120);
    }
    file = filled("preadv");
    for (int i = 0; i < 4; i++) {
        did_read(file, preadv(file->descriptor, two, 2, 7), 120);
        did_read(file, preadv2(file->descriptor, two, 2, 7, RWF_HIPRI), 120);
    }
    file = make("writev", O_WRONLY);
    for (int i = 0; i < 6; i++) {
        did_write(file, writev(file->descriptor, two, 2), 120);
    }
    file = make("pwritev", O_WRONLY);
    for (int i = 0; i < 3; i++) {
        did_write(file, pwritev(file->descriptor, two, 2, 9), 120);
        did_write(file, pwritev2(file->descriptor, two, 2, 9, RWF_DSYNC), 120);
    }
}

static void by_copy(void) {
    struct file *from = filled("sent"), *to = make("sendfile", O_WRONLY);
    for (int i = 0; i < 4; i++) {
        off_t at = 0;
        ssize_t length = sendfile(to->descriptor, from->descriptor, &at, 3000);
        did_write(to, length, 3000);
        did_read(from, length, 3000);
    }
    from = filled("copied"), to = make("copy_file_range", O_WRONLY);
    for (int i = 0; i < 3; i++) {
        ssize_t length = copy_file_range(from->descriptor, NULL, to->descriptor, NULL, 4096, 0);
        did_write(to, length, 4096);
        did_read(from, length, 4096);
    }
    /* The pipe in between is no file. */
    int pipes[2];
    works &= pipe2(pipes, O_CLOEXEC) == 0;
    from = filled("spliced"), to = make("splice", O_WRONLY);
    for (int i = 0; i < 3; i++) {
        did_read(from, splice(from->descriptor, NULL, pipes[1], NULL, 2048, 0), 2048);
        did_write(to, splice(pipes[0], NULL, to->descriptor, NULL, 2048, 0), 2048);
    }
    works &= write(pipes[1], bytes, 10) == 10 && read(pipes[0], bytes, 10) == 10;
}

/* A ring of io_uring with one request in it at a time, by system calls alone. */
static struct ring {
    int descriptor;
    unsigned *head, *tail, *array, *done_head, *done_tail, mask, done_mask;
    struct io_uring_sqe *requests;
    struct io_uring_cqe *done;
} ring;

static int open_ring(void) {
    struct io_uring_params setup = {0};
    ring.descriptor = (int)syscall(SYS_io_uring_setup, 8, &setup);
    if (ring.descriptor < 0) {
        return 0;
    }
    size_t size = setup.sq_off.array + setup.sq_entries * sizeof(unsigned);
    size_t done_size = setup.cq_off.cqes + setup.cq_entries * sizeof(struct io_uring_cqe);
    int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    char *queue = mmap(NULL, size > done_size ? size : done_size, protection, flags, ring.descriptor, IORING_OFF_SQ_RING);
    ring.requests = mmap(NULL, setup.sq_entries * sizeof *ring.requests, protection, flags, ring.descriptor, IORING_OFF_SQES);
    ring.head = (unsigned *)(queue + setup.sq_off.head), ring.tail = (unsigned *)(queue + setup.sq_off.tail);
    ring.array = (unsigned *)(queue + setup.sq_off.array), ring.mask = setup.sq_entries - 1;
    ring.done_head = (unsigned *)(queue + setup.cq_off.head), ring.done_tail = (unsigned *)(queue + setup.cq_off.tail);
    ring.done = (struct io_uring_cqe *)(queue + setup.cq_off.cqes), ring.done_mask = setup.cq_entries - 1;
    return setup.features & IORING_FEAT_SINGLE_MMAP;
}

APART int ring_here(int operation, int flags, int descriptor, const void *data, unsigned length, uint64_t at) {
    unsigned tail = *ring.tail, index = tail & ring.mask;
    ring.requests[index] = (struct io_uring_sqe){.opcode = (uint8_t)operation, .flags = (uint8_t)flags, .fd = descriptor,
                                                 .addr = (uintptr_t)data, .len = length, .off = at};
    ring.array[index] = index;
    __atomic_store_n(ring.tail, tail + 1, __ATOMIC_RELEASE);
    works &= syscall(SYS_io_uring_enter, ring.descriptor, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1;
    unsigned head = *ring.done_head;
    works &= head != __atomic_load_n(ring.done_tail, __ATOMIC_ACQUIRE);
    int result = ring.done[head & ring.done_mask].res;
    __atomic_store_n(ring.done_head, head + 1, __ATOMIC_RELEASE);
    return result;
}

static void by_ring(void) {
    if (!open_ring()) {
        return;
    }
    static char aligned[4096] __attribute__((aligned(4096)));
    struct iovec two[2] = {{bytes, 100}, {bytes + 100, 20}};
    struct file *file = filled("ring");
    for (int i = 0; i < 9; i++) {
        did_read(file, ring_here(IORING_OP_READ, 0, file->descriptor, bytes, 700, 10), 700);
    }
    for (int i = 0; i < 4; i++) {
        did_write(file, ring_here(IORING_OP_WRITE, 0, file->descriptor, bytes, 90, 10), 90);
        did_read(file, ring_here(IORING_OP_READV, 0, file->descriptor, two, 2, 0), 120);
        did_write(file, ring_here(IORING_OP_WRITEV, 0, file->descriptor, two, 2, 0), 120);
    }
    works &= ring_here(IORING_OP_FSYNC, 0, file->descriptor, NULL, 0, 0) == 0;
    file->syncs++;
    did_read(file, ring_here(IORING_OP_READ, 0, file->descriptor, (void *)8, 700, 10), -14);
    /* Never by its descriptor. */
    file = filled("registered");
    works &= syscall(SYS_io_uring_register, ring.descriptor, IORING_REGISTER_FILES, &file->descriptor, 1) == 0;
    for (int i = 0; i < 5; i++) {
        did_write(file, ring_here(IORING_OP_WRITE, IOSQE_FIXED_FILE, 0, bytes, 40, 0), 40);
        did_read(file, ring_here(IORING_OP_READ, IOSQE_FIXED_FILE, 0, bytes, 60, 0), 60);
    }
    /* From the device, or by a worker. */
    file = filled("direct");
    int direct = open("direct", O_RDONLY | O_DIRECT | O_CLOEXEC);
    file->opens += direct >= 0;
    for (int i = 0; i < 7; i++) {
        int flags = i < 4 ? 0 : IOSQE_ASYNC;
        did_read(file, ring_here(IORING_OP_READ, flags, direct < 0 ? file->descriptor : direct, aligned, 4096, 4096), 4096);
    }
}

static void others(void) {
    struct file *file = make("errors", O_WRONLY);
    did_read(file, read(file->descriptor, bytes, 5), -1);
    file = make("ends", O_RDWR);
    did_read(file, read(file->descriptor, bytes, 5), 0);
    /* Its name goes before it is written. */
    file = make("gone", O_RDWR);
    works &= unlink("gone") == 0;
    did_write(file, write(file->descriptor, bytes, 77), 77);
    /* By another name, and another descriptor. */
    file = make("linked", O_RDWR);
    works &= link("linked", "alias") == 0;
    int again = openat(AT_FDCWD, "alias", O_RDWR | O_CLOEXEC);
    file->opens++;
    did_write(file, write(again, bytes, 55), 55);
    /* None of these is a file that was opened. */
    works &= open("there/is/no/such/file", O_RDONLY) < 0;
    int nothing = open("/dev/null", O_WRONLY | O_CLOEXEC);
    works &= write(nothing, bytes, 1000) == 1000;
}

static int each(const char *directory) {
    if (chdir(directory) != 0) {
        return 1;
    }
    say_ready();
    struct file *file = filled("read");
    lseek(file->descriptor, 0, SEEK_SET);
    for (int i = 0; i < 10; i++) {
        read_here(file);
    }
    file = filled("pread");
    for (int i = 0; i < 20; i++) {
        did_read(file, pread(file->descriptor, bytes, 512, 512), 512);
    }
    file = make("write", O_WRONLY);
    for (int i = 0; i < 11; i++) {
        write_here(file);
    }
    file = make("pwrite", O_WRONLY);
    for (int i = 0; i < 12; i++) {
        did_write(file, pwrite(file->descriptor, bytes, 100, i), 100);
    }
    by_vector();
    by_copy();
    by_ring();
    file = make("sync", O_WRONLY);
    for (int i = 0; i < 3; i++) {
        write_here(file);
        sync_here(file);
        works &= fdatasync(file->descriptor) == 0;
        works &= sync_file_range(file->descriptor, 0, 0, SYNC_FILE_RANGE_WRITE) == 0;
        file->syncs += 2;
    }
    others();
    works &= rename_here(0) == 0 && rename_here(1) == 0 && rename_here(2) == 0;
    printf("{\"works\": %s, \"renames\": 3, \"files\": {", works ? "true" : "false");
    for (file = files; file < files + count; file++) {
        printf("%s\"%s\": {\"reads\": %ld, \"read_bytes\": %ld, \"writes\": %ld, \"written_bytes\": %ld, \"syncs\": %ld, "
               "\"opens\": %ld, \"errors\": %ld}",
               file == files ? "" : ", ", file->name, file->reads, file->read, file->writes, file->written, file->syncs,
               file->opens, file->errors);
    }
    printf("}}\n");
    return 0;
}

/* Bytes of the page cache that this process has made dirty, by the kernel's own account. */
static long dirtied(void) {
    char line[128];
    long found = 0;
    FILE *account = fopen("/proc/self/io", "r");
    while (account != NULL && fgets(line, sizeof line, account) != NULL) {
        if (sscanf(line, "write_bytes: %ld", &found) == 1) {
            break;
        }
    }
    if (account != NULL) {
        fclose(account);
    }
    return found;
}

/* Writes to one page in so many of a mapped file; returns the bytes that became dirty. */
APART long map_here(int descriptor, long pages, long step) {
    char *memory = mmap(NULL, (size_t)pages * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    long before = dirtied();
    for (long page = 0; page < pages; page += step) {
        memory[page * 4096] = 1;
        memory[page * 4096 + 99] = 2;
    }
    return dirtied() - before;
}

/* Pages of a file that are in the page cache. */
static long resident(int descriptor, long pages) {
    static unsigned char in_memory[4096];
    void *memory = mmap(NULL, (size_t)pages * 4096, PROT_READ, MAP_SHARED, descriptor, 0);
    works &= mincore(memory, (size_t)pages * 4096, in_memory) == 0;
    long found = 0;
    for (long page = 0; page < pages; page++) {
        found += in_memory[page] & 1;
    }
    munmap(memory, (size_t)pages * 4096);
    return found;
}

static int pages(const char *directory) {
    enum { HOLES = 300, STEP = 3, LARGE = 2048, READS = 16 };
    if (chdir(directory) != 0) {
        return 1;
    }
    say_ready();
    /* Each page on its own, since there is nothing that could be read ahead. */
    struct file *holes = make("holes", O_RDWR);
    works &= ftruncate(holes->descriptor, HOLES * 4096) == 0;
    long in_holes = map_here(holes->descriptor, HOLES, STEP);
    /* In the large pieces that the file system has made when it was written. */
    struct file *large = make("large", O_RDWR);
    for (int i = 0; i < LARGE / 16; i++) {
        did_write(large, write(large->descriptor, bytes, FILL), FILL);
    }
    works &= fsync(large->descriptor) == 0;
    long in_large = map_here(large->descriptor, LARGE, 4);
    struct file *cached = filled("cached");
    works &= fsync(cached->descriptor) == 0;
    posix_fadvise(cached->descriptor, 0, 0, POSIX_FADV_DONTNEED);
    long misses = READS - resident(cached->descriptor, READS);
    for (int i = 0; i < 2 * READS; i++) {
        did_read(cached, pread(cached->descriptor, bytes, 4096, i % READS * 4096), 4096);
    }
    printf("{\"works\": %s, \"holes\": %ld, \"large\": %ld, \"hits\": %ld, \"misses\": %ld, \"pages\": %d}\n",
           works ? "true" : "false", in_holes, in_large, 2 * READS - misses, misses, (HOLES + STEP - 1) / STEP);
    return 0;
}

static int shared(const char *name, long writes) {
    int file = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    say_ready();
    long written = 0;
    for (long i = 0; i < writes; i++) {
        ssize_t length = write(file, bytes, 100);
        written += length;
    }
    printf("{\"writes\": %ld, \"written_bytes\": %ld}\n", writes, written);
    return 0;
}

static int many(const char *name, uint64_t limit_ns) {
    int file = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    works = pwrite(file, bytes, FILL, 0) == FILL;
    uint64_t reads = 0;
    say_ready();
    uint64_t began_ns = clock_ns(CLOCK_MONOTONIC);
    while (clock_ns(CLOCK_MONOTONIC) - began_ns < limit_ns) {
        for (int i = 0; i < 1000; i++) {
            works &= pread(file, bytes, 16, 0) == 16;
        }
        reads += 1000;
    }
    printf("{\"reads\": %llu, \"works\": %s}\n", (unsigned long long)reads, works ? "true" : "false");
    return 0;
}

/* CPU time of a call, ns: the least of so many rounds, since what disturbs one makes it longer. */
static int cost(const char *name, long rounds) {
    enum { CALLS = 50000 };
    int file = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    works = pwrite(file, bytes, FILL, 0) == FILL;
    double least[3] = {1e9, 1e9, 1e9};
    say_ready();
    for (long round = 0; round < rounds; round++) {
        for (int kind = 0; kind < 3; kind++) {
            uint64_t before_ns = thread_cpu_ns();
            for (int i = 0; i < CALLS; i++) {
                works &= kind == 0   ? syscall(SYS_getppid) >= 0
                         : kind == 1 ? pread(file, bytes, 16, 0) == 16
                                     : pwrite(file, bytes, 16, 0) == 16;
            }
            double each_ns = (double)(thread_cpu_ns() - before_ns) / CALLS;
            least[kind] = each_ns < least[kind] ? each_ns : least[kind];
        }
    }
    printf("{\"getppid_ns\": %.1f, \"pread_ns\": %.1f, \"pwrite_ns\": %.1f, \"works\": %s}\n", least[0], least[1], least[2],
           works ? "true" : "false");
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "each") == 0) {
        return each(argv[2]);
    }
    if (argc > 2 && strcmp(argv[1], "pages") == 0) {
        return pages(argv[2]);
    }
    if (argc > 3 && strcmp(argv[1], "shared") == 0) {
        return shared(argv[2], strtol(argv[3], NULL, 10));
    }
    if (argc > 3 && strcmp(argv[1], "cost") == 0) {
        return cost(argv[2], strtol(argv[3], NULL, 10));
    }
    return argc > 3 && strcmp(argv[1], "many") == 0 ? many(argv[2], seconds_to_ns(argv[3])) : 2;
}
