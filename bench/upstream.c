/* A trivial MCP server for the benchmarks: Streamable HTTP on one thread, so fast that it is not the bottleneck.

     make build/bench/upstream
     build/bench/upstream PORT json|sse [BYTES]

   It listens on 127.0.0.1:PORT/mcp and answers a tools/call with BYTES bytes (default 200), as JSON or as one event
   like supergateway's. A call can change this in params.arguments:
     "bytes": N                 the length of this answer;
     "sse": true|false          its form;
     "steps": N, "pause": MS    N progress notifications first, one each MS milliseconds (needs a progressToken).
   Requests need no handshake; all sessions have the same id. Invalid input does not end the server. */

#include "http.h"

#define JSON_HEAD "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n"
#define SSE_HEAD                                                                                                       \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n"  \
    "%s\r\n"
#define EMPTY "HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n"
#define SESSION "Mcp-Session-Id: bench-session\r\n"
#define INITIALIZED                                                                                                    \
    "{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{\"tools\":{}},"                                             \
    "\"serverInfo\":{\"name\":\"bench-upstream\",\"version\":\"1.0.0\"}}"
#define TOOLS                                                                                                          \
    "{\"tools\":[{\"name\":\"echo\",\"description\":\"Answers with as many bytes as it is asked for.\","               \
    "\"inputSchema\":{\"type\":\"object\"},\"annotations\":{\"readOnlyHint\":true}}]}"
#define TEXT_FRONT "{\"content\":[{\"type\":\"text\",\"text\":\""
#define TEXT_BACK "\"}]}"
#define MOST_BYTES ((size_t)64 << 20)
#define ONE_WRITE ((size_t)256 << 10) /* maximum per write, so that a large answer does not delay small ones */

struct span {
    const char *start;
    size_t length;
};

struct message {
    struct span id, method, token;
    size_t bytes, steps, pause;
    int sse;
};

/* An answer is written in three pieces: out up to split, then padding letters, then the rest of out. */
struct connection {
    int fd, writing;
    struct buffer in, out;
    size_t sent, split, padding;
    size_t steps, step; /* of the slow call in progress */
    double pause, due;
    char *id, *token;
    size_t bytes;
    struct connection *next_slow;
};

static int sse_answers, poller;
static size_t default_bytes = 200;
static char *letters;
static struct connection *slow;

static int spells(struct span it, const char *text) {
    return it.length == strlen(text) && memcmp(it.start, text, it.length) == 0;
}

/* Returns the closing quote of the string whose opening quote is at `at`, or NULL. */
static const char *string_end(const char *at, const char *end) {
    for (const char *quote = at; (quote = memchr(quote + 1, '"', (size_t)(end - quote - 1)));) {
        const char *slash = quote;
        while (slash[-1] == '\\')
            slash--;
        if ((quote - slash) % 2 == 0)
            return quote;
    }
    return NULL;
}

static size_t number(struct span it, size_t most) {
    size_t value = 0;
    for (size_t i = 0; i < it.length && it.start[i] >= '0' && it.start[i] <= '9' && value <= most; i++)
        value = 10 * value + (size_t)(it.start[i] - '0');
    return value < most ? value : most;
}

static void take(struct message *it, int depth, struct span key, struct span value) {
    if (depth == 1 && spells(key, "id"))
        it->id = value;
    else if (depth == 1 && spells(key, "method"))
        it->method = (struct span){value.start + 1, value.length - 2};
    else if (depth == 3 && spells(key, "progressToken"))
        it->token = value;
    else if (depth == 3 && spells(key, "bytes"))
        it->bytes = number(value, MOST_BYTES);
    else if (depth == 3 && spells(key, "sse"))
        it->sse = spells(value, "true");
    else if (depth == 3 && spells(key, "steps"))
        it->steps = number(value, 1000000);
    else if (depth == 3 && spells(key, "pause"))
        it->pause = number(value, 60000);
}

/* Parses the body in one pass, with strings and depth, so that text inside an argument is not mistaken for a key. */
static struct message parse(const char *body, size_t length) {
    struct message result = {.bytes = default_bytes, .sse = sse_answers};
    const char *end = body + length;
    struct span key = {NULL, 0};
    int depth = 0, after_colon = 0;
    for (const char *at = body; at < end; at++) {
        struct span value = {at, 0};
        switch (*at) {
        case '{':
        case '[':
            depth++;
            after_colon = 0;
            continue;
        case '}':
        case ']':
            depth--;
            continue;
        case ':':
            after_colon = 1;
            continue;
        case ',':
        case ' ':
        case '\t':
        case '\r':
        case '\n':
            continue;
        case '"': {
            const char *quote = string_end(at, end);
            if (!quote)
                return result;
            value.length = (size_t)(quote - at) + 1;
            break;
        }
        default:
            while (at + value.length < end && !strchr(",]} \t\r\n", at[value.length]))
                value.length++;
            if (value.length == 0) /* a NUL byte, which strchr finds at the end of its own string */
                return result;
        }
        if (after_colon)
            take(&result, depth, key, value);
        else if (value.length >= 2)
            key = (struct span){at + 1, value.length - 2};
        after_colon = 0;
        at += value.length - 1;
    }
    return result;
}

