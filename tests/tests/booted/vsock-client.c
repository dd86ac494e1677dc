/* One vsock stream between standard input, standard output and a port: of the host's ("connect
   PORT"), or of this guest's ("listen PORT", which prints "listening" and takes one connection). */
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int copy(int from, int to) {
    static char buffer[65536];
    ssize_t got;
    while ((got = read(from, buffer, sizeof buffer)) > 0)
        for (ssize_t at = 0; at < got;) {
            ssize_t put = write(to, buffer + at, got - at);
            if (put < 0) return perror("write"), 1;
            at += put;
        }
    return got < 0 ? perror("read"), 1 : 0;
}

int main(int count, char **words) {
    if (count != 3) return fputs("usage: vsock-client connect|listen PORT\n", stderr), 2;
    struct sockaddr_vm port = {.svm_family = AF_VSOCK, .svm_port = atoi(words[2])};
    int stream = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (stream < 0) return perror("socket"), 1;
    if (!strcmp(words[1], "connect")) {
        port.svm_cid = VMADDR_CID_HOST;
        if (connect(stream, (void *)&port, sizeof port)) return perror("connect"), 1;
        if (copy(0, stream)) return 1;
        shutdown(stream, SHUT_WR);
        return copy(stream, 1);
    }
    port.svm_cid = VMADDR_CID_ANY;
    if (bind(stream, (void *)&port, sizeof port) || listen(stream, 1)) return perror("listen"), 1;
    puts("listening");
    fflush(stdout);
    stream = accept(stream, 0, 0);
    if (stream < 0) return perror("accept"), 1;
    return copy(stream, stream);
}
