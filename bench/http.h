/* Shared by the upstream and the load tool: a growing buffer, HTTP/1.1 heads, sockets on loopback. */

#pragma once

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct buffer {
    char *data;
    size_t length, room;
};

static inline void reserve(struct buffer *it, size_t more) {
    if (it->length + more <= it->room)
        return;
    it->room = 2 * (it->length + more);
    it->data = realloc(it->data, it->room);
    if (!it->data)
        abort();
}

static inline void append(struct buffer *it, const void *data, size_t length) {
    reserve(it, length);
    memcpy(it->data + it->length, data, length);
    it->length += length;
}

__attribute__((format(printf, 2, 3))) static inline void print(struct buffer *it, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    reserve(it, 1024);
    it->length += (size_t)vsnprintf(it->data + it->length, 1024, format, arguments);
    va_end(arguments);
}

static inline void drop(struct buffer *it, size_t length) {
    it->length -= length;
    memmove(it->data, it->data + length, it->length);
}

/* Returns the length of the head including its empty line; 0 if the head is incomplete. */
static inline size_t head_length(const char *data, size_t length) {
    const char *end = memmem(data, length, "\r\n\r\n", 4);
    return end ? (size_t)(end - data) + 4 : 0;
}

/* Returns the value of a header in a complete head, or NULL. The name includes the colon: "content-length:". */
static inline const char *header(const char *head, size_t length, const char *name) {
    size_t size = strlen(name);
    for (const char *line = head, *end = head + length; (line = memchr(line, '\n', (size_t)(end - line)));) {
        line++;
        if ((size_t)(end - line) > size && strncasecmp(line, name, size) == 0) {
            for (line += size; *line == ' ';)
                line++;
            return line;
        }
    }
    return NULL;
}

static inline int without_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return fd;
}

static inline struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Raises the limit of open files to the maximum for this process. */
static inline void raise_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}
