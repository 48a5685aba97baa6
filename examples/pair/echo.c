/* A TCP echo service: one of the two services of this pipeline. One thread a connection; on SIGTERM it ends.
 * Environment: LISTEN (address:port, default 127.0.0.1:7007, port 0 lets the system choose). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static volatile sig_atomic_t stopping;

static void on_stop(int signal_number) {
    (void)signal_number;
    stopping = 1;
}

static void *echo(void *argument) {
    int fd = (int)(intptr_t)argument;
    char bytes[4096];
    ssize_t got;
    while ((got = recv(fd, bytes, sizeof bytes, 0)) > 0) {
        for (ssize_t sent = 0, n; sent < got; sent += n) {
            n = send(fd, bytes + sent, (size_t)(got - sent), MSG_NOSIGNAL);
            if (n <= 0) goto end;
        }
    }
end:
    close(fd);
    return NULL;
}

int main(void) {
    const char *listen_at = getenv("LISTEN") ? getenv("LISTEN") : "127.0.0.1:7007";
    const char *colon = strrchr(listen_at, ':');
    char host[64] = "";
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (colon && (size_t)(colon - listen_at) < sizeof host) {
        memcpy(host, listen_at, (size_t)(colon - listen_at));
        address.sin_port = htons((unsigned short)atoi(colon + 1));
    }
    if (!colon || inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "error: LISTEN=%s is not address:port\n", listen_at);
        return 2;
    }
    /* The signal is let in only while ppoll waits, so that it cannot fall between check and wait. */
    sigset_t terms, during_wait;
    sigemptyset(&terms);
    sigaddset(&terms, SIGTERM);
    sigaddset(&terms, SIGINT);
    sigprocmask(SIG_BLOCK, &terms, &during_wait);
    struct sigaction stop = {.sa_handler = on_stop};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(door, (struct sockaddr *)&address, sizeof address) || listen(door, 64)) {
        fprintf(stderr, "error: cannot listen on %s: %s\n", listen_at, strerror(errno));
        return 1;
    }
    socklen_t len = sizeof address;
    getsockname(door, (struct sockaddr *)&address, &len);
    printf("echo listens on %s:%d\n", host, ntohs(address.sin_port));
    fflush(stdout);
    while (!stopping) {
        struct pollfd polled = {.fd = door, .events = POLLIN};
        if (ppoll(&polled, 1, NULL, &during_wait) <= 0) continue;
        int fd = accept4(door, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        pthread_t thread;
        if (pthread_create(&thread, NULL, echo, (void *)(intptr_t)fd) == 0) {
            pthread_detach(thread);
        } else {
            close(fd);
        }
    }
    return 0;
}
