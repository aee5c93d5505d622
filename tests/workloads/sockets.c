/* Sends and receives by every kind of socket, each call in a function of its own, and counts what it did.
 *
 * Arguments: "each ROUNDS", which sends so many messages by each call and kind of socket; "connections PINGS", which
 * connects, accepts and sends so that it takes a known time, and then sends so many requests; "exchange KIND SECONDS", which
 * sends short messages to and fro for that time by tcp, udp or unix. All of it over loopback. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

/* What one end has done. */
struct end {
    int socket;
    uint64_t sent, sends, received, receives;
};

static int file;
static char buffer[65536];

static void must(int is_so, const char *what) {
    if (!is_so) {
        perror(what);
        exit(1);
    }
}

static void sent(struct end *end, ssize_t length) {
    must(length >= 0, "send");
    end->sent += (uint64_t)length;
    end->sends++;
}

static void received(struct end *end, ssize_t length) {
    must(length >= 0, "receive");
    end->received += (uint64_t)length;
    end->receives++;
}

APART void write_here(struct end *end) {
    ssize_t length = write(end->socket, buffer, 100);
    NO_TAIL_CALL();
    sent(end, length);
}

APART void send_here(struct end *end, size_t bytes) {
    ssize_t length = send(end->socket, buffer, bytes, 0);
    NO_TAIL_CALL();
    sent(end, length);
}

APART void writev_here(struct end *end) {
    struct iovec parts[2] = {{buffer, 10}, {buffer, 20}};
    ssize_t length = writev(end->socket, parts, 2);
    NO_TAIL_CALL();
    sent(end, length);
}

