/* Steps a program instruction by instruction and unwinds it at each stop with elfutils, which shares no code with us.
 *
 * Usage: stepper SKIP STRIDE VISITS STOPS PROGRAM [ARGUMENT...]
 *        stepper --sweep ELF
 *
 * SKIP: write calls that pass before the first stop; STRIDE: one in so many addresses is stopped at; VISITS: stops made
 * at one address at most; STOPS: stops made at most. Writes records to standard output, each a type and a size in bytes, both 32 bits:
 *   'M'  the text of /proc/PID/maps, before the first stop and whenever code appears that was not mapped
 *   'S'  a stop: {ip frames bytes result, 16 registers}, frames times {ip sp bp}, of which the first is the leaf,
 *        and the stack's bytes from sp - 128 on. result: 0 when the walk reached the outermost frame
 *   'E'  the end: the instructions executed, 64 bits
 * The program's own output goes nowhere.
 *
 * --sweep starts nothing: it makes one step from every address of the file's code, with registers and a stack that are
 * made up, and so reaches code that no test executes. Its records: {address, result, ip sp bp of the caller}, 64 bits
 * each, where result is 1 when there is a caller, 0 in an outermost function, -1 when elfutils cannot tell and 2 where
 * there is no call-frame information by its account. */
#include <elfutils/libdwfl.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define RED_ZONE 128
#define MAX_STACK 49152
#define MAX_FRAMES 256
#define MAX_RANGES 256
/* Open addressing; more than the addresses any of the programs visits. */
#define MAX_VISITED (1u << 20)

static pid_t child;
static int memory;
static struct user_regs_struct registers;
static uint8_t stack[MAX_STACK];
static uint64_t stack_start, stack_bytes;
static uint64_t frames[MAX_FRAMES][3];
static uint32_t frame_count;
static struct {
    uint64_t start, end;
} ranges[MAX_RANGES];
static int range_count;
static struct {
    uint64_t ip;
    uint32_t count;
} visited[MAX_VISITED];
static uint32_t visited_count;

static void fail(const char *what) {
    fprintf(stderr, "stepper: %s: %s\n", what, strerror(errno));
    if (child > 0) {
        kill(child, SIGKILL);
    }
    exit(1);
}

static void put(const void *bytes, size_t size) {
    if (size > 0 && fwrite(bytes, size, 1, stdout) != 1) {
        fail("write");
    }
}

static void put_header(char type, size_t size) {
    uint32_t header[2] = {(uint32_t)type, (uint32_t)size};
    put(header, sizeof header);
}

static bool read_word(Dwfl *dwfl, Dwarf_Addr address, Dwarf_Word *result, void *arg) {
    (void)dwfl, (void)arg;
    if (address >= stack_start && address - stack_start + 8 <= stack_bytes) {
        memcpy(result, stack + (address - stack_start), 8);
        return true;
    }
    return pread(memory, result, 8, (off_t)address) == 8;
}

static pid_t next_thread(Dwfl *dwfl, void *arg, void **thread) {
    (void)dwfl, (void)arg;
    if (*thread != NULL) {
        return 0;
    }
    *thread = &child;
    return child;
}

static bool get_thread(Dwfl *dwfl, pid_t tid, void *arg, void **thread) {
    (void)dwfl, (void)arg;
    *thread = &child;
    return tid == child;
}

/* In the order of DWARF's numbers: psABI, figure 3.36. */
static void by_number(Dwarf_Word words[17]) {
    const struct user_regs_struct *r = &registers;
    Dwarf_Word values[17] = {r->rax, r->rdx, r->rcx, r->rbx, r->rsi, r->rdi, r->rbp, r->rsp, r->r8,
                             r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15, r->rip};
    memcpy(words, values, sizeof values);
}

static bool set_registers(Dwfl_Thread *thread, void *arg) {
    (void)arg;
    Dwarf_Word words[17];
    by_number(words);
    return dwfl_thread_state_registers(thread, 0, 17, words);
}

static const Dwfl_Thread_Callbacks thread_callbacks = {
    .next_thread = next_thread,
    .get_thread = get_thread,
    .memory_read = read_word,
    .set_initial_registers = set_registers,
};

static int on_frame(Dwfl_Frame *frame, void *arg) {
    (void)arg;
    if (frame_count == MAX_FRAMES) {
        return DWARF_CB_ABORT;
    }
    Dwarf_Addr ip = 0;
    Dwarf_Word sp = 0, bp = 0;
    dwfl_frame_pc(frame, &ip, NULL);
    dwfl_frame_reg(frame, 7, &sp);
    dwfl_frame_reg(frame, 6, &bp);
    frames[frame_count][0] = ip;
    frames[frame_count][1] = sp;
    frames[frame_count][2] = bp;
    frame_count++;
    return DWARF_CB_OK;
}

