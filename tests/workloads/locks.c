/* Threads that wait for locks of every kind, each held by a function of its own for a known time.
 *
 * Argument: seconds. Prints for each lock how often it was waited for and how long, as the waiters measured it. */
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "workload.h"

/* What a thread measured of its own waits. */
struct waits {
    uint64_t waits, delay_ns, longest_ns;
};

static atomic_int ended;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, condition_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static sem_t semaphore;
static struct waits of_mutex, of_rwlock, of_condition, of_semaphore;

static void add(struct waits *waits, uint64_t since_ns) {
    uint64_t delay_ns = clock_ns(CLOCK_MONOTONIC) - since_ns;
    waits->waits++;
    waits->delay_ns += delay_ns;
    if (delay_ns > waits->longest_ns) {
        waits->longest_ns = delay_ns;
    }
}

/* The waiter asks while the lock is held: it is taken before, and given back some time after. */
#define ROUND(name, holder_ms)                                               \
    static pthread_barrier_t name##_taken, name##_done;                      \
    static void *name##_holder(void *unused) {                               \
        prctl(PR_SET_NAME, #name "-holder");                                 \
        for (;;) {                                                           \
            name##_take();                                                   \
            pthread_barrier_wait(&name##_taken);                             \
            int is_last = atomic_load(&ended);                               \
            usleep((holder_ms) * 1000);                                      \
            name##_give_back_here();                                         \
            pthread_barrier_wait(&name##_done);                              \
            if (is_last) {                                                   \
                return unused;                                               \
            }                                                                \
        }                                                                    \
    }                                                                        \
    static void *name##_waiter(void *unused) {                               \
        prctl(PR_SET_NAME, #name "-waiter");                                 \
        for (;;) {                                                           \
            pthread_barrier_wait(&name##_taken);                             \
            int is_last = atomic_load(&ended);                               \
            uint64_t since_ns = clock_ns(CLOCK_MONOTONIC);                   \
            name##_wait_here();                                              \
            add(&of_##name, since_ns);                                       \
            name##_leave();                                                  \
            pthread_barrier_wait(&name##_done);                              \
            if (is_last) {                                                   \
                return unused;                                               \
            }                                                                \
        }                                                                    \
    }

APART void mutex_take(void) { pthread_mutex_lock(&mutex); }
APART void mutex_give_back_here(void) { pthread_mutex_unlock(&mutex); NO_TAIL_CALL(); }
APART void mutex_wait_here(void) { pthread_mutex_lock(&mutex); NO_TAIL_CALL(); }
APART void mutex_leave(void) { pthread_mutex_unlock(&mutex); }
ROUND(mutex, 20)

APART void rwlock_take(void) { pthread_rwlock_wrlock(&rwlock); }
APART void rwlock_give_back_here(void) { pthread_rwlock_unlock(&rwlock); NO_TAIL_CALL(); }
APART void rwlock_wait_here(void) { pthread_rwlock_rdlock(&rwlock); NO_TAIL_CALL(); }
APART void rwlock_leave(void) { pthread_rwlock_unlock(&rwlock); }
ROUND(rwlock, 10)

static int is_set;
APART void condition_take(void) { }
APART void condition_give_back_here(void) {
    pthread_mutex_lock(&condition_mutex);
    is_set = 1;
    pthread_mutex_unlock(&condition_mutex);
    pthread_cond_signal(&condition);
    NO_TAIL_CALL();
}
APART void condition_wait_here(void) {
    pthread_mutex_lock(&condition_mutex);
    while (!is_set) {
        pthread_cond_wait(&condition, &condition_mutex);
    }
    is_set = 0;
    pthread_mutex_unlock(&condition_mutex);
}
APART void condition_leave(void) { }
ROUND(condition, 15)

APART void semaphore_take(void) { }
APART void semaphore_give_back_here(void) { sem_post(&semaphore); NO_TAIL_CALL(); }
APART void semaphore_wait_here(void) { sem_wait(&semaphore); NO_TAIL_CALL(); }
APART void semaphore_leave(void) { }
ROUND(semaphore, 5)

static void print(const char *name, const struct waits *waits, const void *address, const char *end) {
    printf("\"%s\": {\"waits\": %llu, \"delay_ns\": %llu, \"longest_ns\": %llu, \"address\": \"%p\"}%s", name,
           (unsigned long long)waits->waits, (unsigned long long)waits->delay_ns,
           (unsigned long long)waits->longest_ns, address, end);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        return 2;
    }
    sem_init(&semaphore, 0, 0);
    pthread_barrier_t *barriers[] = {&mutex_taken,     &mutex_done,     &rwlock_taken,    &rwlock_done,
                                     &condition_taken, &condition_done, &semaphore_taken, &semaphore_done};
    for (int i = 0; i < 8; i++) {
        pthread_barrier_init(barriers[i], NULL, 2);
    }
    void *(*starts[])(void *) = {mutex_holder,     mutex_waiter,     rwlock_holder,    rwlock_waiter,
                                 condition_holder, condition_waiter, semaphore_holder, semaphore_waiter};
    pthread_t threads[8];
    say_ready();
    for (int i = 0; i < 8; i++) {
        if (pthread_create(&threads[i], NULL, starts[i], NULL) != 0) {
            return 1;
        }
    }
    usleep((useconds_t)(atof(argv[1]) * 1e6));
    atomic_store(&ended, 1);
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
    printf("{");
    print("mutex", &of_mutex, (void *)&mutex, ", ");
    print("rwlock", &of_rwlock, (void *)&rwlock, ", ");
    print("condition", &of_condition, (void *)&condition, ", ");
    print("semaphore", &of_semaphore, (void *)&semaphore, "}\n");
    return 0;
}