APART void sendmsg_here(struct end *end) {
    struct iovec parts[2] = {{buffer, 1000}, {buffer, 2000}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    ssize_t length = sendmsg(end->socket, &message, 0);
    NO_TAIL_CALL();
    sent(end, length);
}

APART void sendmmsg_here(struct end *end) {
    struct iovec parts[2] = {{buffer, 7}, {buffer, 70}};
    struct mmsghdr messages[2] = {{.msg_hdr = {.msg_iov = &parts[0], .msg_iovlen = 1}},
                                  {.msg_hdr = {.msg_iov = &parts[1], .msg_iovlen = 1}}};
    int count = sendmmsg(end->socket, messages, 2, 0);
    NO_TAIL_CALL();
    must(count == 2, "sendmmsg");
    sent(end, messages[0].msg_len);
    sent(end, messages[1].msg_len);
}

/* Less than a page, which the kernel sends as one. */
APART void sendfile_here(struct end *end) {
    off_t start = 0;
    ssize_t length = sendfile(end->socket, file, &start, 3000);
    NO_TAIL_CALL();
    sent(end, length);
}

APART size_t read_here(struct end *end, size_t most) {
    ssize_t length = read(end->socket, buffer, most);
    NO_TAIL_CALL();
    received(end, length);
    return (size_t)length;
}

APART size_t recv_here(struct end *end, size_t most) {
    ssize_t length = recv(end->socket, buffer, most, 0);
    NO_TAIL_CALL();
    received(end, length);
    return (size_t)length;
}

APART size_t recvmsg_here(struct end *end, size_t most) {
    struct iovec part = {buffer, most};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t length = recvmsg(end->socket, &message, 0);
    NO_TAIL_CALL();
    received(end, length);
    return (size_t)length;
}

/* What is read so stays: it is no message. */
APART void peek_here(struct end *end) {
    ssize_t length = recv(end->socket, buffer, sizeof buffer, MSG_PEEK);
    NO_TAIL_CALL();
    must(length > 0, "peek");
}

/* What cannot be had is no message either. */
APART void miss_here(struct end *end) {
    ssize_t length = recv(end->socket, buffer, sizeof buffer, MSG_DONTWAIT);
    NO_TAIL_CALL();
    must(length < 0 && errno == EAGAIN, "receive nothing");
}

static void take_all(struct end *end, uint64_t bytes) {
    for (int i = 0; bytes > 0; i++) {
        size_t most = bytes < sizeof buffer ? bytes : sizeof buffer;
        bytes -= i % 3 == 0 ? read_here(end, most) : i % 3 == 1 ? recv_here(end, most) : recvmsg_here(end, most);
    }
}

/* Sends by every call, and the other way one large message. */
static void converse(struct end *from, struct end *to, long rounds, int is_stream) {
    for (long i = 0; i < rounds; i++) {
        uint64_t before = from->sent, count = from->sends;
        write_here(from);
        send_here(from, 50);
        writev_here(from);
        sendmsg_here(from);
        sendmmsg_here(from);
        if (is_stream) {
            sendfile_here(from);
            peek_here(to);
            take_all(to, from->sent - before);
        } else {
            peek_here(to);
            for (uint64_t message = from->sends - count; message > 0; message--) {
                recv_here(to, sizeof buffer);
            }
        }
        miss_here(to);
        send_here(to, 30000);
        if (is_stream) {
            take_all(from, 30000);
        } else {
            recvmsg_here(from, sizeof buffer);
        }
    }
}

static void show(const char *name, const struct end *from, const struct end *to, const char *address) {
    const struct end *ends[2] = {from, to};
    printf("\"%s\": {\"address\": \"%s\"", name, address);
    for (int i = 0; i < 2; i++) {
        printf(", \"%s\": {\"sent\": %llu, \"sends\": %llu, \"received\": %llu, \"receives\": %llu}",
               i == 0 ? "client" : "server", (unsigned long long)ends[i]->sent, (unsigned long long)ends[i]->sends,
               (unsigned long long)ends[i]->received, (unsigned long long)ends[i]->receives);
    }
    printf("}, ");
}

/* A socket that is bound to loopback, and its address. */
static int bound(int family, int type, struct sockaddr_storage *address, socklen_t *length) {
    memset(address, 0, sizeof *address);
    if (family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)address;
        *in = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        *length = sizeof *in;
    } else {
        struct sockaddr_in6 *in = (struct sockaddr_in6 *)address;
        *in = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
        *length = sizeof *in;
    }
    int socket_ = socket(family, type | SOCK_CLOEXEC, 0);
    must(socket_ >= 0, "socket");
    /* A port that is chosen by number, as servers do: the kernel finds a free one first. */
    int probe = socket(family, type | SOCK_CLOEXEC, 0);
    must(bind(probe, (struct sockaddr *)address, *length) == 0, "bind");
    must(getsockname(probe, (struct sockaddr *)address, length) == 0, "getsockname");
    close(probe);
    must(bind(socket_, (struct sockaddr *)address, *length) == 0, "bind to a port");
    return socket_;
}

static const char *text_of(const struct sockaddr_storage *address, char *text, size_t size) {
    char host[INET6_ADDRSTRLEN];
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        snprintf(text, size, "%s:%d", host, ntohs(in->sin_port));
    } else {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
        snprintf(text, size, "[%s]:%d", host, ntohs(in->sin6_port));
    }
    return text;
}

static void tcp(const char *name, int family, long rounds) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    int listener = bound(family, SOCK_STREAM, &address, &length);
    must(listen(listener, 16) == 0, "listen");
    struct end client = {.socket = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    must(connect(client.socket, (struct sockaddr *)&address, length) == 0, "connect");
    struct end server = {.socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC)};
    must(server.socket >= 0, "accept");
    int one = 1;
    must(setsockopt(client.socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0, "TCP_NODELAY");
    converse(&client, &server, rounds, 1);
    close(client.socket);
    /* The end of a stream is no message. */
    must(read(server.socket, buffer, sizeof buffer) == 0, "end");
    close(server.socket);
    close(listener);
    show(name, &client, &server, text_of(&address, text, sizeof text));
}

