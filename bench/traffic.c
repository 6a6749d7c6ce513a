/*
 * Clients and a server, in C so that the network is what is measured. IPv4 and TCP only.
 *
 *   traffic serve GREETING STREAM PROCESSES     greet each connection to one port with a byte; send to the other without end
 *   traffic knock ADDRESS PORT                  try again and again; print "up SINCE NOW" or "down SINCE NOW" at each change
 *   traffic connect ADDRESS PORT COUNT CLIENTS  open so many connections; print their rate, p50 and p99 of connect(2)
 *   traffic pull ADDRESS PORT SECONDS           read from one connection; print bytes per second
 *   traffic flood ADDRESS PORT SOURCES COUNT A_SECOND  send so many first packets, each from the next of so many sources
 *
 * Times are seconds of CLOCK_MONOTONIC, rates are per second. SINCE is the last try that came out the other way.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 18, PATIENCE_MS = 50, PAUSE_NS = 500000 };

static char buffer[BUFFER];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static struct sockaddr_in address_of(const char *address, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) errx(2, "%s is no IPv4 address", address);
    return to;
}

/* A reset instead of an orderly end: neither side keeps the pair of ports for a minute. */
static void hang_up(int connection) {
    const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(connection, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(connection);
}

static void start_child(void (*work)(int), int listening) {
    pid_t child = fork();
    if (child < 0) err(1, "fork");
    if (child > 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    work(listening);
    _exit(0);
}

static void greet(int listening) {
    for (;;) {
        int connection = accept(listening, NULL, NULL);
        if (connection < 0) continue;
        send(connection, "!", 1, MSG_NOSIGNAL);
        close(connection);
    }
}

static void stream_to(int connection) {
    while (send(connection, buffer, BUFFER, MSG_NOSIGNAL) > 0) {}
}

static void stream(int listening) {
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int connection = accept(listening, NULL, NULL);
        if (connection < 0) continue;
        start_child(stream_to, connection);
        close(connection);
    }
}

static int listen_on(const char *port) {
    struct sockaddr_in at = address_of("0.0.0.0", port);
    const int yes = 1;
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listening, (struct sockaddr *)&at, sizeof at) || listen(listening, 4096)) err(1, "port %s", port);
    return listening;
}

static void serve(char **words) {
    int greeting = listen_on(words[0]), streaming = listen_on(words[1]);
    for (int process = 0; process < atoi(words[2]); process++) start_child(greet, greeting);
    start_child(stream, streaming);
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}

static int ready(int connection, short events) {
    struct pollfd wanted = {.fd = connection, .events = events};
    return poll(&wanted, 1, PATIENCE_MS) == 1;
}

/* Whether the server greets within the patience. */
static int greeted(const struct sockaddr_in *to) {
    char greeting;
    int connection = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connection < 0) err(1, "socket");
    int begun = connect(connection, (const struct sockaddr *)to, sizeof *to) == 0 || errno == EINPROGRESS;
    int answered = begun && ready(connection, POLLIN) && recv(connection, &greeting, 1, 0) == 1;
    hang_up(connection);
    return answered;
}

static void knock(char **words) {
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    struct sockaddr_in to = address_of(words[0], words[1]);
    int before = -1;
    double last = now();
    for (;;) {
        int answered = greeted(&to);
        double at = now();
        if (answered != before) {
            printf("%s %.6f %.6f\n", answered ? "up" : "down", last, at);
            fflush(stdout);
        }
        before = answered;
        last = at;
        nanosleep(&pause, NULL);
    }
}

static double connected(const struct sockaddr_in *to) {
    char greeting;
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (connection < 0) err(1, "socket");
    double begun = now();
    if (connect(connection, (const struct sockaddr *)to, sizeof *to)) err(1, "connect");
    double latency = now() - begun;
    if (recv(connection, &greeting, 1, 0) != 1) err(1, "no greeting");
    hang_up(connection);
    return latency;
}

