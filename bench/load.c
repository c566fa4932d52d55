/* The load tool of the benchmarks: one thread, N connections; each sends its next request after the answer to the last.

     make build/bench/load
     build/bench/load [OPTION VALUE]... PORT BODY-FILE [HEADER]...

     --connections N   (1)
     --seconds S       the measured time (2)
     --warm-up S       the time before, which is not measured (0.3)
     --requests N      sends N requests, without a time limit, instead of --seconds and --warm-up
     --path PATH       (/mcp)

   The body's "id":1000000 is incremented with every request. An answer counts if its status is 200 and it has the id of
   its request and a result; any other is an error, and the first error is printed. Prints one line of JSON. "answered"
   counts the answers within the measured time. "total" includes the warm-up and the requests in flight at the end; the
   tool waits for these, so that no server works for a client that has disconnected. Latencies are in microseconds, for
   requests sent within the measured time. */

#include "http.h"

#define FIRST_ID 1000000
#define LAST_SECONDS 60 /* time limit for answers after the end of the measured time */
#define KEPT ((size_t)1024) /* bytes kept of each answer's body: enough to find the id */

struct connection {
    int fd, id, status, chunked, writing, busy;
    size_t sent, left; /* left: bytes of the body or of the chunk */
    double began;
    struct buffer in;
    char kept[KEPT + 1];
    size_t kept_length;
    enum { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER } state;
};

static struct sockaddr_in address;
static struct buffer request;
static size_t id_offset;
static int poller, next_id;
static double from, until_time; /* answers between these times are counted */
static size_t wanted, started;
static size_t answered, total, timed, errors, bytes, room;
static float *latencies;

static void watch(struct connection *it, int writing) {
    struct epoll_event event = {.events = writing ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = it};
    if (it->writing != writing)
        epoll_ctl(poller, EPOLL_CTL_MOD, it->fd, &event);
    it->writing = writing;
}

static void send_rest(struct connection *it) {
    char number[16];
    while (it->sent < request.length) {
        if (it->sent <= id_offset) { /* all connections share the bytes: insert the id before each write */
            snprintf(number, sizeof number, "%d", it->id);
            memcpy(request.data + id_offset, number, 7);
        }
        ssize_t written = write(it->fd, request.data + it->sent, request.length - it->sent);
        if (written < 0)
            break; /* the next read reports a closed connection */
        if (it->sent <= id_offset && it->sent + (size_t)written > id_offset && it->sent + (size_t)written < id_offset + 7)
            abort(); /* another connection would overwrite the rest of this id before the next write */
        it->sent += (size_t)written;
    }
    watch(it, it->sent < request.length);
}

static void begin(struct connection *it) {
    it->began = now();
    it->busy = wanted ? started < wanted : it->began < until_time;
    if (!it->busy)
        return;
    started++;
    it->id = FIRST_ID + next_id++ % 9000000;
    it->state = HEAD;
    it->sent = it->kept_length = 0;
    send_rest(it);
}

static void open_connection(struct connection *it) {
    it->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(it->fd, (struct sockaddr *)&address, sizeof address)) {
        perror("connect");
        exit(1);
    }
    without_delay(it->fd);
    it->in.length = 0;
    it->writing = 0;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = it};
    epoll_ctl(poller, EPOLL_CTL_ADD, it->fd, &event);
    begin(it);
}

static int right(struct connection *it) {
    char id[32], spaced[32];
    snprintf(id, sizeof id, "\"id\":%d", it->id);
    snprintf(spaced, sizeof spaced, "\"id\": %d", it->id);
    it->kept[it->kept_length] = 0;
    return it->status == 200 && (strstr(it->kept, id) || strstr(it->kept, spaced)) && strstr(it->kept, "\"result\"");
}

static void finish(struct connection *it) {
    double time = now();
    if (!right(it)) {
        if (!errors++)
            fprintf(stderr, "Not an answer to %d: HTTP %d %.300s\n", it->id, it->status, it->kept);
        return begin(it);
    }
    total++;
    answered += wanted || (time >= from && time < until_time);
    if (wanted || it->began >= from) {
        if (timed == room)
            latencies = realloc(latencies, (room = 2 * room + 65536) * sizeof *latencies);
        latencies[timed++] = (float)((time - it->began) * 1e6);
    }
    begin(it);
}

/* Consumes bytes of the body, and keeps the first of them for the check; returns how many it consumed. */
static size_t take(struct connection *it, const char *data, size_t length) {
    size_t taken = length < it->left ? length : it->left;
    size_t kept = taken < KEPT - it->kept_length ? taken : KEPT - it->kept_length;
    memcpy(it->kept + it->kept_length, data, kept);
    it->kept_length += kept;
    it->left -= taken;
    bytes += taken;
    return taken;
}

