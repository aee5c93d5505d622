/* Threads that wait, each for one thing and in a function of its own, and measure how long.
 *
 * Arguments: `all SECONDS DIRECTORY`: every kind of wait; the directory is where files are made, on a disk if that kind
 * is to count. `hang SECONDS`: millions of short waits beside one long one. `asleep`: threads that sleep until killed.
 * `switch SECONDS`: two threads that wake each other as fast as they can.
 *
 * Prints by thread the time it waited for a CPU, by the run delay that the kernel keeps in /proc/thread-self/schedstat,
 * and two bounds of the time it was blocked in its function: wall time without run delay, less the CPU time and with it.
 * The truth is near the first, and above it: the kernel begins to count a thread's CPU time when it is woken on an idle
 * CPU, not when it is switched in, some 10 us later (`rq_clock_skip_update`, kernel/sched/core.c). */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

/* What has passed for a thread. */
struct times {
    uint64_t wall_ns;
    uint64_t cpu_ns;
    uint64_t delay_ns;
};

/* A thread that waits. */
struct waiter {
    const char *name;
    void (*wait)(struct waiter *);
    /* What it waits for: descriptors, and whose turn it is. */
    int fds[2];
    pthread_t thread;
    uint64_t blocked_ns;
    uint64_t most_ns;
    uint64_t delay_ns;
    uint64_t waits;
    int works;
};

static uint64_t deadline_ns;
static const char *directory;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_int is_over;

static int time_is_up(void) { return clock_ns(CLOCK_MONOTONIC) >= deadline_ns || is_over; }

static void pause_us(unsigned us) {
    struct timespec time = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000l};
    while (nanosleep(&time, &time) != 0) {
    }
}

static _Thread_local int schedstat = -1;

static struct times times(void) {
    struct times now = {0};
    char text[128] = "";
    if (schedstat < 0) {
        schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    }
    if (schedstat >= 0 && pread(schedstat, text, sizeof text - 1, 0) > 0) {
        unsigned long long run, delay;
        if (sscanf(text, "%llu %llu", &run, &delay) == 2) {
            now.delay_ns = delay;
        }
    }
    now.cpu_ns = thread_cpu_ns();
    now.wall_ns = clock_ns(CLOCK_MONOTONIC);
    return now;
}

static void add(struct waiter *waiter, struct times before, struct times after) {
    uint64_t wall_ns = after.wall_ns - before.wall_ns;
    uint64_t delay_ns = after.delay_ns - before.delay_ns;
    uint64_t ran_ns = after.cpu_ns - before.cpu_ns + delay_ns;
    /* The clocks are not read at once: of a short wait, either may seem to be the longer one. */
    waiter->blocked_ns += wall_ns > ran_ns ? wall_ns - ran_ns : 0;
    waiter->most_ns += wall_ns > delay_ns ? wall_ns - delay_ns : 0;
    waiter->delay_ns += delay_ns;
    waiter->waits++;
}

APART void sleep_here(struct waiter *waiter) {
    (void)waiter;
    pause_us(2000);
    NO_TAIL_CALL();
}

APART void lock_here(struct waiter *waiter) {
    (void)waiter;
    pthread_mutex_lock(&mutex);
    pthread_mutex_unlock(&mutex);
    NO_TAIL_CALL();
}

APART void hold_lock(void) {
    pthread_mutex_lock(&mutex);
    pause_us(3000);
    pthread_mutex_unlock(&mutex);
    NO_TAIL_CALL();
}

APART void pipe_here(struct waiter *waiter) {
    char byte;
    waiter->works &= read(waiter->fds[0], &byte, 1) == 1;
    NO_TAIL_CALL();
}

APART void poll_here(struct waiter *waiter) {
    struct pollfd fd = {.fd = waiter->fds[0], .events = POLLIN};
    char byte;
    waiter->works &= poll(&fd, 1, -1) == 1 && read(waiter->fds[0], &byte, 1) == 1;
    NO_TAIL_CALL();
}

