/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote_lines.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/events/kv_gate.h"
#include "kvstore/remote/kv_remote_fabric.h"

#define MAX_UNREAD      256 /* news; peers that say more wait */
#define HEARTBEAT_MS    2000
#define HEARTBEAT_LIMIT 6000

/* Something to say: a lookup, or for n 0 a hello. */
typedef struct saying {
    struct saying *next;
    uint32_t line;
    uint64_t number;
    uint32_t n;
    kv_hash_t hashes[];
} saying_t;

typedef struct line {
    char name[KV_REMOTE_MAX_ENDPOINT];
    char endpoint[KV_REMOTE_MAX_ENDPOINT];
    void *socket; /* the thread's; NULL: not yet */
} line_t;

struct kv_remote_lines {
    kv_remote_facts_t facts;
    void (*wake)(void *user);
    void *user;
    line_t lines[KV_REMOTE_MAX_PEERS];
    uint32_t n;
    void *context;
    kv_gate_t gate;
    bool has_thread;
    pthread_t thread;
    pthread_mutex_t lock;
    saying_t *sayings; /* guarded by lock, so for all below; the oldest first */
    saying_t **sayings_end;
    kv_remote_news_t *news;
    kv_remote_news_t **news_end;
    atomic_uint n_news; /* read without it, too: who is woken for news sees that there are some */
    uint64_t wake_ns;
    bool is_stopping;
};

/* ---- the thread ------------------------------------------------------------------------------ */

static void reconnect(kv_remote_lines_t *lines, line_t *line)
{
    const int zero = 0;
    const int is_v6 = strchr(line->endpoint, '[') != NULL;
    const int heartbeat = HEARTBEAT_MS;
    const int limit = HEARTBEAT_LIMIT;
    const int64_t max_bytes = (int64_t)KV_REMOTE_MESSAGE_MAX;
    if (line->socket != NULL) {
        zmq_close(line->socket);
    }
    line->socket = zmq_socket(lines->context, ZMQ_DEALER);
    if (line->socket == NULL) {
        return; /* out of descriptors: as a peer that does not answer */
    }
    zmq_setsockopt(line->socket, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(line->socket, ZMQ_IPV6, &is_v6, sizeof(is_v6));
    zmq_setsockopt(line->socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof(max_bytes));
    zmq_setsockopt(line->socket, ZMQ_HEARTBEAT_IVL, &heartbeat, sizeof(heartbeat));
    zmq_setsockopt(line->socket, ZMQ_HEARTBEAT_TIMEOUT, &limit, sizeof(limit));
    (void)zmq_connect(line->socket, line->endpoint);
}

static void say(kv_remote_lines_t *lines, const saying_t *saying)
{
    line_t *line = &lines->lines[saying->line];
    if (saying->n == 0) {
        reconnect(lines, line);
        if (line->socket != NULL) {
            (void)kv_remote_facts_send(&lines->facts, line->socket);
        }
    } else if (line->socket != NULL) {
        Weft__Remote__Lookup lookup = WEFT__REMOTE__LOOKUP__INIT;
        lookup.number = saying->number;
        lookup.hashes.data = (uint8_t *)saying->hashes;
        lookup.hashes.len = saying->n * sizeof(kv_hash_t);
        const kv_remote_message_t message = KV_REMOTE_MESSAGE(LOOKUP, lookup, &lookup);
        (void)kv_remote_message_send(line->socket, NULL, 0, &message);
    }
}

static bool say_next(kv_remote_lines_t *lines)
{
    pthread_mutex_lock(&lines->lock);
    saying_t *saying = lines->sayings;
    if (saying != NULL) {
        lines->sayings = saying->next;
        if (lines->sayings == NULL) {
            lines->sayings_end = &lines->sayings;
        }
    }
    pthread_mutex_unlock(&lines->lock);
    if (saying == NULL) {
        return false;
    }
    say(lines, saying);
    weft_free(saying);
    return true;
}

static void deliver(kv_remote_lines_t *lines, uint32_t line, kv_remote_message_t *message)
{
    kv_remote_news_t *news = weft_zalloc(sizeof(*news), "kv_remote_lines.news");
    if (news == NULL) {
        kv_remote_message_free(message); /* as one that was lost */
        return;
    }
    *news = (kv_remote_news_t){.line = line, .at_ns = weft_clock_ns(), .message = message};
    pthread_mutex_lock(&lines->lock);
    *lines->news_end = news;
    lines->news_end = &news->next;
    lines->n_news++;
    pthread_mutex_unlock(&lines->lock);
    lines->wake(lines->user);
}

static bool has_more(void *socket)
{
    int more = 0;
    size_t size = sizeof(more);
    zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size);
    return more != 0;
}

/* One message of one line; false: there is none. */
static bool hear_one(kv_remote_lines_t *lines, uint32_t i)
{
    void *socket = lines->lines[i].socket;
    zmq_msg_t part;
    kv_remote_message_t *message = NULL;
    zmq_msg_init(&part);
    if (socket == NULL || zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&part);
        return false;
    }
    const bool is_whole = !has_more(socket);
    if (is_whole) {
        (void)kv_remote_message_decode(zmq_msg_data(&part), zmq_msg_size(&part), &message);
    }
    while (has_more(socket) && zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) >= 0) {
        continue;
    }
    zmq_msg_close(&part);
    deliver(lines, i, message);
    return true;
}

