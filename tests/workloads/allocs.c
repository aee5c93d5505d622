/* Allocates memory of known sizes, each kind in a function of its own, and adds up what it asked for.
 * All is freed at once, but what `kept_here` allocates in the modes with pauses.
 *
 * Arguments: "paced SECONDS", with a millisecond of sleep between rounds; "fast SECONDS", without; or "forks SECONDS", as
 * the first, with a child that does the same from the second half on, and whose end is checked. */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

/* The compiler must not know what becomes of it. */
static void *volatile kept;

static uint64_t of_malloc, of_calloc, of_realloc, of_aligned, of_kept, rounds;

APART void malloc_here(void) {
    for (int i = 0; i < 8; i++) {
        kept = malloc(24);
        of_malloc += 24;
        free(kept);
    }
}

APART void calloc_here(void) {
    kept = calloc(10, 50);
    NO_TAIL_CALL();
    of_calloc += 500;
    free(kept);
}

/* The first of these is a call of malloc, inside the C library. */
APART void realloc_here(void) {
    void *grown = NULL;
    for (size_t size = 64; size <= 256; size += 64) {
        void *next = realloc(grown, size);
        of_realloc += size;
        grown = next;
    }
    kept = grown;
    free(kept);
}

APART void aligned_here(void) {
    void *aligned = NULL;
    if (posix_memalign(&aligned, 64, 4096) == 0) {
        of_aligned += 4096;
    }
    kept = aligned;
    free(kept);
}

/* Nobody frees it. */
APART void kept_here(void) {
    kept = malloc(6000);
    NO_TAIL_CALL();
    of_kept += 6000;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    int forks = strcmp(argv[1], "forks") == 0;
    int paced = forks || strcmp(argv[1], "paced") == 0;
    uint64_t end = clock_ns(CLOCK_MONOTONIC) + seconds_to_ns(argv[2]), half = seconds_to_ns(argv[2]) / 2;
    pid_t child = 0;
    say_ready();
    while (clock_ns(CLOCK_MONOTONIC) < end) {
        if (forks && clock_ns(CLOCK_MONOTONIC) > end - half) {
            forks = 0;
            child = fork();
        }
        malloc_here();
        calloc_here();
        realloc_here();
        if (rounds++ % 8 == 0) {
            aligned_here();
        }
        if (paced && rounds % 10 == 0) {
            kept_here();
        }
        if (paced) {
            struct timespec pause = {.tv_nsec = 1000000};
            nanosleep(&pause, NULL);
        }
    }
    int status = 0;
    if (child > 0 && (waitpid(child, &status, 0) != child || status != 0)) {
        return 1;
    }
    if (argv[1][0] == 'f' && argv[1][1] == 'o' && child == 0) {
        return 0;
    }
    printf("{\"malloc\": %lu, \"calloc\": %lu, \"realloc\": %lu, \"aligned\": %lu, \"kept\": %lu, \"rounds\": %lu}\n",
           of_malloc, of_calloc, of_realloc, of_aligned, of_kept, rounds);
    return 0;
}