APART void network_here(struct waiter *waiter) {
    char byte;
    waiter->works &= recv(waiter->fds[0], &byte, 1, 0) == 1;
    NO_TAIL_CALL();
}

#define FILE_BYTES (64 << 20)
#define BLOCK (1 << 20)

static uint64_t random_block(struct waiter *waiter) {
    return (waiter->waits * 2654435761u) % (FILE_BYTES / BLOCK) * BLOCK;
}

APART void disk_here(struct waiter *waiter) {
    static __attribute__((aligned(4096))) char buffer[BLOCK];
    waiter->works &= pread(waiter->fds[0], buffer, BLOCK, (off_t)random_block(waiter)) == BLOCK;
    NO_TAIL_CALL();
}

static char *mapped;

APART void fault_here(struct waiter *waiter) {
    static volatile char sink;
    sink += mapped[random_block(waiter)];
    NO_TAIL_CALL();
}

APART void child_here(struct waiter *waiter) {
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/sleep", "sleep", "0.02", (char *)NULL);
        _exit(127);
    }
    waiter->works &= waitpid(child, NULL, 0) == child;
    NO_TAIL_CALL();
}

static void *wait_and_measure(void *argument) {
    struct waiter *waiter = argument;
    pthread_setname_np(pthread_self(), waiter->name);
    while (!time_is_up() && waiter->works) {
        struct times before = times();
        waiter->wait(waiter);
        add(waiter, before, times());
        if (waiter->wait == fault_here) {
            /* The page is cold again: taken out of the mapping, then out of the cache. */
            madvise(mapped + random_block(waiter), BLOCK, MADV_DONTNEED);
            posix_fadvise(waiter->fds[0], (off_t)random_block(waiter), BLOCK, POSIX_FADV_DONTNEED);
        }
    }
    return NULL;
}

APART uint64_t spin_here(uint64_t n) { return BURN_LOOP(n, 2862933555777941757ull); }

/* Two of these share a CPU: each waits half of the time for it. */
static void *spin(void *argument) {
    struct waiter *waiter = argument;
    volatile uint64_t sink = 0;
    pthread_setname_np(pthread_self(), waiter->name);
    struct times before = times();
    while (!time_is_up()) {
        sink += spin_here(CHUNK);
    }
    waiter->delay_ns = times().delay_ns - before.delay_ns;
    return NULL;
}

static void *hold_now_and_then(void *argument) {
    (void)argument;
    pthread_setname_np(pthread_self(), "holder");
    while (!is_over) {
        hold_lock();
        pause_us(200);
    }
    return NULL;
}

/* Wakes those that wait for a descriptor. */
static void *write_now_and_then(void *argument) {
    struct waiter *waiters = argument;
    pthread_setname_np(pthread_self(), "writer");
    while (!is_over) {
        pause_us(2000);
        for (struct waiter *waiter = waiters; waiter->name != NULL; waiter++) {
            if (waiter->fds[1] >= 0 && write(waiter->fds[1], "x", 1) != 1) {
                waiter->works = 0;
            }
        }
    }
    return NULL;
}

static int connect_tcp(int fds[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int failed = bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1) ||
                 getsockname(listener, (struct sockaddr *)&address, &length) ||
                 connect(fds[1], (struct sockaddr *)&address, sizeof address);
    fds[0] = failed ? -1 : accept(listener, NULL, NULL);
    close(listener);
    return fds[0] >= 0;
}

/* A file of random-looking content that is not in the cache; -1 where it cannot be had. */
static int cold_file(const char *name, int flags) {
    char path[4096];
    static char block[BLOCK];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    for (size_t i = 0; i < sizeof block; i++) {
        block[i] = (char)(i * 31 + i / 7);
    }
    for (int i = 0; fd >= 0 && i < FILE_BYTES / BLOCK; i++) {
        if (write(fd, block, sizeof block) != (ssize_t)sizeof block) {
            return -1;
        }
    }
    if (fd < 0 || fsync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) {
        return -1;
    }
    close(fd);
    fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    unlink(path);
    return fd;
}

