/* Programs with one bottleneck each, and one with none.
 *
 * Arguments: which, wall seconds, and a directory for those that use files:
 *   hash     hashes most of the time
 *   churn    allocates and frees most of the time
 *   convoy   six threads want one mutex, whose holder sleeps with it
 *   fsync    syncs a file after each record
 *   disk     reads blocks at random from the disk, past the page cache
 *   reads    reads a file row by row, some bytes at a time
 *   thrash   goes through mapped memory whose pages are taken away all the time
 *   stall    asks a server for one thing after the other, which takes its time for each
 *   pool     one thread makes all the work ready that four others wait for
 *   grow     keeps all it allocates
 *   healthy  does a dozen things, each a little, and waits in between */
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <unistd.h>

#include "workload.h"

static uint64_t end_ns;
static char path[4096];
static volatile uint64_t sink;

static int goes_on(void) { return clock_ns(CLOCK_MONOTONIC) < end_ns; }

static void nap_us(unsigned us) {
    struct timespec time = {0, (long)us * 1000};
    nanosleep(&time, NULL);
}

/* FNV-1a. */
APART uint64_t hash_block_here(const unsigned char *data, size_t length) {
    OWN_FRAME();
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ data[i]) * 0x100000001b3ull;
    }
    return hash;
}

APART void check_blocks_here(void) {
    static unsigned char block[65536];
    while (goes_on()) {
        for (int i = 0; i < 8; i++) {
            block[i] = (unsigned char)sink;
            sink += hash_block_here(block, sizeof block);
        }
        sink += BURN_LOOP(CHUNK / 8, 3935559000370003845ull);
    }
}

APART void build_lists_here(void) {
    enum { COUNT = 4096 };
    static void *list[COUNT];
    while (goes_on()) {
        for (int i = 0; i < COUNT; i++) {
            list[i] = malloc(24 + (size_t)(i % 40) * 48);
        }
        for (int i = 0; i < COUNT; i++) {
            free(list[(i * 797) % COUNT]);
        }
        NO_TAIL_CALL();
    }
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

APART void update_shared_here(void) {
    pthread_mutex_lock(&mutex);
    nap_us(2000);
    pthread_mutex_unlock(&mutex);
    NO_TAIL_CALL();
}

static void *convoy(void *unused) {
    (void)unused;
    while (goes_on()) {
        update_shared_here();
    }
    return NULL;
}

APART void append_record_here(int file) {
    char record[512];
    memset(record, 'x', sizeof record);
    if (write(file, record, sizeof record) != sizeof record || fsync(file) != 0) {
        exit(1);
    }
    NO_TAIL_CALL();
}

enum { FILE_BYTES = 64 << 20, ROW_BYTES = 64 };

static int make_file(int flags) {
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    static char block[1 << 20];
    memset(block, 'y', sizeof block);
    for (size_t done = 0; done < FILE_BYTES; done += sizeof block) {
        if (write(file, block, sizeof block) != sizeof block) {
            exit(1);
        }
    }
    fsync(file);
    close(file);
    return open(path, O_RDWR | flags);
}

APART void read_block_here(int file, void *block, uint64_t place) {
    if (pread(file, block, 4096, (off_t)(place % (FILE_BYTES / 4096) * 4096)) < 0) {
        exit(1);
    }
    NO_TAIL_CALL();
}

APART void read_row_here(int file, uint64_t row) {
    char text[ROW_BYTES];
    if (pread(file, text, sizeof text, (off_t)(row % (FILE_BYTES / ROW_BYTES) * ROW_BYTES)) < 0) {
        exit(1);
    }
    NO_TAIL_CALL();
}

APART uint64_t scan_pages_here(unsigned char *memory) {
    uint64_t sum = 0;
    for (size_t i = 0; i < FILE_BYTES; i += 4096 * 61) {
        sum += memory[i];
    }
    return sum;
}

static int listener;

static void *serve(void *unused) {
    (void)unused;
    int peer = accept(listener, NULL, NULL);
    char request;
    while (read(peer, &request, 1) == 1) {
        nap_us(20000);
        if (write(peer, &request, 1) != 1) {
            break;
        }
    }
    close(peer);
    return NULL;
}

APART void ask_server_here(int peer) {
    char answer = 'q';
    if (write(peer, &answer, 1) != 1 || read(peer, &answer, 1) != 1) {
        exit(1);
    }
    NO_TAIL_CALL();
}

static void stall(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&address, sizeof address);
    listen(listener, 1);
    getsockname(listener, (struct sockaddr *)&address, &length);
    pid_t server = fork();
    if (server == 0) {
        serve(NULL);
        _exit(0);
    }
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) {
        exit(1);
    }
    while (goes_on()) {
        ask_server_here(peer);
    }
    close(peer);
}

