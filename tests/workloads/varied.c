/* A little of much of the C library, and of the frames that C makes: a realigned stack, one of variable size, a signal
 * handler on a stack of its own, recursion. For tests that follow it instruction by instruction, so it is short.
 *
 * Argument: rounds. */
#include <fnmatch.h>
#include <math.h>
#include <regex.h>
#include <search.h>
#include <signal.h>
#include <string.h>
#include <wchar.h>

#include "workload.h"

static volatile uint64_t sink;

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int compare_text(const void *a, const void *b) { return strcmp(a, b); }

APART static void numbers(int round) {
    double values[60];
    char text[64];
    for (int i = 0; i < 60; i++) {
        snprintf(text, sizeof text, "%.*g", 3 + i % 14, sin(i * 12.9898 + round) * pow(10, i % 40 - 20));
        values[i] = strtod(text, NULL);
    }
    qsort(values, 60, sizeof values[0], compare);
    printf("%f %e %a %d %x %s\n", values[0], values[30], values[59], round, round, text);
    sink += (uint64_t)strtol("123456789", NULL, 10) + strtoull("ffff", NULL, 16);
}

/* Local storage aligned to more than the stack is, beside some of variable size. */
APART static uint64_t realigned(int n) {
    _Alignas(64) volatile char aligned[128];
    volatile char variable[n];
    memset((void *)aligned, n, sizeof aligned);
    memset((void *)variable, n, (size_t)n);
    snprintf((char *)aligned, sizeof aligned, "%d", variable[n - 1]);
    return (uint64_t)aligned[0] + (uint64_t)(uintptr_t)aligned % 64;
}

APART static void memory(int round) {
    void *blocks[40] = {0};
    for (int i = 0; i < 200; i++) {
        int at = (i * 7 + round) % 40;
        blocks[at] = i % 3 == 0 ? (free(blocks[at]), NULL) : realloc(blocks[at], (size_t)(i * i * 3 + 1));
    }
    for (int i = 0; i < 40; i++) {
        free(blocks[i]);
    }
    void *big = calloc(1, 300000);
    free(big);
}

APART static void text(int round) {
    regex_t pattern;
    if (regcomp(&pattern, "^([a-z]+)[0-9]*(x|yy)+$", REG_EXTENDED) == 0) {
        sink += (uint64_t)regexec(&pattern, round % 2 ? "abc123xyyx" : "abc12z", 0, NULL, 0);
        regfree(&pattern);
    }
    sink += (uint64_t)fnmatch("*.[ch]", "varied.c", 0);
    time_t now = 1700000000 + round;
    struct tm broken;
    char line[128];
    strftime(line, sizeof line, "%A %d %B %Y %H:%M:%S %Z", localtime_r(&now, &broken));
    char *rest = line;
    void *tree = NULL;
    for (char *word; (word = strsep(&rest, " ")) != NULL;) {
        tsearch(strdup(word), &tree, compare_text);
    }
    while (tree != NULL) {
        char *word = *(char **)tree;
        tdelete(word, &tree, compare_text);
        free(word);
    }
    wchar_t wide[64];
    mbstowcs(wide, "wide text", 64);
    int number = 0;
    sscanf("42 rest", "%d %63s", &number, line);
    sink += wcslen(wide) + (uint64_t)number + (uint64_t)atoi(getenv("HOME") ? "1" : "2");
}

APART static uint64_t deep(int depth) {
    uint64_t result = depth == 0 ? realigned(17) : deep(depth - 1);
    NO_TAIL_CALL();
    return result + 1;
}

static void on_signal(int number) { sink += realigned(number + 5); }

APART static void signals(void) {
    static char other[65536];
    stack_t alternate = {.ss_sp = other, .ss_size = sizeof other};
    sigaltstack(&alternate, NULL);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR2, &action, NULL);
    action.sa_flags = 0;
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    raise(SIGUSR2);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    say_ready();
    for (int round = 0; round < rounds; round++) {
        numbers(round);
        memory(round);
        text(round);
        signals();
        sink += deep(20) + thread_cpu_ns();
    }
    printf("{\"rounds\": %d}\n", rounds);
    return 0;
}