static int all(double seconds) {
    struct waiter waiters[] = {
        {.name = "sleeper", .wait = sleep_here},    {.name = "lock", .wait = lock_here},
        {.name = "pipe", .wait = pipe_here},       {.name = "poll", .wait = poll_here},
        {.name = "network", .wait = network_here}, {.name = "disk", .wait = disk_here},
        {.name = "fault", .wait = fault_here},     {.name = "child", .wait = child_here},
        {.name = "spin-0"},                        {.name = "spin-1"},
        {.name = NULL},
    };
    pthread_t holder, writer;
    for (struct waiter *waiter = waiters; waiter->name != NULL; waiter++) {
        waiter->fds[0] = waiter->fds[1] = -1;
        waiter->works = 1;
        if (waiter->wait == pipe_here) {
            waiter->works = pipe2(waiter->fds, O_CLOEXEC) == 0;
        } else if (waiter->wait == poll_here) {
            waiter->works = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, waiter->fds) == 0;
        } else if (waiter->wait == network_here) {
            waiter->works = connect_tcp(waiter->fds);
        } else if (waiter->wait == disk_here) {
            waiter->fds[0] = cold_file("disk", O_DIRECT);
            waiter->works = waiter->fds[0] >= 0;
        } else if (waiter->wait == fault_here) {
            waiter->fds[0] = cold_file("fault", 0);
            mapped = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, waiter->fds[0], 0);
            waiter->works = mapped != MAP_FAILED && madvise(mapped, FILE_BYTES, MADV_RANDOM) == 0;
        }
    }
    say_ready();
    deadline_ns = clock_ns(CLOCK_MONOTONIC) + (uint64_t)(seconds * 1e9);
    pthread_create(&holder, NULL, hold_now_and_then, NULL);
    pthread_create(&writer, NULL, write_now_and_then, waiters);
    for (struct waiter *waiter = waiters; waiter->name != NULL; waiter++) {
        pthread_create(&waiter->thread, NULL, waiter->wait != NULL ? wait_and_measure : spin, waiter);
        if (waiter->wait == NULL) {
            cpu_set_t cpus;
            CPU_ZERO(&cpus);
            CPU_SET(sched_getcpu(), &cpus);
            static cpu_set_t shared;
            if (CPU_COUNT(&shared) == 0) {
                shared = cpus;
            }
            pthread_setaffinity_np(waiter->thread, sizeof shared, &shared);
        }
    }
    for (struct waiter *waiter = waiters; waiter->name != NULL; waiter++) {
        pthread_join(waiter->thread, NULL);
    }
    is_over = 1;
    pthread_join(holder, NULL);
    pthread_join(writer, NULL);
    putchar('{');
    for (struct waiter *waiter = waiters; waiter->name != NULL; waiter++) {
        printf("%s\"%s\": {\"blocked_ns\": %llu, \"most_ns\": %llu, \"delay_ns\": %llu, \"waits\": %llu, \"works\": %s}",
               waiter == waiters ? "" : ", ", waiter->name, (unsigned long long)waiter->blocked_ns,
               (unsigned long long)waiter->most_ns,
               (unsigned long long)waiter->delay_ns, (unsigned long long)waiter->waits,
               waiter->works ? "true" : "false");
    }
    puts("}");
    return 0;
}

/* Two threads hand a byte to each other through pipes: a wait each time. */
struct player {
    int from, to;
    uint64_t rounds;
    uint64_t cpu_ns;
};

APART int exchange_here(struct player *player) {
    char byte;
    int done = read(player->from, &byte, 1) == 1 && write(player->to, "x", 1) == 1;
    NO_TAIL_CALL();
    return done;
}

static void *play(void *argument) {
    struct player *player = argument;
    while (!is_over && exchange_here(player)) {
        player->rounds++;
    }
    player->cpu_ns = thread_cpu_ns();
    close(player->to);
    return NULL;
}

struct game {
    struct player players[2];
    pthread_t threads[2];
};