static bool may_hear(kv_remote_lines_t *lines)
{
    pthread_mutex_lock(&lines->lock);
    const bool may = lines->n_news < MAX_UNREAD;
    pthread_mutex_unlock(&lines->lock);
    return may;
}

static bool hear(kv_remote_lines_t *lines)
{
    bool has_heard = false;
    for (uint32_t i = 0; i < lines->n && may_hear(lines); i++) {
        has_heard |= hear_one(lines, i);
    }
    return has_heard;
}

/* True: it was time. */
static bool wake_when_due(kv_remote_lines_t *lines, uint64_t *next_out)
{
    pthread_mutex_lock(&lines->lock);
    const bool is_due = lines->wake_ns <= weft_clock_ns();
    if (is_due) {
        lines->wake_ns = UINT64_MAX;
    }
    *next_out = lines->wake_ns;
    pthread_mutex_unlock(&lines->lock);
    if (is_due) {
        lines->wake(lines->user);
    }
    return is_due;
}

static bool has_errand(kv_remote_lines_t *lines, uint64_t next_ns)
{
    pthread_mutex_lock(&lines->lock);
    const bool has = lines->is_stopping || lines->sayings != NULL || lines->wake_ns < next_ns;
    pthread_mutex_unlock(&lines->lock);
    return has;
}

static long timeout_until(uint64_t time_ns)
{
    const uint64_t now = weft_clock_ns();
    if (time_ns == UINT64_MAX) {
        return -1;
    }
    const uint64_t ms = time_ns <= now ? 0 : (time_ns - now) / WEFT_NS_PER_MS + 1;
    return ms > 60000 ? 60000 : (long)ms;
}

static void wait(kv_remote_lines_t *lines, uint64_t next_ns)
{
    zmq_pollitem_t items[1 + KV_REMOTE_MAX_PEERS];
    int n = 0;
    items[n++] = (zmq_pollitem_t){.fd = lines->gate.fd, .events = ZMQ_POLLIN};
    for (uint32_t i = 0; i < lines->n && may_hear(lines); i++) {
        if (lines->lines[i].socket != NULL) {
            items[n++] = (zmq_pollitem_t){.socket = lines->lines[i].socket, .events = ZMQ_POLLIN};
        }
    }
    kv_gate_announce(&lines->gate);
    if (!has_errand(lines, next_ns)) {
        zmq_poll(items, n, timeout_until(next_ns));
    }
    kv_gate_leave(&lines->gate);
}

static bool is_stopping(kv_remote_lines_t *lines)
{
    pthread_mutex_lock(&lines->lock);
    const bool is_so = lines->is_stopping;
    pthread_mutex_unlock(&lines->lock);
    return is_so;
}

static void *run(void *user)
{
    kv_remote_lines_t *lines = user;
    uint64_t next_ns = UINT64_MAX;
    while (!is_stopping(lines)) {
        const bool was_due = wake_when_due(lines, &next_ns);
        const bool has_said = say_next(lines);
        if (!hear(lines) && !has_said && !was_due) {
            wait(lines, next_ns);
        }
    }
    return NULL;
}

/* ---- starting -------------------------------------------------------------------------------- */

static weft_status_t add_line(kv_remote_lines_t *lines, const char *text, size_t length,
                              weft_diag_t *diag)
{
    char host[KV_REMOTE_MAX_ENDPOINT];
    if (lines->n == KV_REMOTE_MAX_PEERS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "more than %d peers", KV_REMOTE_MAX_PEERS);
    }
    line_t *line = &lines->lines[lines->n];
    const weft_status_t status = kv_remote_endpoint(text, length, 0, diag, line->endpoint, host);
    if (status < 0) {
        return status;
    }
    if (host[0] == '\0' || strcmp(strrchr(line->endpoint, ':'), ":0") == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%.*s: nobody is to be reached there", (int)length,
                         text);
    }
    memcpy(line->name, text, length);
    lines->n++;
    return WEFT_OK;
}

static weft_status_t parse(kv_remote_lines_t *lines, const char *peers, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    while (status >= 0 && *peers != '\0') {
        const size_t length = strcspn(peers, ",");
        if (length > 0) {
            status = add_line(lines, peers, length, diag);
        }
        peers += length + (peers[length] == ',');
    }
    return status;
}

weft_status_t kv_remote_lines_check(const char *peers, weft_diag_t *diag)
{
    kv_remote_lines_t *lines = weft_zalloc(sizeof(*lines), "kv_remote_lines");
    const weft_status_t status = lines == NULL ? WEFT_ERR_NO_MEMORY : parse(lines, peers, diag);
    weft_free(lines);
    return status;
}