static void udp(const char *name, int family, long rounds) {
    struct sockaddr_storage address, back;
    socklen_t length, back_length = sizeof back;
    char text[80];
    struct end server = {.socket = bound(family, SOCK_DGRAM, &address, &length)};
    struct end client = {.socket = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    must(connect(client.socket, (struct sockaddr *)&address, length) == 0, "connect");
    must(getsockname(client.socket, (struct sockaddr *)&back, &back_length) == 0, "getsockname");
    /* An empty message is one. */
    send_here(&client, 0);
    recv_here(&server, sizeof buffer);
    /* A server of many clients is not connected; this one is for a while, to send by all calls. */
    must(connect(server.socket, (struct sockaddr *)&back, back_length) == 0, "connect back");
    converse(&client, &server, rounds, 0);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    must(connect(server.socket, &none, sizeof none) == 0, "disconnect");
    close(client.socket);
    close(server.socket);
    show(name, &client, &server, text_of(&address, text, sizeof text));
}

static void local(const char *name, int type, const char *path, long rounds) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    strcpy(address.sun_path, path);
    if (path[0] == '@') {
        address.sun_path[0] = 0;
    } else {
        length++;
    }
    struct end client = {.socket = socket(AF_UNIX, type | SOCK_CLOEXEC, 0)}, server = {.socket = -1};
    int bound_ = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    must(bind(bound_, (struct sockaddr *)&address, length) == 0, "bind");
    if (type != SOCK_DGRAM) {
        must(listen(bound_, 16) == 0, "listen");
    }
    must(connect(client.socket, (struct sockaddr *)&address, length) == 0, "connect");
    if (type != SOCK_DGRAM) {
        server.socket = accept4(bound_, NULL, NULL, SOCK_CLOEXEC);
        converse(&client, &server, rounds, type == SOCK_STREAM);
    } else {
        server.socket = bound_;
        for (long i = 0; i < rounds; i++) {
            send_here(&client, 300);
            recv_here(&server, sizeof buffer);
        }
    }
    close(client.socket);
    close(server.socket);
    close(bound_);
    if (path[0] != '@') {
        unlink(path);
    }
    show(name, &client, &server, path);
}

/* A ring of the kernel's for input and output, for one request at a time. */
static struct {
    int descriptor;
    char *submissions, *completions;
    struct io_uring_sqe *requests;
    struct io_uring_params parameters;
} ring;

static int open_ring(void) {
    struct io_uring_params *p = &ring.parameters;
    ring.descriptor = (int)syscall(SYS_io_uring_setup, 4, p);
    if (ring.descriptor < 0) {
        return 0;
    }
    size_t submissions = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    size_t completions = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    int rights = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    ring.submissions = mmap(NULL, submissions, rights, flags, ring.descriptor, IORING_OFF_SQ_RING);
    ring.completions = mmap(NULL, completions, rights, flags, ring.descriptor, IORING_OFF_CQ_RING);
    ring.requests = mmap(NULL, p->sq_entries * sizeof *ring.requests, rights, flags, ring.descriptor, IORING_OFF_SQES);
    must(ring.submissions != MAP_FAILED && ring.completions != MAP_FAILED && ring.requests != MAP_FAILED, "mmap");
    return 1;
}