static bool is_known(uint64_t ip) {
    for (int i = 0; i < range_count; i++) {
        if (ip >= ranges[i].start && ip < ranges[i].end) {
            return true;
        }
    }
    return false;
}

/* Reads the mappings again, tells the reader and elfutils. */
static void report(Dwfl *dwfl) {
    static char text[1 << 20];
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/maps", child);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    size_t size = 0;
    ssize_t got = 0;
    while (file >= 0 && size < sizeof text - 1 && (got = read(file, text + size, sizeof text - 1 - size)) > 0) {
        size += (size_t)got;
    }
    if (file < 0 || got < 0) {
        fail(path);
    }
    close(file);
    text[size] = '\0';
    range_count = 0;
    for (char *line = text; line != NULL && *line != '\0' && range_count < MAX_RANGES;) {
        unsigned long long start, end;
        char access[8];
        if (sscanf(line, "%llx-%llx %7s", &start, &end, access) == 3 && access[2] == 'x') {
            ranges[range_count].start = start;
            ranges[range_count].end = end;
            range_count++;
        }
        line = strchr(line, '\n');
        line = line == NULL ? NULL : line + 1;
    }
    put_header('M', size);
    put(text, size);
    dwfl_report_begin(dwfl);
    dwfl_linux_proc_report(dwfl, child);
    dwfl_report_end(dwfl, NULL, NULL);
}

static uint64_t hash(uint64_t ip) { return (ip * 0x9e3779b97f4a7c15ull) >> 32; }

/* Counts a visit; whether the address has been visited less often than allowed. */
static bool visit(uint64_t ip, uint32_t limit) {
    uint32_t at = (uint32_t)hash(ip) % MAX_VISITED;
    while (visited[at].ip != ip && visited[at].ip != 0) {
        at = (at + 1) % MAX_VISITED;
    }
    if (visited[at].ip == 0) {
        if (++visited_count > MAX_VISITED / 2) {
            return false;
        }
        visited[at].ip = ip;
    }
    return visited[at].count++ < limit;
}

static void stop(Dwfl *dwfl) {
    stack_start = registers.rsp - RED_ZONE;
    ssize_t got = pread(memory, stack, sizeof stack, (off_t)stack_start);
    stack_bytes = got > 0 ? (uint64_t)got : 0;
    frame_count = 0;
    int result = dwfl_getthread_frames(dwfl, child, on_frame, NULL);
    uint64_t head[4] = {registers.rip, frame_count, stack_bytes, (uint64_t)(int64_t)result};
    Dwarf_Word numbered[17];
    by_number(numbered);
    put_header('S', sizeof head + 16 * sizeof numbered[0] + frame_count * sizeof frames[0] + stack_bytes);
    put(head, sizeof head);
    put(numbered, 16 * sizeof numbered[0]);
    put(frames, frame_count * sizeof frames[0]);
    put(stack, stack_bytes);
}

/* What the made-up process has in memory, and where its registers point: as in the reader of this. */
#define FIRST_REGISTER 0x700000000000ull
static uint64_t word_at(uint64_t address) {
    return FIRST_REGISTER + 0x200000 + (((address * 0x9e3779b97f4a7c15ull) >> 36) << 3);
}

static bool read_made_up(Dwfl *dwfl, Dwarf_Addr address, Dwarf_Word *result, void *arg) {
    (void)dwfl, (void)arg;
    *result = word_at(address);
    return true;
}

static uint64_t sweep_ip;

static bool set_made_up(Dwfl_Thread *thread, void *arg) {
    (void)arg;
    Dwarf_Word words[17];
    for (int i = 0; i < 16; i++) {
        words[i] = FIRST_REGISTER + (uint64_t)(i + 1) * 0x10000;
    }
    words[7] = FIRST_REGISTER;
    words[16] = sweep_ip;
    return dwfl_thread_state_registers(thread, 0, 17, words);
}

static const Dwfl_Thread_Callbacks made_up_callbacks = {
    .next_thread = next_thread,
    .get_thread = get_thread,
    .memory_read = read_made_up,
    .set_initial_registers = set_made_up,
};

/* The leaf and its caller are enough. */
static int on_two_frames(Dwfl_Frame *frame, void *arg) {
    on_frame(frame, arg);
    return frame_count == 2 ? DWARF_CB_ABORT : DWARF_CB_OK;
}