static pthread_cond_t ready = PTHREAD_COND_INITIALIZER;
static int queued, closed;

static void *work(void *unused) {
    (void)unused;
    pthread_mutex_lock(&mutex);
    while (!closed) {
        if (queued == 0) {
            pthread_cond_wait(&ready, &mutex);
            continue;
        }
        queued--;
        pthread_mutex_unlock(&mutex);
        sink += BURN_LOOP(CHUNK / 50, 2862933555777941757ull);
        pthread_mutex_lock(&mutex);
    }
    pthread_mutex_unlock(&mutex);
    return NULL;
}

APART void parse_everything_here(void) { sink += BURN_LOOP(CHUNK * 4, 6364136223846793005ull); }

static void pool(void) {
    while (goes_on()) {
        parse_everything_here();
        pthread_mutex_lock(&mutex);
        queued++;
        pthread_cond_signal(&ready);
        pthread_mutex_unlock(&mutex);
    }
    pthread_mutex_lock(&mutex);
    closed = 1;
    pthread_cond_broadcast(&ready);
    pthread_mutex_unlock(&mutex);
}

/* A dozen functions that have a twelfth each. */
#define STEP(name, multiplier) \
    APART uint64_t name(void) { return BURN_LOOP(CHUNK / 4, multiplier); }
STEP(step_one, 6364136223846793005ull)
STEP(step_two, 3935559000370003845ull)
STEP(step_three, 2862933555777941757ull)
STEP(step_four, 3202034522624059733ull)
STEP(step_five, 6364136223846793007ull)
STEP(step_six, 3935559000370003847ull)
STEP(step_seven, 2862933555777941759ull)
STEP(step_eight, 3202034522624059735ull)
STEP(step_nine, 6364136223846793009ull)
STEP(step_ten, 3935559000370003849ull)
STEP(step_eleven, 2862933555777941761ull)
STEP(step_twelve, 3202034522624059737ull)

APART void healthy_here(void) {
    uint64_t (*steps[])(void) = {step_one,   step_two,   step_three, step_four, step_five,   step_six,
                                 step_seven, step_eight, step_nine,  step_ten,  step_eleven, step_twelve};
    while (goes_on()) {
        for (int i = 0; i < 12; i++) {
            sink += steps[i]();
        }
        nap_us(1000);
    }
}

int main(int argc, char **argv) {
    const char *which = argc > 1 ? argv[1] : "healthy";
    end_ns = clock_ns(CLOCK_MONOTONIC) + seconds_to_ns(argc > 2 ? argv[2] : "1");
    snprintf(path, sizeof path, "%s/seeded", argc > 3 ? argv[3] : ".");
    pthread_t threads[6];
    int count = 0, file;
    say_ready();
    if (strcmp(which, "hash") == 0) {
        check_blocks_here();
    } else if (strcmp(which, "churn") == 0) {
        build_lists_here();
    } else if (strcmp(which, "convoy") == 0) {
        for (; count < 6; count++) {
            pthread_create(&threads[count], NULL, convoy, NULL);
        }
    } else if (strcmp(which, "fsync") == 0) {
        for (file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600); goes_on();) {
            append_record_here(file);
        }
    } else if (strcmp(which, "disk") == 0) {
        void *block = aligned_alloc(4096, 4096);
        file = make_file(O_DIRECT);
        for (uint64_t place = 1; goes_on(); place = place * 6364136223846793005ull + 1442695040888963407ull) {
            read_block_here(file, block, place >> 33);
        }
    } else if (strcmp(which, "reads") == 0) {
        file = make_file(0);
        for (uint64_t row = 1; goes_on(); row = row * 6364136223846793005ull + 1442695040888963407ull) {
            read_row_here(file, row >> 33);
        }
    } else if (strcmp(which, "thrash") == 0) {
        file = make_file(0);
        unsigned char *memory = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, file, 0);
        madvise(memory, FILE_BYTES, MADV_RANDOM);
        while (goes_on()) {
            sink += scan_pages_here(memory);
            madvise(memory, FILE_BYTES, MADV_DONTNEED);
            posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        }
    } else if (strcmp(which, "stall") == 0) {
        stall();
    } else if (strcmp(which, "pool") == 0) {
        for (; count < 4; count++) {
            pthread_create(&threads[count], NULL, work, NULL);
        }
        pool();
    } else if (strcmp(which, "grow") == 0) {
        while (goes_on()) {
            char *kept = malloc(1 << 18);
            memset(kept, 1, 1 << 18);
            nap_us(20000);
        }
    } else {
        healthy_here();
    }
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
    }
    printf("{\"which\": \"%s\"}\n", which);
    return 0;
}
