/* A program without a library or start files, so that no call-frame information comes from elsewhere. */
__attribute__((noinline)) long twice(long number) {
    volatile long kept[4] = {number, number, number, number};
    return kept[1] + kept[2];
}

__attribute__((noinline)) long sum(long count) {
    long sum = 0;
    for (long number = 0; number < count; number++) {
        sum += twice(number);
    }
    return sum;
}

void _start(void) {
    long result = sum(1000) == 999000 ? 0 : 1;
    __asm__ volatile("syscall" : : "a"(231L), "D"(result));
    __builtin_unreachable();
}