static int sweep(const char *path) {
    static const Dwfl_Callbacks callbacks = {
        .find_elf = dwfl_build_id_find_elf,
        .find_debuginfo = dwfl_standard_find_debuginfo,
        .section_address = dwfl_offline_section_address,
    };
    Dwfl *dwfl = dwfl_begin(&callbacks);
    dwfl_report_begin(dwfl);
    Dwfl_Module *module = dwfl_report_elf(dwfl, path, path, -1, 0, false);
    dwfl_report_end(dwfl, NULL, NULL);
    GElf_Addr bias = 0;
    Elf *elf = module == NULL ? NULL : dwfl_module_getelf(module, &bias);
    child = 1;
    size_t count = 0;
    if (elf == NULL || elf_getphdrnum(elf, &count) != 0 ||
        !dwfl_attach_state(dwfl, elf, child, &made_up_callbacks, NULL)) {
        fprintf(stderr, "stepper: %s: %s\n", path, dwfl_errmsg(-1));
        return 1;
    }
    Dwarf_Addr cfi_bias = 0;
    Dwarf_CFI *cfi = dwfl_module_eh_cfi(module, &cfi_bias);
    for (size_t i = 0; i < count; i++) {
        GElf_Phdr header;
        if (gelf_getphdr(elf, (int)i, &header) == NULL || header.p_type != PT_LOAD || !(header.p_flags & PF_X)) {
            continue;
        }
        for (uint64_t address = header.p_vaddr; address < header.p_vaddr + header.p_memsz; address++) {
            sweep_ip = address + bias;
            frame_count = 0;
            int result = dwfl_getthread_frames(dwfl, child, on_two_frames, NULL);
            int64_t found = frame_count == 2 ? 1 : result == 0 ? 0 : -1;
            Dwarf_Frame *described = NULL;
            if (cfi == NULL || dwarf_cfi_addrframe(cfi, address, &described) != 0) {
                found = 2;
            }
            free(described);
            uint64_t record[5] = {address, (uint64_t)found, frames[1][0], frames[1][1], frames[1][2]};
            put(record, sizeof record);
        }
    }
    return fflush(stdout) == 0 ? 0 : 1;
}

/* Waits for the program's next stop; false when it has ended. Signals other than the steps' own are for it. */
static bool wait_for_stop(int *signal_number) {
    int status;
    if (waitpid(child, &status, 0) != child) {
        fail("waitpid");
    }
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
        return false;
    }
    int number = WSTOPSIG(status) & 0x7f;
    *signal_number = number == SIGTRAP || number == SIGSTOP ? 0 : number;
    return true;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--sweep") == 0) {
        return sweep(argv[2]);
    }
    if (argc < 6) {
        fprintf(stderr, "usage: stepper SKIP STRIDE VISITS STOPS PROGRAM [ARGUMENT...] | --sweep ELF\n");
        return 2;
    }
    long skip = atol(argv[1]);
    uint64_t stride = (uint64_t)atol(argv[2]);
    uint32_t visits = (uint32_t)atol(argv[3]);
    long left = atol(argv[4]);
    /* On one CPU, a step is two switches and no wake-up of another CPU: a tenth of the time. */
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    sched_setaffinity(0, sizeof here, &here);
    child = fork();
    if (child == 0) {
        int nowhere = open("/dev/null", O_RDWR);
        dup2(nowhere, STDOUT_FILENO);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* The same addresses in every run. */
        personality(ADDR_NO_RANDOMIZE);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        execv(argv[5], argv + 5);
        _exit(127);
    }
    int number = 0;
    if (child < 0 || !wait_for_stop(&number)) {
        fail(argv[5]);
    }
    ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", child);
    memory = open(path, O_RDONLY | O_CLOEXEC);
    if (memory < 0) {
        fail(path);
    }
    while (skip > 0) {
        if (ptrace(PTRACE_SYSCALL, child, NULL, number) != 0 || !wait_for_stop(&number)) {
            fail("the program ended early");
        }
        ptrace(PTRACE_GETREGS, child, NULL, &registers);
        /* At entry to a system call rax holds -ENOSYS. */
        skip -= registers.orig_rax == SYS_write && (int64_t)registers.rax == -ENOSYS;
    }

    static const Dwfl_Callbacks callbacks = {
        .find_elf = dwfl_linux_proc_find_elf,
        .find_debuginfo = dwfl_standard_find_debuginfo,
    };
    Dwfl *dwfl = dwfl_begin(&callbacks);
    if (dwfl == NULL) {
        fail("dwfl_begin");
    }
    report(dwfl);
    if (!dwfl_attach_state(dwfl, NULL, child, &thread_callbacks, NULL)) {
        fail(dwfl_errmsg(-1));
    }
    uint64_t steps = 0;
    bool runs = true;
    while (runs && left > 0) {
        ptrace(PTRACE_GETREGS, child, NULL, &registers);
        if (hash(registers.rip) % stride == 0 && visit(registers.rip, visits)) {
            if (!is_known(registers.rip)) {
                report(dwfl);
            }
            stop(dwfl);
            left--;
        }
        if (ptrace(PTRACE_SINGLESTEP, child, NULL, number) != 0) {
            break;
        }
        runs = wait_for_stop(&number);
        steps++;
    }
    if (runs) {
        kill(child, SIGKILL);
    }
    put_header('E', sizeof steps);
    put(&steps, sizeof steps);
    return fflush(stdout) == 0 ? 0 : 1;
}
