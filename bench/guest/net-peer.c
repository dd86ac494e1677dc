// Both ends of the network benchmark's questions: one byte there, one byte back. The server runs in the
// guest, which has no libraries, so it is linked statically.
//
//   net-peer serve PORT                 answers each byte with a byte, on any number of connections
//   net-peer ask ADDRESS PORT COUNT     asks COUNT times on one connection; prints the nanoseconds of each
//                                       answer: the mean, the median and the 99th percentile
//   net-peer connect ADDRESS PORT COUNT makes COUNT connections one after another, asks once on each, and
//                                       closes it; prints the nanoseconds of all, and how many failed
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MOST_CONNECTIONS 1024
/* Seconds after which an answer does not come any more. */
#define PATIENCE 60

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void at_once(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void serve(int port)
{
    static struct pollfd polled[MOST_CONNECTIONS + 1];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, count = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1024) < 0)
        die("serve");
    polled[0] = (struct pollfd){.fd = listener, .events = POLLIN};
    for (;;) {
        if (poll(polled, count, -1) < 0)
            die("poll");
        for (int at = count - 1; at > 0; at--) {
            char byte;
            if (!polled[at].revents)
                continue;
            if (read(polled[at].fd, &byte, 1) == 1 && write(polled[at].fd, &byte, 1) == 1)
                continue;
            close(polled[at].fd);
            polled[at] = polled[--count];
        }
        if (polled[0].revents && count <= MOST_CONNECTIONS) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0) {
                at_once(fd);
                polled[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
            }
        }
    }
}

static int open_connection(const char *host, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval patience = {.tv_sec = PATIENCE};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        die(host);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    at_once(fd);
    return fd;
}

static int answered(int fd)
{
    char byte = 'x';
    return write(fd, &byte, 1) == 1 && read(fd, &byte, 1) == 1 && byte == 'x';
}

static int by_size(const void *one, const void *other)
{
    long long a = *(const long long *)one, b = *(const long long *)other;
    return (a > b) - (a < b);
}

static int ask(const char *host, int port, int count)
{
    long long *times = calloc(count, sizeof *times), sum = 0;
    int fd = open_connection(host, port);
    if (!times || fd < 0)
        die("ask");
    /* The first ones wait for addresses and caches. */
    for (int round = -count / 10; round < count; round++) {
        long long start = now();
        if (!answered(fd))
            die("an answer");
        if (round >= 0)
            sum += times[round] = now() - start;
    }
    qsort(times, count, sizeof *times, by_size);
    printf("%lld %lld %lld\n", sum / count, times[count / 2], times[count * 99LL / 100]);
    return 0;
}

static int make_connections(const char *host, int port, int count)
{
    int failed = 0;
    long long start = now();
    for (int made = 0; made < count; made++) {
        int fd = open_connection(host, port);
        if (fd < 0 || !answered(fd)) {
            if (!failed++)
                perror("the first that failed");
        }
        if (fd >= 0)
            close(fd);
    }
    printf("%lld %d\n", now() - start, failed);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve(atoi(argv[2]));
    if (argc == 5 && atoi(argv[4]) > 0 && !strcmp(argv[1], "ask"))
        return ask(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (argc == 5 && atoi(argv[4]) > 0 && !strcmp(argv[1], "connect"))
        return make_connections(argv[2], atoi(argv[3]), atoi(argv[4]));
    fprintf(stderr, "usage: net-peer serve PORT | ask ADDRESS PORT COUNT | connect ADDRESS PORT COUNT\n");
    return 2;
}