APART ssize_t ring_here(uint8_t operation, int socket_, size_t bytes) {
    uint32_t *tail = (uint32_t *)(ring.submissions + ring.parameters.sq_off.tail);
    uint32_t mask = *(uint32_t *)(ring.submissions + ring.parameters.sq_off.ring_mask), at = *tail & mask;
    ring.requests[at] = (struct io_uring_sqe){
        .opcode = operation, .fd = socket_, .addr = (uint64_t)(uintptr_t)buffer, .len = (uint32_t)bytes};
    ((uint32_t *)(ring.submissions + ring.parameters.sq_off.array))[at] = at;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    long done = syscall(SYS_io_uring_enter, ring.descriptor, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    NO_TAIL_CALL();
    must(done == 1, "io_uring_enter");
    uint32_t *head = (uint32_t *)(ring.completions + ring.parameters.cq_off.head);
    uint32_t cq_mask = *(uint32_t *)(ring.completions + ring.parameters.cq_off.ring_mask);
    struct io_uring_cqe *completion = (struct io_uring_cqe *)(ring.completions + ring.parameters.cq_off.cqes);
    ssize_t result = completion[*head & cq_mask].res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

static void pair(long rounds) {
    int sockets[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0, "socketpair");
    struct end client = {.socket = sockets[0]}, server = {.socket = sockets[1]};
    converse(&client, &server, rounds, 1);
    int has_ring = open_ring();
    for (long i = 0; i < rounds && has_ring; i++) {
        sent(&client, ring_here(IORING_OP_SEND, client.socket, 700));
        received(&server, ring_here(IORING_OP_RECV, server.socket, 700));
    }
    close(client.socket);
    close(server.socket);
    printf("\"by_ring\": %ld, ", has_ring ? 2 * rounds : 0);
    show("pair", &client, &server, "*");
}

static int each(long rounds) {
    char path[80], name[80];
    snprintf(path, sizeof path, "/tmp/profiler-sockets-%d", (int)getpid());
    snprintf(name, sizeof name, "@profiler-sockets-%d", (int)getpid());
    file = memfd_create("file", MFD_CLOEXEC);
    must(ftruncate(file, 4096) == 0, "ftruncate");
    say_ready();
    printf("{");
    tcp("tcp", AF_INET, rounds);
    tcp("tcp6", AF_INET6, rounds);
    udp("udp", AF_INET, rounds);
    udp("udp6", AF_INET6, rounds);
    local("unix_stream", SOCK_STREAM, path, rounds);
    local("unix_packets", SOCK_SEQPACKET, name, rounds);
    local("unix_datagram", SOCK_DGRAM, path, rounds);
    pair(rounds);
    printf("\"rounds\": %ld}\n", rounds);
    return 0;
}

/* A socket that listens, and its address. */
static int listening(int backlog, struct sockaddr_storage *address, socklen_t *length, char *text, size_t size) {
    int listener = bound(AF_INET, SOCK_STREAM, address, length);
    must(listen(listener, backlog) == 0, "listen");
    text_of(address, text, size);
    return listener;
}

static void sleep_ms(long ms) {
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    while (nanosleep(&time, &time) != 0) {
    }
}

static struct tcp_info info_of(int socket_) {
    struct tcp_info info;
    socklen_t length = sizeof info;
    must(getsockopt(socket_, IPPROTO_TCP, TCP_INFO, &info, &length) == 0, "TCP_INFO");
    return info;
}

APART int connect_here(const struct sockaddr_storage *address, socklen_t length, int flags) {
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    int result = connect(client, (const struct sockaddr *)address, length);
    NO_TAIL_CALL();
    if (result != 0 && errno != EINPROGRESS) {
        close(client);
        return -1;
    }
    return client;
}

static int by_value(const void *a, const void *b) {
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;
    return (first > second) - (first < second);
}

#define LATE 20

/* Connections that wait a known time until they are accepted. */
static void accept_late(long ms) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    int listener = listening(16, &address, &length, text, sizeof text);
    uint64_t waits_ns[LATE], connected_ns = 0;
    for (int i = 0; i < LATE; i++) {
        uint64_t began_ns = clock_ns(CLOCK_MONOTONIC);
        int client = connect_here(&address, length, 0);
        must(client >= 0, "connect");
        uint64_t there_ns = clock_ns(CLOCK_MONOTONIC);
        connected_ns += there_ns - began_ns;
        sleep_ms(ms);
        int server = accept(listener, NULL, NULL);
        must(server >= 0, "accept");
        waits_ns[i] = clock_ns(CLOCK_MONOTONIC) - there_ns;
        close(client);
        close(server);
    }
    close(listener);
    qsort(waits_ns, LATE, sizeof *waits_ns, by_value);
    printf("\"late\": {\"address\": \"%s\", \"count\": %d, \"median_ns\": %llu, \"longest_ns\": %llu, \"connect_ns\": %llu}, ",
           text, LATE, (unsigned long long)waits_ns[LATE / 2 - 1], (unsigned long long)waits_ns[LATE - 1],
           (unsigned long long)connected_ns / LATE);
}

/* A connection for which there is room only after a while: the kernel tries again after a second. */
static void connect_late(void) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    int listener = listening(0, &address, &length, text, sizeof text);
    int first = connect_here(&address, length, 0);
    must(first >= 0, "connect");
    uint64_t began_ns = clock_ns(CLOCK_MONOTONIC);
    int second = connect_here(&address, length, SOCK_NONBLOCK);
    sleep_ms(300);
    int server = accept(listener, NULL, NULL);
    struct pollfd until = {.fd = second, .events = POLLOUT};
    must(poll(&until, 1, 10000) == 1, "poll");
    uint64_t took_ns = clock_ns(CLOCK_MONOTONIC) - began_ns;
    uint32_t retransmits = info_of(second).tcpi_total_retrans;
    close(first);
    close(second);
    close(server);
    close(listener);
    printf("\"slow\": {\"address\": \"%s\", \"connect_ns\": %llu, \"retransmits\": %u}, ", text,
           (unsigned long long)took_ns, retransmits);
}

