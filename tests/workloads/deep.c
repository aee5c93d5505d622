/* Runs BPF programs on its own stack, at a known depth: `deep FRAMES ROUNDS FD...`.
 *
 * Prints its pid, waits for a line, goes FRAMES calls deep and runs each program ROUNDS times by BPF_PROG_TEST_RUN.
 * Prints what each program returned the last time as one JSON line. */
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int rounds, programs, fds[16];
static uint32_t results[16];
static volatile int failed;

__attribute__((noinline)) static void run(void) {
    for (int program = 0; program < programs; program++) {
        union bpf_attr attributes;
        for (int round = 0; round < rounds; round++) {
            memset(&attributes, 0, sizeof attributes);
            attributes.test.prog_fd = (uint32_t)fds[program];
            if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attributes, sizeof attributes.test) != 0) {
                failed = 1;
                return;
            }
        }
        results[program] = attributes.test.retval;
    }
}

/* Two frames of different size in turns, each with work after the call, so that it is no jump. */
__attribute__((noinline)) static int narrow(int left);
__attribute__((noinline)) static int wide(int left) {
    volatile char room[136];
    room[left % 136] = (char)left;
    if (left <= 0) {
        run();
        return room[0];
    }
    return narrow(left - 1) + room[left % 136];
}
__attribute__((noinline)) static int narrow(int left) {
    volatile int keep = left;
    if (left <= 0) {
        run();
        return keep;
    }
    return wide(left - 1) + keep;
}

int main(int argc, char **argv) {
    if (argc < 4 || argc > 3 + 16) {
        return 2;
    }
    int frames = atoi(argv[1]);
    rounds = atoi(argv[2]);
    for (programs = 0; programs < argc - 3; programs++) {
        fds[programs] = atoi(argv[3 + programs]);
    }
    printf("%d\n", (int)getpid());
    fflush(stdout);
    if (getchar() == EOF) {
        return 2;
    }
    int sum = wide(frames);
    printf("{\"failed\": %d, \"sum\": %d, \"results\": [", failed, sum);
    for (int program = 0; program < programs; program++) {
        printf("%s%u", program > 0 ? ", " : "", results[program]);
    }
    printf("]}\n");
    return failed;
}