weft_status_t kv_remote_lines_create(const kv_remote_lines_config_t *config, weft_diag_t *diag,
                                     kv_remote_lines_t **lines_out)
{
    kv_remote_lines_t *lines = weft_zalloc(sizeof(*lines), "kv_remote_lines");
    if (lines == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    lines->facts = *config->facts;
    lines->wake = config->wake;
    lines->user = config->user;
    lines->gate.fd = -1;
    lines->wake_ns = UINT64_MAX;
    lines->sayings_end = &lines->sayings;
    lines->news_end = &lines->news;
    pthread_mutex_init(&lines->lock, NULL);
    weft_status_t status = parse(lines, config->peers, diag);
    if (status >= 0) {
        status = kv_gate_open(&lines->gate);
    }
    if (status >= 0) {
        lines->context = zmq_ctx_new();
        lines->has_thread =
            lines->context != NULL && pthread_create(&lines->thread, NULL, run, lines) == 0;
        status = lines->has_thread ? WEFT_OK : weft_diag(diag, WEFT_ERR_NO_MEMORY, "no thread");
    }
    if (status < 0) {
        kv_remote_lines_destroy(lines);
        return status;
    }
    pthread_setname_np(lines->thread, "kv-remote");
    *lines_out = lines;
    return WEFT_OK;
}

static void stop(kv_remote_lines_t *lines)
{
    pthread_mutex_lock(&lines->lock);
    lines->is_stopping = true;
    pthread_mutex_unlock(&lines->lock);
    kv_gate_wake(&lines->gate);
    pthread_join(lines->thread, NULL);
}

void kv_remote_lines_destroy(kv_remote_lines_t *lines)
{
    if (lines == NULL) {
        return;
    }
    if (lines->has_thread) {
        stop(lines);
    }
    for (uint32_t i = 0; i < lines->n; i++) {
        if (lines->lines[i].socket != NULL) {
            zmq_close(lines->lines[i].socket);
        }
    }
    if (lines->context != NULL) {
        zmq_ctx_term(lines->context);
    }
    while (lines->sayings != NULL) {
        saying_t *saying = lines->sayings;
        lines->sayings = saying->next;
        weft_free(saying);
    }
    while (lines->news != NULL) {
        kv_remote_news_free(kv_remote_lines_next(lines));
    }
    kv_gate_close(&lines->gate);
    pthread_mutex_destroy(&lines->lock);
    weft_free(lines);
}

uint32_t kv_remote_lines_count(const kv_remote_lines_t *lines)
{
    return lines->n;
}

const char *kv_remote_lines_name(const kv_remote_lines_t *lines, uint32_t line)
{
    return lines->lines[line].name;
}

/* ---- what the caller says and hears ---------------------------------------------------------- */

static weft_status_t post(kv_remote_lines_t *lines, uint32_t line, uint64_t number,
                          const kv_hash_t *hashes, uint32_t n)
{
    saying_t *saying = weft_zalloc(sizeof(*saying) + n * sizeof(*hashes), "kv_remote_lines.saying");
    if (saying == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    saying->line = line;
    saying->number = number;
    saying->n = n;
    if (n > 0) {
        memcpy(saying->hashes, hashes, n * sizeof(*hashes));
    }
    pthread_mutex_lock(&lines->lock);
    *lines->sayings_end = saying;
    lines->sayings_end = &saying->next;
    pthread_mutex_unlock(&lines->lock);
    kv_gate_wake(&lines->gate);
    return WEFT_OK;
}

weft_status_t kv_remote_lines_greet(kv_remote_lines_t *lines, uint32_t line)
{
    return post(lines, line, 0, NULL, 0);
}

weft_status_t kv_remote_lines_ask(kv_remote_lines_t *lines, uint32_t line, uint64_t number,
                                  const kv_hash_t *hashes, uint32_t n)
{
    assert(n > 0 && n <= KV_REMOTE_MAX_HASHES);
    return post(lines, line, number, hashes, n);
}

kv_remote_news_t *kv_remote_lines_next(kv_remote_lines_t *lines)
{
    if (atomic_load(&lines->n_news) == 0) {
        return NULL; /* as nearly always, and without the lock */
    }
    pthread_mutex_lock(&lines->lock);
    kv_remote_news_t *news = lines->news;
    if (news != NULL) {
        lines->news = news->next;
        lines->news_end = lines->news == NULL ? &lines->news : lines->news_end;
        lines->n_news--;
    }
    const bool was_full = news != NULL && lines->n_news == MAX_UNREAD - 1;
    pthread_mutex_unlock(&lines->lock);
    if (was_full) {
        kv_gate_wake(&lines->gate);
    }
    return news;
}

void kv_remote_news_free(kv_remote_news_t *news)
{
    if (news != NULL) {
        kv_remote_message_free(news->message);
        weft_free(news);
    }
}

void kv_remote_lines_wake_at(kv_remote_lines_t *lines, uint64_t time_ns)
{
    pthread_mutex_lock(&lines->lock);
    const bool is_earlier = time_ns < lines->wake_ns;
    lines->wake_ns = time_ns;
    pthread_mutex_unlock(&lines->lock);
    if (is_earlier) { /* later: the thread wakes once for nothing */
        kv_gate_wake(&lines->gate);
    }
}