/* Connections to where nobody listens any more. */
static void connect_in_vain(int count) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    close(listening(1, &address, &length, text, sizeof text));
    for (int i = 0; i < count; i++) {
        must(connect_here(&address, length, 0) < 0, "connect in vain");
    }
    printf("\"vain\": {\"address\": \"%s\", \"count\": %d}, ", text, count);
}

/* Messages that are dropped for a while where they arrive, by a filter that takes nothing. */
static void send_again(long ms) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    int listener = listening(1, &address, &length, text, sizeof text);
    struct end client = {.socket = connect_here(&address, length, 0)}, server = {.socket = accept(listener, NULL, NULL)};
    struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog filter = {.len = 1, .filter = &nothing};
    must(setsockopt(server.socket, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) == 0, "SO_ATTACH_FILTER");
    send_here(&client, 50000);
    sleep_ms(ms);
    must(setsockopt(server.socket, SOL_SOCKET, SO_DETACH_FILTER, &filter, sizeof filter) == 0, "SO_DETACH_FILTER");
    take_all(&server, 50000);
    uint32_t retransmits = info_of(client.socket).tcpi_total_retrans;
    close(client.socket);
    close(server.socket);
    close(listener);
    printf("\"again\": {\"address\": \"%s\", \"retransmits\": %u}, ", text, retransmits);
}

/* A message that is received when its connection has been closed by a reset. */
static void receive_late(void) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    int listener = listening(1, &address, &length, text, sizeof text);
    struct end client = {.socket = connect_here(&address, length, 0)}, server = {.socket = accept(listener, NULL, NULL)};
    send_here(&client, 1000);
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    must(setsockopt(client.socket, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0, "SO_LINGER");
    close(client.socket);
    sleep_ms(20);
    take_all(&server, 1000);
    close(server.socket);
    close(listener);
    printf("\"reset\": {\"address\": \"%s\", \"received\": %llu}, ", text, (unsigned long long)server.received);
}

/* A connection that a process accepts, and its child uses too. */
static void fork_server(void) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    int listener = listening(1, &address, &length, text, sizeof text);
    struct end client = {.socket = connect_here(&address, length, 0)}, server = {.socket = accept(listener, NULL, NULL)};
    fflush(stdout);
    for (int i = 0; i < 3; i++) {
        send_here(&server, 300);
        pid_t child = fork();
        if (child == 0) {
            send_here(&server, 500);
            _exit(0);
        }
        must(child > 0 && waitpid(child, NULL, 0) == child, "fork");
        take_all(&client, 800);
    }
    close(client.socket);
    close(server.socket);
    close(listener);
    printf("\"forked\": {\"address\": \"%s\", \"parent\": 900, \"child\": 500, \"children\": 3}, ", text);
}