static int in_order(const void *one, const void *other) {
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

/* The children write their latencies where this process reads them. */
static void connect_all(const struct sockaddr_in *to, double *latencies, int each, int clients) {
    for (int client = 0; client < clients; client++) {
        if (fork() == 0) {
            for (int number = 0; number < each; number++) latencies[client * each + number] = connected(to);
            _exit(0);
        }
    }
    for (int status, client = 0; client < clients; client++)
        if (wait(&status) < 0 || status != 0) exit(1);
}

static int measure_connections(char **words) {
    struct sockaddr_in to = address_of(words[0], words[1]);
    int clients = atoi(words[3]), each = atoi(words[2]) / clients, count = each * clients;
    size_t size = (size_t)count * sizeof(double);
    double *latencies = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (count < 1 || latencies == MAP_FAILED) errx(2, "a wrong number of connections");
    double begun = now();
    connect_all(&to, latencies, each, clients);
    double seconds = now() - begun;
    qsort(latencies, (size_t)count, sizeof(double), in_order);
    printf("%.1f %.9f %.9f\n", count / seconds, latencies[count / 2], latencies[count * 99L / 100]);
    return 0;
}

static int pull(char **words) {
    struct sockaddr_in from = address_of(words[0], words[1]);
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection, (struct sockaddr *)&from, sizeof from)) err(1, "connect");
    double begun = now(), end = begun + atof(words[2]), at = begun, bytes = 0;
    for (ssize_t part; at < end; at = now()) {
        if ((part = recv(connection, buffer, BUFFER, 0)) <= 0) errx(1, "the transfer broke off");
        bytes += (double)part;
    }
    printf("%.0f\n", bytes / (at - begun));
    hang_up(connection);
    return 0;
}

static uint32_t added(uint32_t sum, const void *data, size_t size) {
    const uint16_t *words = data;
    for (size_t word = 0; word < size / 2; word++) sum += words[word];
    return sum;
}

static uint16_t folded(uint32_t sum) {
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* Sources are of 100.64.0.0/10, which nobody here has; the next source of each packet has another port each turn. */
static int flood(char **words) {
    enum { FIRST = 100 << 24 | 64 << 16, LOWEST_PORT = 1024, BATCHES = 1000 };
    struct sockaddr_in to = address_of(words[0], words[1]);
    int sources = atoi(words[2]), count = atoi(words[3]), batch = atoi(words[4]) / BATCHES;
    int raw = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (raw < 0 || sources < 1 || batch < 1) err(1, "a raw socket, some sources, and a thousand packets a second");
    struct { struct iphdr ip; struct tcphdr tcp; } packet = {
        .ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP, .daddr = to.sin_addr.s_addr},
        .tcp = {.dest = to.sin_port, .doff = 5, .syn = 1, .window = 0xffff},
    };
    const struct timespec pause = {.tv_nsec = 1000000000 / BATCHES};
    for (int number = 0; number < count; number++) {
        packet.ip.saddr = htonl((uint32_t)(FIRST + number % sources));
        packet.tcp.source = htons((uint16_t)(LOWEST_PORT + number / sources % 60000));
        packet.tcp.check = 0;
        uint32_t sum = htons(IPPROTO_TCP) + htons(sizeof packet.tcp);
        sum = added(added(sum, &packet.ip.saddr, 8), &packet.tcp, sizeof packet.tcp);
        packet.tcp.check = folded(sum);
        sendto(raw, &packet, sizeof packet, 0, (const struct sockaddr *)&to, sizeof to);
        if (number % batch == 0) nanosleep(&pause, NULL);
    }
    return 0;
}

int main(int count, char **words) {
    if (count == 5 && !strcmp(words[1], "serve")) serve(words + 2);
    if (count == 4 && !strcmp(words[1], "knock")) knock(words + 2);
    if (count == 6 && !strcmp(words[1], "connect")) return measure_connections(words + 2);
    if (count == 5 && !strcmp(words[1], "pull")) return pull(words + 2);
    if (count == 7 && !strcmp(words[1], "flood")) return flood(words + 2);
    errx(2, "see the beginning of traffic.c");
}