static void start(struct game *game, int cpu) {
    int there[2], back[2];
    if (pipe2(there, O_CLOEXEC) != 0 || pipe2(back, O_CLOEXEC) != 0 || write(there[1], "x", 1) != 1) {
        exit(1);
    }
    game->players[0] = (struct player){.from = there[0], .to = back[1]};
    game->players[1] = (struct player){.from = back[0], .to = there[1]};
    for (int i = 0; i < 2; i++) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(cpu, &cpus);
        pthread_create(&game->threads[i], NULL, play, &game->players[i]);
        /* On one CPU each hand-over is a switch. */
        pthread_setaffinity_np(game->threads[i], sizeof cpus, &cpus);
    }
}

APART void hang_here(uint64_t us) {
    pause_us((unsigned)us);
    NO_TAIL_CALL();
}

static int hang(double seconds) {
    struct game game;
    say_ready();
    start(&game, 0);
    pause_us(500000);
    uint64_t before_ns = clock_ns(CLOCK_MONOTONIC);
    hang_here((uint64_t)(seconds * 1e6));
    uint64_t hung_ns = clock_ns(CLOCK_MONOTONIC) - before_ns;
    pause_us(200000);
    is_over = 1;
    pthread_join(game.threads[0], NULL);
    pthread_join(game.threads[1], NULL);
    printf("{\"hung_ns\": %llu, \"rounds\": %llu}\n", (unsigned long long)hung_ns,
           (unsigned long long)(game.players[0].rounds + game.players[1].rounds));
    return 0;
}

/* Rounds and CPU time so far, once a tenth of a second, for who measures from outside: see `switch` of the benchmark. */
static int switch_fast(double seconds) {
    struct game game;
    say_ready();
    uint64_t before_ns = clock_ns(CLOCK_MONOTONIC);
    start(&game, 0);
    pause_us((unsigned)(seconds * 1e6));
    is_over = 1;
    pthread_join(game.threads[0], NULL);
    pthread_join(game.threads[1], NULL);
    uint64_t wall_ns = clock_ns(CLOCK_MONOTONIC) - before_ns;
    printf("{\"wall_ns\": %llu, \"cpu_ns\": %llu, \"switches\": %llu}\n", (unsigned long long)wall_ns,
           (unsigned long long)(game.players[0].cpu_ns + game.players[1].cpu_ns),
           (unsigned long long)(game.players[0].rounds + game.players[1].rounds));
    return 0;
}

static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

APART void asleep_here(void) {
    pthread_mutex_lock(&mutex);
    for (;;) {
        pthread_cond_wait(&never, &mutex);
    }
}

APART void listen_here(int fd) {
    char byte;
    while (read(fd, &byte, 1) == 1) {
    }
}

static void *sleep_for_ever(void *argument) {
    pthread_setname_np(pthread_self(), argument == NULL ? "condition" : "reader");
    if (argument == NULL) {
        asleep_here();
    } else {
        listen_here(*(int *)argument);
    }
    return NULL;
}

static int asleep(void) {
    int fds[2];
    pthread_t threads[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return 1;
    }
    pthread_create(&threads[0], NULL, sleep_for_ever, NULL);
    pthread_create(&threads[1], NULL, sleep_for_ever, &fds[0]);
    pause_us(50000);
    say_ready();
    /* Bounded, in case nobody ends it. */
    pause_us(120000000);
    return 0;
}

int main(int argc, char **argv) {
    double seconds = argc > 2 ? strtod(argv[2], NULL) : 0;
    directory = argc > 3 ? argv[3] : "/tmp";
    if (argc > 2 && strcmp(argv[1], "all") == 0) {
        return all(seconds);
    }
    if (argc > 2 && strcmp(argv[1], "hang") == 0) {
        return hang(seconds);
    }
    if (argc > 2 && strcmp(argv[1], "switch") == 0) {
        return switch_fast(seconds);
    }
    return argc > 1 && strcmp(argv[1], "asleep") == 0 ? asleep() : 2;
}