/* Queues a complete JSON-RPC response, whose result is front, then padding letters, then back. */
static void respond(struct connection *it, const char *id, int id_length, const char *front, size_t padding,
                    const char *back, const char *headers, int as_event, int head_sent) {
    char start[512];
    int size = snprintf(start, sizeof start, "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"result\":", id_length, id);
    size_t length = (size_t)size + strlen(front) + padding + strlen(back) + 1;
    if (!as_event) {
        print(&it->out, JSON_HEAD, length, headers);
    } else {
        if (!head_sent)
            print(&it->out, SSE_HEAD, headers);
        print(&it->out, "%zx\r\nevent: message\ndata: ", length + strlen("event: message\ndata: \n\n"));
    }
    append(&it->out, start, (size_t)size);
    append(&it->out, front, strlen(front));
    it->split = it->out.length;
    it->padding = padding;
    print(&it->out, "%s}%s", back, as_event ? "\n\n\r\n0\r\n\r\n" : "");
}

static void answer_call(struct connection *it, const char *id, int id_length, size_t bytes, int as_event,
                        int head_sent) {
    size_t frame = strlen("{\"jsonrpc\":\"2.0\",\"id\":,\"result\":" TEXT_FRONT TEXT_BACK "}") + (size_t)id_length;
    size_t padding = bytes > frame ? bytes - frame : 0;
    respond(it, id, id_length, TEXT_FRONT, padding, TEXT_BACK, "", as_event, head_sent);
}

static void start_slow(struct connection *it, struct message message) {
    it->id = strndup(message.id.start, message.id.length);
    it->token = strndup(message.token.start, message.token.length);
    it->bytes = message.bytes;
    it->steps = message.steps;
    it->step = 0;
    it->pause = (double)message.pause / 1000;
    it->due = now() + it->pause;
    it->next_slow = slow;
    slow = it;
    print(&it->out, SSE_HEAD, "");
    it->split = it->out.length;
}

static void answer(struct connection *it, const char *body, size_t length) {
    struct message message = parse(body, length);
    if (!message.method.start || message.method.length > 100 || message.id.length > 100 || message.token.length > 100) {
        print(&it->out, EMPTY, "400 Bad Request");
    } else if (!message.id.start) {
        print(&it->out, EMPTY, "202 Accepted");
    } else if (spells(message.method, "tools/call")) {
        if (message.steps && message.token.start)
            return start_slow(it, message);
        return answer_call(it, message.id.start, (int)message.id.length, message.bytes, message.sse, 0);
    } else {
        const char *result = spells(message.method, "initialize")   ? INITIALIZED
                             : spells(message.method, "tools/list") ? TOOLS
                             : spells(message.method, "ping")       ? "{}"
                                                                    : NULL;
        const char *headers = spells(message.method, "initialize") ? SESSION : "";
        if (result)
            return respond(it, message.id.start, (int)message.id.length, result, 0, "", headers, sse_answers, 0);
        char error[512];
        int size = snprintf(error, sizeof error,
                            "{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"error\":{\"code\":-32601,\"message\":\"Unknown\"}}",
                            (int)message.id.length, message.id.start);
        print(&it->out, JSON_HEAD "%s", (size_t)size, "", error);
    }
    it->split = it->out.length;
}

/* Answers the first complete request; returns its length, 0 if there is none, -1 if it is invalid. */
static ssize_t serve_one(struct connection *it) {
    size_t head = head_length(it->in.data, it->in.length);
    if (!head)
        return it->in.length > 65536 ? -1 : 0;
    const char *value = header(it->in.data, head, "content-length:");
    size_t body = value ? strtoul(value, NULL, 10) : 0;
    if (body > MOST_BYTES || header(it->in.data, head, "transfer-encoding:"))
        return -1;
    if (it->in.length < head + body)
        return 0;
    if (memcmp(it->in.data, "POST ", 5) == 0) {
        answer(it, it->in.data + head, body);
    } else {
        if (memcmp(it->in.data, "GET ", 4) == 0)
            print(&it->out, SSE_HEAD, ""); /* the stream of notifications, which stays empty */
        else
            print(&it->out, EMPTY, memcmp(it->in.data, "DELETE ", 7) == 0 ? "200 OK" : "405 Method Not Allowed");
        it->split = it->out.length;
    }
    return (ssize_t)(head + body);
}

