/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_event_subscriber.h"

#include <errno.h>
#include <string.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/events/kv_event_message.h"

#define REPLAY_IDLE_NS (2 * WEFT_NS_PER_SECOND) /* without a reply: given up */
#define RECEIVE_HWM    100000
#define MAX_FRAMES     4

/* One message: a live one has three frames, a replayed one an empty frame more. */
typedef struct frames {
    zmq_msg_t items[MAX_FRAMES];
    uint32_t n; /* in items, initialized */
    bool has_more;
} frames_t;

struct kv_event_subscriber {
    void *context;
    void *live;
    void *replay;  /* or NULL */
    void *monitor; /* tells of connections of live */
    char *replay_endpoint;
    bool is_connected;
    bool was_connected;

    bool has_next;
    uint64_t next; /* number of the batch to hand out */
    bool has_live;
    uint64_t last_live; /* number of the last live batch, handed out or not */
    bool is_restart;    /* to be said with the next batch */

    bool is_replaying;
    uint64_t replay_deadline;
    uint64_t replays;
    uint64_t unanswered;
    frames_t held; /* the live message that showed a gap; n 0: none */
    frames_t current;
    kv_event_batch_t batch; /* of current */
};

/* ---- frames ---------------------------------------------------------------------------------- */

static void drop_frames(frames_t *frames)
{
    for (uint32_t i = 0; i < frames->n; i++) {
        zmq_msg_close(&frames->items[i]);
    }
    *frames = (frames_t){.n = 0};
}

static void move_frames(frames_t *to, frames_t *from)
{
    drop_frames(to);
    for (uint32_t i = 0; i < from->n; i++) {
        zmq_msg_init(&to->items[i]);
        zmq_msg_move(&to->items[i], &from->items[i]);
    }
    to->n = from->n;
    to->has_more = from->has_more;
    drop_frames(from);
}

/* Does not wait. false: nothing is there. */
static bool receive(void *socket, frames_t *frames)
{
    bool has_more = true;
    while (has_more) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            return false;
        }
        has_more = zmq_msg_more(&frame) != 0;
        if (frames->n < MAX_FRAMES) {
            zmq_msg_init(&frames->items[frames->n]);
            zmq_msg_move(&frames->items[frames->n++], &frame);
        } else {
            frames->has_more = true;
        }
        zmq_msg_close(&frame);
    }
    return true;
}

/* Sequence and payload are the last two frames. */
static bool has_sequence(frames_t *frames)
{
    return !frames->has_more && frames->n >= 3 && zmq_msg_size(&frames->items[frames->n - 2]) == 8;
}

static uint64_t sequence_of(frames_t *frames)
{
    return kv_event_sequence_decode(zmq_msg_data(&frames->items[frames->n - 2]));
}

static zmq_msg_t *payload_of(frames_t *frames)
{
    return &frames->items[frames->n - 1];
}

/* ---- sockets --------------------------------------------------------------------------------- */

static weft_status_t cannot(weft_diag_t *diag, const char *what, const char *endpoint)
{
    const int error = errno;
    const bool is_wrong = error == EINVAL || error == EPROTONOSUPPORT || error == ENODEV;
    return weft_diag(diag, is_wrong ? WEFT_ERR_INVALID : WEFT_ERR_IO, "cannot %s %s: %s%s", what,
                     endpoint, zmq_strerror(error),
                     is_wrong ? " (an endpoint looks like tcp://host:5557)" : "");
}

static void *make_socket(void *context, int type, const char *endpoint)
{
    const int zero = 0;
    const int one = 1;
    const int hwm = RECEIVE_HWM;
    void *socket = zmq_socket(context, type);
    if (socket != NULL) {
        zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof(zero));
        zmq_setsockopt(socket, ZMQ_RCVHWM, &hwm, sizeof(hwm));
        if (strchr(endpoint, '[') != NULL) {
            zmq_setsockopt(socket, ZMQ_IPV6, &one, sizeof(one));
        }
    }
    return socket;
}

static weft_status_t watch_connections(kv_event_subscriber_t *subscriber)
{
    static const char name[] = "inproc://connections-of-live";
    const int events = ZMQ_EVENT_CONNECTED | ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED;
    subscriber->monitor = zmq_socket(subscriber->context, ZMQ_PAIR);
    return subscriber->monitor != NULL && zmq_socket_monitor(subscriber->live, name, events) == 0 &&
                   zmq_connect(subscriber->monitor, name) == 0
               ? WEFT_OK
               : WEFT_ERR_NO_MEMORY;
}

