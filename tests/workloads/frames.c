/* Frames that are hard to unwind, below a function that burns CPU.
 *
 * Arguments: CPU seconds, then one of
 *   realigned  callers that align their stack: with locals alone, with one of variable size, with variable arguments
 *   noreturn   a caller that ends with the call of a function that does not return
 *   raise      a signal handler, by raise(3)
 *   timer      a signal handler, by a timer of CPU time, on whatever is running then
 *   alternate  the same on a signal stack of its own
 *   restless   realigned, in short calls that are interrupted by the timer
 *   deep N     N calls of a function by itself
 * Prints its CPU time and, for noreturn, how far behind the call the next function begins. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>

#include "workload.h"

APART uint64_t hot(uint64_t n) { return BURN_LOOP(n, 6364136223846793005ull); }

APART uint64_t with_arguments(uint64_t n, ...) {
    _Alignas(32) volatile char aligned[64];
    va_list rest;
    aligned[n % 64] = 1;
    va_start(rest, n);
    uint64_t result = hot(n) + (uint64_t)aligned[0];
    for (int i = 0; i < 8; i++) {
        result += (uint64_t)va_arg(rest, int);
    }
    va_end(rest);
    return result;
}

APART uint64_t with_variable(uint64_t n) {
    _Alignas(64) volatile char aligned[128];
    volatile char variable[n % 100 + 1];
    aligned[n % 128] = variable[0] = 1;
    uint64_t result = with_arguments(n, 1, 2, 3, 4, 5, 6, 7, 8);
    return result + (uint64_t)aligned[0] + (uint64_t)variable[n % 100];
}

APART uint64_t with_locals(uint64_t n) {
    _Alignas(64) volatile char aligned[128];
    aligned[n % 128] = 1;
    uint64_t result = with_variable(n);
    return result + (uint64_t)aligned[0];
}

APART uint64_t realigned(uint64_t n) {
    uint64_t result = with_locals(n);
    NO_TAIL_CALL();
    return result + 1;
}

static jmp_buf back;
static volatile uint64_t burnt;
static char *returns_to;

__attribute__((noreturn)) APART void never_returns(uint64_t n) {
    returns_to = __builtin_return_address(0);
    burnt = hot(n);
    longjmp(back, 1);
}

/* The call is its last instruction: the return address is the next function's. */
APART void ends_with_call(uint64_t n) {
    volatile char locals[72];
    locals[n % 72] = 1;
    never_returns(n + (uint64_t)locals[0] % 2);
}

/* Begins right behind, with another frame. */
APART uint64_t next_function(uint64_t n) { return n < 2 ? n : next_function(n - 1) * 3 + next_function(n - 2); }

APART uint64_t noreturn(uint64_t n) {
    if (setjmp(back) == 0) {
        ends_with_call(n);
    }
    return burnt + next_function(n % 3);
}

APART uint64_t handler_hot(uint64_t n) { return BURN_LOOP(n, 2862933555777941757ull); }

static void on_signal(int number) {
    burnt += handler_hot(4 * CHUNK) + (uint64_t)number;
    NO_TAIL_CALL();
}

APART uint64_t raises(uint64_t n) {
    raise(SIGUSR1);
    NO_TAIL_CALL();
    return n;
}

APART uint64_t interrupted_leaf(uint64_t n) {
    uint64_t result = hot(n);
    NO_TAIL_CALL();
    return result + 1;
}

APART uint64_t interrupted(uint64_t n) {
    uint64_t result = interrupted_leaf(n);
    NO_TAIL_CALL();
    return result + 1;
}

static void handle_signals(const char *mode) {
    static char stack[1 << 16];
    int alternate = strcmp(mode, "alternate") == 0;
    stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = alternate ? SA_ONSTACK : 0};
    if (sigaltstack(&other, NULL) != 0 || sigaction(SIGUSR1, &action, NULL) != 0) {
        exit(1);
    }
    if (strcmp(mode, "timer") != 0 && strcmp(mode, "restless") != 0 && !alternate) {
        return;
    }
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec every = {.it_interval = {.tv_nsec = 2000000}, .it_value = {.tv_nsec = 2000000}};
    timer_t timer;
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) != 0 || timer_settime(timer, 0, &every, NULL) != 0) {
        exit(1);
    }
}

static int levels;

APART uint64_t recurse(uint64_t n, int level) {
    uint64_t result = level == 1 ? hot(n) : recurse(n, level - 1);
    NO_TAIL_CALL();
    return result + 1;
}

APART uint64_t deep(uint64_t n) {
    uint64_t result = recurse(n, levels);
    NO_TAIL_CALL();
    return result + 1;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        uint64_t (*function)(uint64_t);
        /* Short calls for each long one, so that samples fall on every instruction of the callers as well. Few of
         * noreturn: longjmp(3) has instructions whose call-frame information no unwinder of ours can follow. */
        int short_calls;
    } modes[] = {{"realigned", realigned, 1000}, {"noreturn", noreturn, 500},       {"raise", raises, 0},
                 {"timer", interrupted, 10000},   {"alternate", interrupted, 10000}, {"deep", deep, 0},
                 {"restless", realigned, 30000}};
    int mode = -1;
    for (int i = 0; argc > 2 && i < (int)(sizeof modes / sizeof modes[0]); i++) {
        mode = strcmp(argv[2], modes[i].name) == 0 ? i : mode;
    }
    if (mode < 0) {
        return 2;
    }
    levels = argc > 3 ? atoi(argv[3]) : 1;
    handle_signals(argv[2]);
    uint64_t limit_ns = seconds_to_ns(argv[1]);
    volatile uint64_t sink = 0;
    say_ready();
    while (thread_cpu_ns() < limit_ns) {
        sink += modes[mode].function(CHUNK);
        for (int i = 0; i < modes[mode].short_calls; i++) {
            sink += modes[mode].function((uint64_t)i % 4);
        }
    }
    printf("{\"cpu_ns\": %llu, \"gap_bytes\": %ld}\n", (unsigned long long)thread_cpu_ns(),
           returns_to == NULL ? -1 : (long)((char *)next_function - returns_to));
    return 0;
}
