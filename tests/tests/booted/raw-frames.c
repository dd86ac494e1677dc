/* Frames as they are: `raw-frames send IFACE HEX...` sends each, `raw-frames hear IFACE` writes each that
   comes, one a line, until it is killed. */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static int digit(char c) {
    const char *digits = "0123456789abcdef";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

static int send_all(int fd, const struct sockaddr_ll *to, int count, char **texts) {
    for (int i = 0; i < count; i++) {
        unsigned char frame[2048];
        size_t len = strlen(texts[i]) / 2;
        if (len > sizeof frame) return 1;
        for (size_t at = 0; at < len; at++)
            frame[at] = (unsigned char)(digit(texts[i][2 * at]) << 4 | digit(texts[i][2 * at + 1]));
        if (sendto(fd, frame, len, 0, (const struct sockaddr *)to, sizeof *to) != (ssize_t)len) {
            perror("sendto");
            return 1;
        }
    }
    return 0;
}

static int hear(int fd, const struct sockaddr_ll *at) {
    if (bind(fd, (const struct sockaddr *)at, sizeof *at)) {
        perror("bind");
        return 1;
    }
    puts("hearing");
    fflush(stdout);
    for (;;) {
        unsigned char frame[2048];
        ssize_t len = recv(fd, frame, sizeof frame, 0);
        if (len < 0) return 0;
        for (ssize_t i = 0; i < len; i++) printf("%02x", frame[i]);
        puts("");
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    if (fd < 0) {
        perror("socket");
        return 1;
    }
    struct sockaddr_ll place = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ETH_P_ALL),
        .sll_ifindex = (int)if_nametoindex(argv[2]),
        .sll_halen = 6,
    };
    if (!strcmp(argv[1], "send")) return send_all(fd, &place, argc - 3, argv + 3);
    return hear(fd, &place);
}
