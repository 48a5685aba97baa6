/* A small web service without dependencies: what the demonstration pushes, builds and rolls out.
 *
 * One thread, poll(2). HTTP/1.1 with keep-alive and pipelining; request bodies with a Content-Length are read and
 * thrown away, others are refused. On SIGTERM: takes what already waits at the door, closes the door, answers what is
 * under way with `Connection: close`, and exits 0.
 *
 * Environment: LISTEN (address:port, default 127.0.0.1:8080, port 0 lets the system choose), INSTANCE (shown on `/`). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unknown"
#endif

enum {
    CONNECTIONS_MAX = 1000,
    INPUT_BYTES_MAX = 8 * 1024,       /* a request's head must fit */
    OUTPUT_BYTES_MAX = 16 * 1024,     /* no more requests are read while this much waits to be written */
    ANSWER_BYTES_MAX = 1024,
    BODY_BYTES_MAX = 1024 * 1024,
    IDLE_MS_MAX = 60 * 1000,
    IDLE_MS_MAX_STOPPING = 300,       /* time for a request that is already on its way through a proxy */
};

struct connection {
    int fd;
    char in[INPUT_BYTES_MAX + 1];
    size_t in_len;
    size_t body_left;                 /* of the request whose head was read last */
    char out[OUTPUT_BYTES_MAX + ANSWER_BYTES_MAX];
    size_t out_len;
    int closing;                      /* close once `out` is written */
    long long used_ms;
};

static volatile sig_atomic_t stopping;
static struct connection *connections[CONNECTIONS_MAX];
static int connection_count;
static char host_name[256];

static void on_stop(int signal_number) {
    (void)signal_number;
    stopping = 1;
}

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void answer(struct connection *c, int status, const char *reason, const char *body, int head_only) {
    if (stopping) c->closing = 1;
    int len = snprintf(c->out + c->out_len, sizeof c->out - c->out_len,
                       "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %zu\r\n%s\r\n%s", status,
                       reason, strlen(body), c->closing ? "Connection: close\r\n" : "", head_only ? "" : body);
    c->out_len += (size_t)len;
}

static void refuse(struct connection *c, int status, const char *reason) {
    c->closing = 1;
    c->in_len = 0;
    answer(c, status, reason, reason, 0);
}

/* Compares up to `len` bytes with a word, ignoring case. */
static int is_word(const char *text, size_t len, const char *word) {
    return len == strlen(word) && strncasecmp(text, word, len) == 0;
}

/* Answers the request whose head is the first `head_len` bytes of `in`. */
static void handle(struct connection *c, size_t head_len) {
    char method[16], path[512], version[16];
    c->in[head_len - 1] = '\0'; /* the last line feed of the head */
    if (sscanf(c->in, "%15s %511s %15s", method, path, version) != 3 || strncmp(version, "HTTP/1.", 7) != 0) {
        refuse(c, 400, "Bad Request");
        return;
    }
    if (strcmp(version, "HTTP/1.0") == 0) c->closing = 1;
    size_t body_len = 0;
    int has_length = 0;
    for (char *line = strchr(c->in, '\n'); line && line[1]; line = strchr(line, '\n')) {
        line++;
        size_t name_len = strcspn(line, ":\r\n");
        if (line[name_len] != ':') continue;
        char *value = line + name_len + 1;
        value += strspn(value, " \t");
        size_t value_len = strcspn(value, "\r\n");
        if (is_word(line, name_len, "transfer-encoding")) {
            refuse(c, 411, "Length Required");
            return;
        }
        if (is_word(line, name_len, "content-length")) {
            char *end;
            unsigned long long length = strtoull(value, &end, 10);
            if (has_length++ || end == value || end != value + strspn(value, "0123456789") || value[0] == '-' || value[0] == '+') {
                refuse(c, 400, "Bad Request");
                return;
            }
            if (length > BODY_BYTES_MAX) {
                refuse(c, 413, "Content Too Large");
                return;
            }
            body_len = (size_t)length;
        }
        if (is_word(line, name_len, "connection") && is_word(value, value_len, "close")) c->closing = 1;
    }
    memmove(c->in, c->in + head_len, c->in_len - head_len);
    c->in_len -= head_len;
    c->body_left = body_len;

    int head_only = strcmp(method, "HEAD") == 0;
    path[strcspn(path, "?")] = '\0';
    if (!head_only && strcmp(method, "GET") != 0 && strcmp(method, "POST") != 0) {
        answer(c, 405, "Method Not Allowed", "only GET, HEAD and POST\n", 0);
    } else if (strcmp(path, "/") == 0) {
        const char *instance = getenv("INSTANCE");
        char body[512];
        snprintf(body, sizeof body, "hello %s from %.200s/%d\n", VERSION, instance && *instance ? instance : host_name, (int)getpid());
        answer(c, 200, "OK", body, head_only);
    } else if (strcmp(path, "/healthz") == 0) {
#ifdef BROKEN
        fprintf(stderr, "error: cannot open the ledger: schema 7 is newer than this program understands (6)\n");
        answer(c, 500, "Internal Server Error", "the ledger is not available\n", head_only);
#else
        answer(c, 200, "OK", "ok\n", head_only);
#endif
    } else {
        answer(c, 404, "Not Found", "nothing here\n", head_only);
    }
}