/* Consumes the next part of the data; returns its length, 0 if it needs more data, -1 if the data is not HTTP. */
static ssize_t advance(struct connection *it, const char *data, size_t length) {
    if (it->state == BODY || it->state == CHUNK) {
        size_t taken = take(it, data, length);
        if (!it->left && it->state == BODY)
            finish(it);
        else if (!it->left)
            it->state = CHUNK_END;
        return (ssize_t)taken;
    }
    if (it->state == HEAD) {
        size_t head = head_length(data, length);
        if (!head)
            return length > 65536 ? -1 : 0;
        const char *size = header(data, head, "content-length:"), *coding = header(data, head, "transfer-encoding:");
        it->status = head > 12 ? atoi(data + 9) : 0;
        it->chunked = coding && strncasecmp(coding, "chunked", 7) == 0;
        it->left = size ? strtoul(size, NULL, 10) : 0;
        it->state = it->chunked ? CHUNK_SIZE : BODY;
        if (!it->chunked && !it->left)
            finish(it);
        return (ssize_t)head;
    }
    const char *line = memchr(data, '\n', length);
    if (!line)
        return length > 1024 ? -1 : 0;
    if (it->state == CHUNK_SIZE) {
        it->left = strtoul(data, NULL, 16);
        it->state = it->left ? CHUNK : TRAILER;
    } else if (it->state == CHUNK_END) {
        it->state = CHUNK_SIZE;
    } else if (line - data <= 1) { /* the empty line after the trailer */
        finish(it);
    }
    return line - data + 1;
}

static void receive(struct connection *it) {
    static char data[1 << 18];
    memcpy(data, it->in.data, it->in.length);
    ssize_t got = read(it->fd, data + it->in.length, sizeof data - it->in.length);
    if (got < 0 && errno == EAGAIN)
        return;
    size_t length = it->in.length + (size_t)(got > 0 ? got : 0), at = 0;
    ssize_t taken = got > 0 ? 1 : -1;
    while (taken > 0 && at < length)
        at += (taken = advance(it, data + at, length - at)) > 0 ? (size_t)taken : 0;
    it->in.length = 0;
    if (taken >= 0)
        return append(&it->in, data + at, length - at);
    close(it->fd);
    if (!it->busy)
        return;
    if (!errors++)
        fprintf(stderr, "The connection of request %d ended: %s\n", it->id, got ? "not HTTP" : "closed");
    open_connection(it);
}

static int by_length(const void *a, const void *b) {
    float left = *(const float *)a, right = *(const float *)b;
    return (left > right) - (left < right);
}

static double percentile(double share) {
    return timed ? latencies[(size_t)(share * (double)(timed - 1) + 0.5)] : 0;
}

static void read_file(const char *path, struct buffer *into) {
    FILE *file = fopen(path, "r");
    if (!file) {
        perror(path);
        exit(1);
    }
    for (size_t got = 1; got;) {
        reserve(into, 65536);
        into->length += got = fread(into->data + into->length, 1, 65536, file);
    }
    fclose(file);
}

int main(int count, char **arguments) {
    const char *path = "/mcp";
    double seconds = 2, warm_up = 0.3;
    int connections = 1, at = 1;
    for (; at + 1 < count && strncmp(arguments[at], "--", 2) == 0; at += 2) {
        const char *option = arguments[at] + 2, *value = arguments[at + 1];
        if (strcmp(option, "connections") == 0)
            connections = atoi(value);
        else if (strcmp(option, "seconds") == 0)
            seconds = atof(value);
        else if (strcmp(option, "warm-up") == 0)
            warm_up = atof(value);
        else if (strcmp(option, "requests") == 0)
            wanted = strtoul(value, NULL, 10);
        else if (strcmp(option, "path") == 0)
            path = value;
        else
            count = 0;
    }
    if (at + 2 > count || connections < 1) {
        fprintf(stderr, "usage: %s [--connections N] [--seconds S] [--warm-up S] [--requests N] [--path PATH] "
                        "PORT BODY-FILE [HEADER]...\n", arguments[0]);
        return 2;
    }
    address = loopback(arguments[at]);
    struct buffer body = {0};
    read_file(arguments[at + 1], &body);
    print(&request, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nContent-Type: application/json\r\n"
                    "Content-Length: %zu\r\n", path, arguments[at], body.length);
    for (int i = at + 2; i < count; i++)
        print(&request, "%s\r\n", arguments[i]);
    append(&request, "\r\n", 2);
    char *id = memmem(body.data, body.length, "\"id\":1000000", 12);
    if (!id) {
        fprintf(stderr, "%s has no \"id\":1000000 to count up.\n", arguments[at + 1]);
        return 2;
    }
    id_offset = request.length + (size_t)(id - body.data) + 5;
    append(&request, body.data, body.length);

    signal(SIGPIPE, SIG_IGN);
    raise_limit();
    poller = epoll_create1(0);
    double start = now();
    from = start + warm_up;
    until_time = wanted ? start + LAST_SECONDS : from + seconds;
    struct connection *all = calloc((size_t)connections, sizeof *all);
    for (int i = 0; i < connections && !(wanted && started == wanted); i++)
        open_connection(&all[i]);
    while (total + errors < started && now() < until_time + LAST_SECONDS) {
        struct epoll_event ready[256];
        int events = epoll_wait(poller, ready, 256, 100);
        for (int i = 0; i < events; i++) {
            struct connection *it = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT)
                send_rest(it);
            if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(it);
        }
    }
    double taken = wanted ? now() - start : seconds;
    if (total + errors < started && !errors)
        fprintf(stderr, "%zu requests got no answer.\n", started - total);
    errors = started - total;
    qsort(latencies, timed, sizeof *latencies, by_length);
    printf("{\"answered\": %zu, \"total\": %zu, \"errors\": %zu, \"seconds\": %.6f, "
           "\"requests_per_second\": %.1f, \"bytes\": %zu, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f}\n",
           answered, total, errors, taken, (double)answered / taken, bytes, percentile(0.5), percentile(0.99),
           percentile(0.999), percentile(1));
    return 0;
}