static void leave_slow(struct connection *it) {
    struct connection **link = &slow;
    while (*link && *link != it)
        link = &(*link)->next_slow;
    if (*link)
        *link = it->next_slow;
    free(it->id);
    free(it->token);
    it->id = it->token = NULL;
}

static void end(struct connection *it) {
    leave_slow(it);
    close(it->fd);
    free(it->in.data);
    free(it->out.data);
    free(it);
}

static void watch(struct connection *it, int writing) {
    struct epoll_event event = {.events = writing ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = it};
    if (it->writing != writing)
        epoll_ctl(poller, EPOLL_CTL_MOD, it->fd, &event);
    it->writing = writing;
}

/* Writes as much of the queue as the socket accepts; returns -1 if the connection is closed. */
static int flush(struct connection *it) {
    size_t total = it->out.length + it->padding;
    while (it->sent < total) {
        struct iovec pieces[3];
        size_t from = it->sent, room = ONE_WRITE;
        int count = 0;
        struct span parts[3] = {{it->out.data, it->split},
                                {letters, it->padding},
                                {it->out.data + it->split, it->out.length - it->split}};
        for (int i = 0; i < 3 && room; i++) {
            if (from >= parts[i].length) {
                from -= parts[i].length;
                continue;
            }
            size_t length = parts[i].length - from < room ? parts[i].length - from : room;
            pieces[count++] = (struct iovec){(void *)(parts[i].start + from), length};
            room -= length;
            from = 0;
        }
        ssize_t written = writev(it->fd, pieces, count);
        if (written < 0 && errno != EAGAIN)
            return -1;
        it->sent += written > 0 ? (size_t)written : 0;
        if (it->sent < total) { /* the event loop continues with it after the others */
            watch(it, 1);
            return 0;
        }
    }
    it->out.length = it->sent = it->split = it->padding = 0;
    watch(it, 0);
    return 0;
}

/* Reads, and answers requests while the queue is empty; returns -1 if the connection has ended or is invalid. */
static int serve(struct connection *it, uint32_t events) {
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        reserve(&it->in, 65536);
        ssize_t got = read(it->fd, it->in.data + it->in.length, it->in.room - it->in.length);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            return -1;
        it->in.length += got > 0 ? (size_t)got : 0;
    }
    if (flush(it) < 0)
        return -1;
    ssize_t taken = 1;
    while (taken > 0 && !it->out.length && !it->id && it->in.length) {
        if ((taken = serve_one(it)) > 0)
            drop(&it->in, (size_t)taken);
        if (flush(it) < 0)
            return -1;
    }
    return taken < 0 ? -1 : 0;
}

/* Performs the next step of every slow call that is due. */
static void step(void) {
    double time = now();
    for (struct connection *it = slow, *next; it; it = next) {
        next = it->next_slow;
        if (it->due > time || it->out.length)
            continue;
        it->due += it->pause;
        if (it->step == it->steps) {
            answer_call(it, it->id, (int)strlen(it->id), it->bytes, 1, 1);
            leave_slow(it);
        } else {
            char event[512];
            int size = snprintf(event, sizeof event,
                                "event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\","
                                "\"params\":{\"progressToken\":%s,\"progress\":%zu}}\n\n",
                                it->token, ++it->step);
            print(&it->out, "%x\r\n%s\r\n", size, event);
            it->split = it->out.length;
        }
        if (flush(it) < 0 || (!it->id && serve(it, 0) < 0))
            end(it);
    }
}

int main(int count, char **arguments) {
    if (count < 3 || (strcmp(arguments[2], "json") && strcmp(arguments[2], "sse"))) {
        fprintf(stderr, "usage: %s PORT json|sse [BYTES]\n", arguments[0]);
        return 2;
    }
    sse_answers = strcmp(arguments[2], "sse") == 0;
    if (count > 3)
        default_bytes = strtoul(arguments[3], NULL, 10);
    letters = memset(malloc(MOST_BYTES), 'x', MOST_BYTES);
    signal(SIGPIPE, SIG_IGN);
    raise_limit();
    struct sockaddr_in address = loopback(arguments[1]);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror(arguments[1]);
        return 1;
    }
    without_delay(listener);
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, ready[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int events = epoll_wait(poller, ready, 256, slow ? 5 : -1);
        for (int i = 0; i < events; i++) {
            struct connection *it = ready[i].data.ptr;
            if (it) {
                if (serve(it, ready[i].events) < 0)
                    end(it);
                continue;
            }
            for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;) {
                it = calloc(1, sizeof *it);
                it->fd = without_delay(fd);
                event = (struct epoll_event){.events = EPOLLIN, .data.ptr = it};
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
            }
        }
        step();
    }
}
