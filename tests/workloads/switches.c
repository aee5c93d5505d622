/* Two threads that wake each other through pipes as fast as they can: nothing but switches.
 *
 * Argument: for how many seconds of wall time. */
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

static int forth[2], back[2];

static void *answer(void *nothing) {
    char byte;
    while (read(forth[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1) {
    }
    close(back[1]);
    return nothing;
}

static time_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

int main(int argc, char **argv) {
    if (argc != 2 || pipe(forth) != 0 || pipe(back) != 0) {
        return 2;
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, answer, NULL) != 0) {
        return 2;
    }
    say_ready();
    time_t end = now() + atoi(argv[1]);
    uint64_t rounds = 0;
    char byte = 0;
    while (now() < end && write(forth[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1) {
        rounds++;
    }
    close(forth[1]);
    pthread_join(thread, NULL);
    printf("{\"rounds\": %lu}\n", rounds);
    return 0;
}