/* Requests and answers, with what the kernel knows of the way there and back. */
static void ping(int count) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    int listener = listening(1, &address, &length, text, sizeof text);
    struct end client = {.socket = connect_here(&address, length, 0)}, server = {.socket = accept(listener, NULL, NULL)};
    uint64_t least_us = UINT64_MAX, most_us = 0, sum_us = 0;
    for (int i = 0; i < count; i++) {
        send_here(&client, 64);
        recv_here(&server, 64);
        send_here(&server, 64);
        recv_here(&client, 64);
        uint64_t us = info_of(client.socket).tcpi_rtt;
        least_us = us < least_us ? us : least_us;
        most_us = us > most_us ? us : most_us;
        sum_us += us;
    }
    close(client.socket);
    close(server.socket);
    close(listener);
    printf("\"ping\": {\"address\": \"%s\", \"count\": %d, \"least_us\": %llu, \"most_us\": %llu, \"mean_us\": %llu}", text,
           count, (unsigned long long)least_us, (unsigned long long)most_us, (unsigned long long)sum_us / (unsigned)count);
}

static int connections(int pings) {
    say_ready();
    printf("{");
    accept_late(30);
    connect_late();
    connect_in_vain(5);
    send_again(1500);
    receive_late();
    fork_server();
    ping(pings);
    printf("}\n");
    return 0;
}

/* Short messages to and fro for a while, as fast as one thread can. */
static int exchange(const char *kind, uint64_t limit_ns) {
    struct sockaddr_storage address;
    socklen_t length;
    char text[80];
    struct end client, server;
    if (strcmp(kind, "unix") == 0) {
        int sockets[2];
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0, "socketpair");
        client = (struct end){.socket = sockets[0]};
        server = (struct end){.socket = sockets[1]};
    } else if (strcmp(kind, "udp") == 0) {
        struct sockaddr_storage back;
        socklen_t back_length = sizeof back;
        server = (struct end){.socket = bound(AF_INET, SOCK_DGRAM, &address, &length)};
        client = (struct end){.socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
        must(connect(client.socket, (struct sockaddr *)&address, length) == 0, "connect");
        must(getsockname(client.socket, (struct sockaddr *)&back, &back_length) == 0, "getsockname");
        must(connect(server.socket, (struct sockaddr *)&back, back_length) == 0, "connect back");
    } else {
        int listener = listening(1, &address, &length, text, sizeof text);
        client = (struct end){.socket = connect_here(&address, length, 0)};
        server = (struct end){.socket = accept(listener, NULL, NULL)};
    }
    say_ready();
    uint64_t began_ns = clock_ns(CLOCK_MONOTONIC), cpu_ns = thread_cpu_ns(), now_ns;
    do {
        for (int i = 0; i < 100; i++) {
            send_here(&client, 64);
            recv_here(&server, 64);
            send_here(&server, 64);
            recv_here(&client, 64);
        }
        now_ns = clock_ns(CLOCK_MONOTONIC);
    } while (now_ns - began_ns < limit_ns);
    printf("{\"messages\": %llu, \"wall_ns\": %llu, \"cpu_ns\": %llu}\n",
           (unsigned long long)(client.sends + client.receives + server.sends + server.receives),
           (unsigned long long)(now_ns - began_ns), (unsigned long long)(thread_cpu_ns() - cpu_ns));
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 3 && strcmp(argv[1], "exchange") == 0) {
        return exchange(argv[2], seconds_to_ns(argv[3]));
    }
    if (argc > 2 && strcmp(argv[1], "connections") == 0) {
        return connections(atoi(argv[2]));
    }
    return argc > 2 && strcmp(argv[1], "each") == 0 ? each(strtol(argv[2], NULL, 10)) : 2;
}