static weft_status_t open_live(kv_event_subscriber_t *subscriber,
                               const kv_event_subscriber_config_t *config, weft_diag_t *diag)
{
    const char *topic = config->topic == NULL ? "" : config->topic;
    subscriber->live = make_socket(subscriber->context, ZMQ_SUB, config->endpoint);
    if (subscriber->live == NULL || watch_connections(subscriber) < 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    zmq_setsockopt(subscriber->live, ZMQ_SUBSCRIBE, topic, strlen(topic));
    if (strchr(config->endpoint, '*') != NULL) {
        return zmq_bind(subscriber->live, config->endpoint) == 0
                   ? WEFT_OK
                   : cannot(diag, "bind", config->endpoint);
    }
    return zmq_connect(subscriber->live, config->endpoint) == 0
               ? WEFT_OK
               : cannot(diag, "connect to", config->endpoint);
}

/* A new socket: a reply to an older request that comes late finds nobody. */
static weft_status_t open_replay(kv_event_subscriber_t *subscriber, weft_diag_t *diag)
{
    const char *endpoint = subscriber->replay_endpoint;
    if (subscriber->replay != NULL) {
        zmq_close(subscriber->replay);
    }
    subscriber->replay = make_socket(subscriber->context, ZMQ_DEALER, endpoint);
    if (subscriber->replay == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    return zmq_connect(subscriber->replay, endpoint) == 0 ? WEFT_OK
                                                          : cannot(diag, "connect to", endpoint);
}

/* ---- replay ---------------------------------------------------------------------------------- */

static void put_off_deadline(kv_event_subscriber_t *subscriber)
{
    subscriber->replay_deadline = weft_clock_ns() + REPLAY_IDLE_NS;
}

/* Asks for all from next on. */
static weft_status_t ask(kv_event_subscriber_t *subscriber, weft_diag_t *diag)
{
    uint8_t start[8];
    const weft_status_t status = open_replay(subscriber, diag);
    if (status < 0) {
        return status;
    }
    kv_event_sequence_encode(subscriber->next, start);
    zmq_send(subscriber->replay, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(subscriber->replay, start, sizeof(start), ZMQ_DONTWAIT);
    subscriber->is_replaying = true;
    subscriber->replays++;
    put_off_deadline(subscriber);
    return WEFT_OK;
}

static weft_status_t begin_anew(kv_event_subscriber_t *subscriber, weft_diag_t *diag)
{
    drop_frames(&subscriber->held);
    subscriber->has_next = true;
    subscriber->next = 0;
    subscriber->is_restart = true;
    return subscriber->replay_endpoint == NULL ? WEFT_OK : ask(subscriber, diag);
}

/* ---- handing out ----------------------------------------------------------------------------- */

/* frames become current; their batch is news, or what is wrong with them is. */
static weft_status_t hand_out(kv_event_subscriber_t *subscriber, frames_t *frames, bool is_replayed,
                              weft_diag_t *diag, kv_event_news_t *news_out)
{
    kv_event_batch_fini(&subscriber->batch);
    move_frames(&subscriber->current, frames);
    frames = &subscriber->current;
    zmq_msg_t *topic = &frames->items[frames->n - 3];
    zmq_msg_t *payload = payload_of(frames);
    const uint64_t sequence = sequence_of(frames);
    const uint64_t missed = subscriber->has_next ? sequence - subscriber->next : sequence;
    subscriber->has_next = true;
    subscriber->next = sequence + 1;
    const weft_status_t status = kv_event_batch_decode(zmq_msg_data(payload), zmq_msg_size(payload),
                                                       diag, &subscriber->batch);
    if (status < 0) {
        weft_diag_prefix(diag, "batch %llu", (unsigned long long)sequence);
        return status;
    }
    const kv_event_batch_t *batch = &subscriber->batch;
    const bool stands_for_all = batch->n_events > 0 && batch->events[0].kind == KV_EVENT_CLEARED;
    *news_out = (kv_event_news_t){
        .sequence = sequence,
        .is_replayed = is_replayed,
        .is_restart = subscriber->is_restart,
        .missed = stands_for_all ? 0 : missed,
        .topic = {zmq_msg_data(topic), (uint32_t)zmq_msg_size(topic)},
        .batch = batch,
    };
    subscriber->is_restart = false;
    return WEFT_OK;
}

/* WEFT_PENDING: it is not the turn of this message, or it was handed out before. */
static weft_status_t take_live(kv_event_subscriber_t *subscriber, frames_t *frames,
                               weft_diag_t *diag, kv_event_news_t *news_out)
{
    const uint64_t sequence = sequence_of(frames);
    weft_status_t status = WEFT_PENDING;
    if (subscriber->has_live && sequence <= subscriber->last_live) {
        status = begin_anew(subscriber, diag);
        if (status < 0) {
            return status;
        }
    }
    subscriber->has_live = true;
    subscriber->last_live = sequence;
    if (subscriber->has_next && sequence < subscriber->next) {
        return WEFT_PENDING;
    }
    const bool has_gap = subscriber->has_next && sequence > subscriber->next;
    if (has_gap && subscriber->replay_endpoint != NULL && !subscriber->is_replaying) {
        status = ask(subscriber, diag);
        if (status < 0) {
            return status;
        }
    }
    if (subscriber->is_replaying) {
        move_frames(&subscriber->held, frames);
        return WEFT_PENDING;
    }
    return hand_out(subscriber, frames, false, diag, news_out);
}

/* The replay is over, or given up: now it is the turn of the message that showed the gap. */
static weft_status_t end_replay(kv_event_subscriber_t *subscriber, weft_diag_t *diag,
                                kv_event_news_t *news_out)
{
    subscriber->is_replaying = false;
    if (subscriber->held.n == 0 || sequence_of(&subscriber->held) < subscriber->next) {
        drop_frames(&subscriber->held);
        return WEFT_PENDING;
    }
    return hand_out(subscriber, &subscriber->held, false, diag, news_out);
}

static weft_status_t take_reply(kv_event_subscriber_t *subscriber, frames_t *frames,
                                weft_diag_t *diag, kv_event_news_t *news_out)
{
    const uint64_t sequence = sequence_of(frames);
    put_off_deadline(subscriber);
    if (sequence == UINT64_MAX) {
        return end_replay(subscriber, diag, news_out);
    }
    return sequence < subscriber->next ? WEFT_PENDING
                                       : hand_out(subscriber, frames, true, diag, news_out);
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* A connection that is back may lead to another process: with a replay endpoint all is read anew.
 * What was still queued is from the old one, or part of the replay. */
static weft_status_t note_connections(kv_event_subscriber_t *subscriber, weft_diag_t *diag)
{
    frames_t frames = {.n = 0};
    bool is_back = false;
    while (receive(subscriber->monitor, &frames)) {
        uint16_t event = 0;
        if (frames.n > 0 && zmq_msg_size(&frames.items[0]) >= sizeof(event)) {
            memcpy(&event, zmq_msg_data(&frames.items[0]), sizeof(event));
        }
        subscriber->is_connected = event != ZMQ_EVENT_DISCONNECTED;
        is_back |= subscriber->is_connected && subscriber->was_connected;
        subscriber->was_connected |= subscriber->is_connected;
        drop_frames(&frames);
    }
    drop_frames(&frames);
    if (!is_back || subscriber->replay_endpoint == NULL) {
        return WEFT_OK;
    }
    while (receive(subscriber->live, &frames)) {
        drop_frames(&frames);
    }
    drop_frames(&frames);
    subscriber->has_live = false;
    return begin_anew(subscriber, diag);
}

/* While a replay runs, live messages wait in their socket, but for the one that is held. */
static weft_status_t wait(kv_event_subscriber_t *subscriber, uint64_t deadline)
{
    const uint64_t now = weft_clock_ns();
    if (subscriber->is_replaying && subscriber->replay_deadline < deadline) {
        deadline = subscriber->replay_deadline;
    }
    const long ms = deadline == UINT64_MAX ? -1
                    : deadline <= now      ? 0
                                           : (long)((deadline - now) / WEFT_NS_PER_MS) + 1;
    zmq_pollitem_t items[] = {
        {.socket = subscriber->monitor, .events = ZMQ_POLLIN},
        {.socket = subscriber->is_replaying ? subscriber->replay : subscriber->live,
         .events = ZMQ_POLLIN}};
    return zmq_poll(items, 2, ms) < 0 && errno == EINTR ? WEFT_ERR_CANCELLED : WEFT_OK;
}

/* One message that is there, if any. WEFT_ERR_NOT_FOUND: none is. */
static weft_status_t step(kv_event_subscriber_t *subscriber, weft_diag_t *diag,
                          kv_event_news_t *news_out)
{
    frames_t frames = {.n = 0};
    weft_status_t status = note_connections(subscriber, diag);
    if (status < 0) {
        return status;
    }
    const bool is_replaying = subscriber->is_replaying;
    if (!receive(is_replaying ? subscriber->replay : subscriber->live, &frames)) {
        drop_frames(&frames);
        if (is_replaying && weft_clock_ns() >= subscriber->replay_deadline) {
            subscriber->unanswered++;
            return end_replay(subscriber, diag, news_out);
        }
        return WEFT_ERR_NOT_FOUND;
    }
    if (!has_sequence(&frames)) {
        status = weft_diag(diag, WEFT_ERR_MALFORMED, "a message of %u%s frames without a number",
                           frames.n, frames.has_more ? " and more" : "");
    } else if (is_replaying) {
        status = take_reply(subscriber, &frames, diag, news_out);
    } else {
        status = take_live(subscriber, &frames, diag, news_out);
    }
    drop_frames(&frames);
    return status;
}

weft_status_t kv_event_subscriber_next(kv_event_subscriber_t *subscriber, int timeout_ms,
                                       weft_diag_t *diag, kv_event_news_t *news_out)
{
    const uint64_t deadline =
        timeout_ms < 0 ? UINT64_MAX : weft_clock_ns() + (uint64_t)timeout_ms * WEFT_NS_PER_MS;
    for (;;) {
        weft_status_t status = step(subscriber, diag, news_out);
        if (status != WEFT_PENDING && status != WEFT_ERR_NOT_FOUND) {
            return status;
        }
        if (status == WEFT_ERR_NOT_FOUND) {
            if (weft_clock_ns() >= deadline) {
                return WEFT_ERR_TIMEOUT;
            }
            status = wait(subscriber, deadline);
            if (status < 0) {
                return status;
            }
        }
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

static weft_status_t open_all(kv_event_subscriber_t *subscriber,
                              const kv_event_subscriber_config_t *config, weft_diag_t *diag)
{
    subscriber->context = zmq_ctx_new();
    if (subscriber->context == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = open_live(subscriber, config, diag);
    if (status < 0 || config->replay_endpoint == NULL) {
        return status;
    }
    subscriber->replay_endpoint = weft_strdup(config->replay_endpoint, "kv_event_subscriber.text");
    if (subscriber->replay_endpoint == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    subscriber->has_next = true;
    subscriber->next = config->from;
    return ask(subscriber, diag);
}

weft_status_t kv_event_subscriber_create(const kv_event_subscriber_config_t *config,
                                         weft_diag_t *diag, kv_event_subscriber_t **subscriber_out)
{
    kv_event_subscriber_t *subscriber = weft_zalloc(sizeof(*subscriber), "kv_event_subscriber");
    if (subscriber == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = open_all(subscriber, config, diag);
    if (status < 0) {
        kv_event_subscriber_destroy(subscriber);
        return status;
    }
    *subscriber_out = subscriber;
    return WEFT_OK;
}

void kv_event_subscriber_destroy(kv_event_subscriber_t *subscriber)
{
    if (subscriber == NULL) {
        return;
    }
    void *const sockets[] = {subscriber->monitor, subscriber->live, subscriber->replay};
    drop_frames(&subscriber->held);
    kv_event_batch_fini(&subscriber->batch);
    drop_frames(&subscriber->current);
    for (size_t i = 0; i < sizeof(sockets) / sizeof(sockets[0]); i++) {
        if (sockets[i] != NULL) {
            zmq_close(sockets[i]);
        }
    }
    if (subscriber->context != NULL) {
        zmq_ctx_term(subscriber->context);
    }
    weft_free(subscriber->replay_endpoint);
    weft_free(subscriber);
}

bool kv_event_subscriber_is_connected(const kv_event_subscriber_t *subscriber)
{
    return subscriber->is_connected;
}

uint64_t kv_event_subscriber_replays(const kv_event_subscriber_t *subscriber)
{
    return subscriber->replays;
}

uint64_t kv_event_subscriber_unanswered(const kv_event_subscriber_t *subscriber)
{
    return subscriber->unanswered;
}