/* Answers every whole request that was read, as long as answers find room. */
static void handle_input(struct connection *c) {
    for (;;) {
        size_t skipped = c->body_left < c->in_len ? c->body_left : c->in_len;
        memmove(c->in, c->in + skipped, c->in_len - skipped);
        c->in_len -= skipped;
        c->body_left -= skipped;
        if (c->closing || c->body_left || c->out_len >= OUTPUT_BYTES_MAX) return;
        if (memchr(c->in, '\0', c->in_len)) {
            refuse(c, 400, "Bad Request");
            return;
        }
        c->in[c->in_len] = '\0';
        char *crlf = strstr(c->in, "\r\n\r\n"), *lf = strstr(c->in, "\n\n");
        if (!crlf && !lf) {
            if (c->in_len == INPUT_BYTES_MAX) refuse(c, 431, "Request Header Fields Too Large");
            return;
        }
        size_t head_len = (size_t)((crlf && (!lf || crlf < lf)) ? crlf + 4 - c->in : lf + 2 - c->in);
        handle(c, head_len);
    }
}

/* Reads and writes what is possible now; 0 when the connection is over. */
static int serve(struct connection *c, short events) {
    if (events & (POLLIN | POLLHUP | POLLERR)) {
        ssize_t got = recv(c->fd, c->in + c->in_len, INPUT_BYTES_MAX - c->in_len, 0);
        if (got > 0) {
            c->in_len += (size_t)got;
            c->used_ms = now_ms();
        } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
            return 0;
        }
    }
    handle_input(c);
    while (c->out_len) {
        ssize_t sent = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN || errno == EINTR;
        memmove(c->out, c->out + sent, c->out_len - (size_t)sent);
        c->out_len -= (size_t)sent;
        c->used_ms = now_ms();
        handle_input(c); /* a pipelined request may have waited for room */
    }
    return !(c->closing && c->body_left == 0);
}

static void accept_waiting(int door) {
    while (connection_count < CONNECTIONS_MAX) {
        int fd = accept4(door, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        struct connection *c = calloc(1, sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        c->fd = fd;
        c->used_ms = now_ms();
        connections[connection_count++] = c;
    }
}

static int open_door(const char *listen_at) {
    char host[64] = "";
    const char *colon = strrchr(listen_at, ':');
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (colon && (size_t)(colon - listen_at) < sizeof host) {
        memcpy(host, listen_at, (size_t)(colon - listen_at));
        address.sin_port = htons((unsigned short)atoi(colon + 1));
    }
    if (!colon || inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "error: LISTEN=%s is not address:port, such as 0.0.0.0:8080\n", listen_at);
        exit(2);
    }
    int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(door, (struct sockaddr *)&address, sizeof address) || listen(door, 512)) {
        fprintf(stderr, "error: cannot listen on %s: %s\n", listen_at, strerror(errno));
        exit(1);
    }
    socklen_t len = sizeof address;
    getsockname(door, (struct sockaddr *)&address, &len);
    printf("hello %s listens on %s:%d\n", VERSION, host, ntohs(address.sin_port));
    fflush(stdout);
    return door;
}

int main(void) {
    struct sigaction stop = {.sa_handler = on_stop};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    gethostname(host_name, sizeof host_name - 1);
    int door = open_door(getenv("LISTEN") ? getenv("LISTEN") : "127.0.0.1:8080");

    static struct pollfd polled[CONNECTIONS_MAX + 1];
    while (door >= 0 || connection_count) {
        if (stopping && door >= 0) {
            accept_waiting(door);
            close(door);
            door = -1;
        }
        int count = connection_count;
        for (int i = 0; i < count; i++) {
            struct connection *c = connections[i];
            short want = c->out_len ? POLLOUT : 0;
            if (c->in_len < INPUT_BYTES_MAX && c->out_len < OUTPUT_BYTES_MAX) want |= POLLIN;
            polled[i] = (struct pollfd){.fd = c->fd, .events = want};
        }
        /* A descriptor of -1 is passed over: at the limit, and while stopping, nobody is let in. */
        polled[count] = (struct pollfd){.fd = count < CONNECTIONS_MAX ? door : -1, .events = POLLIN};
        if (poll(polled, (nfds_t)count + 1, stopping ? 50 : 1000) < 0 && errno != EINTR) {
            perror("error: poll");
            return 1;
        }
        long long idle_since = now_ms() - (stopping ? IDLE_MS_MAX_STOPPING : IDLE_MS_MAX);
        int kept = 0;
        for (int i = 0; i < count; i++) {
            struct connection *c = connections[i];
            int goes_on = !polled[i].revents || serve(c, polled[i].revents);
            if (goes_on && c->used_ms >= idle_since) {
                connections[kept++] = c;
            } else {
                close(c->fd);
                free(c);
            }
        }
        connection_count = kept;
        if (polled[count].revents) accept_waiting(door);
    }
    printf("hello %s has answered everything and stops\n", VERSION);
    return 0;
}
