/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_door.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <zmq.h>

#include "base/clock.h"
#include "launcher/launch_address.h"
#include "launcher/launch_monitor.h"

#define WEFT_LOG_MODULE "ranks"
#include "base/log.h"

#define ZAP_ENDPOINT  "inproc://zeromq.zap.01"
#define ZAP_DOMAIN    "weft"
#define MINUTE_NS     (60 * WEFT_NS_PER_SECOND)
#define ZAP_FRAMES    7
#define ZAP_MAX_FRAME 256

/* ---- who may come in ------------------------------------------------------------------------- */

typedef struct zap_frame {
    char bytes[ZAP_MAX_FRAME];
    size_t n;
} zap_frame_t;

enum { ZAP_VERSION, ZAP_ID, ZAP_DOMAIN_NAME, ZAP_ADDRESS, ZAP_ROUTE, ZAP_MECHANISM, ZAP_KEY };

/* A request: its frames, those that are there. False: none. */
static bool receive_zap(void *zap, zap_frame_t frames[ZAP_FRAMES], size_t *n_out)
{
    size_t n = 0;
    int more = 1;
    size_t more_size = sizeof(more);
    zap_frame_t rest;
    while (more != 0) {
        zap_frame_t *frame = n < ZAP_FRAMES ? &frames[n] : &rest;
        const int got = zmq_recv(zap, frame->bytes, sizeof(frame->bytes) - 1, ZMQ_DONTWAIT);
        if (got < 0) {
            return false;
        }
        frame->n = (size_t)got < sizeof(frame->bytes) ? (size_t)got : sizeof(frame->bytes) - 1;
        frame->bytes[frame->n] = '\0';
        n++;
        zmq_getsockopt(zap, ZMQ_RCVMORE, &more, &more_size);
    }
    *n_out = n;
    return true;
}

static void answer_zap(void *zap, const zap_frame_t *id, bool may)
{
    const char *const code = may ? "200" : "400";
    const char *const text = may ? "OK" : "not let in";
    zmq_send(zap, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(zap, id->bytes, id->n, ZMQ_SNDMORE);
    zmq_send(zap, code, 3, ZMQ_SNDMORE);
    zmq_send(zap, text, strlen(text), ZMQ_SNDMORE);
    zmq_send(zap, "", 0, ZMQ_SNDMORE);
    zmq_send(zap, "", 0, 0);
}

/* NULL: it may. */
static const char *why_not(const launch_door_t *door, const zap_frame_t frames[ZAP_FRAMES],
                           size_t n)
{
    if (n < ZAP_KEY) {
        return "it does not speak ZeroMQ";
    }
    if (!door->group->has_secret) {
        return launch_address_is_private(frames[ZAP_ADDRESS].bytes)
                   ? NULL
                   : "not a private address, and there is no --secret-file";
    }
    const bool has_key = n == ZAP_FRAMES && frames[ZAP_KEY].n == LAUNCH_KEY_BYTES &&
                         memcmp(frames[ZAP_KEY].bytes, door->group->secret.follower.public_key,
                                LAUNCH_KEY_BYTES) == 0;
    return has_key ? NULL : "its key is not of our secret";
}

void launch_door_answer(launch_door_t *door)
{
    zap_frame_t frames[ZAP_FRAMES];
    size_t n;
    while (receive_zap(door->zap, frames, &n)) {
        const char *reason = why_not(door, frames, n);
        answer_zap(door->zap, &frames[ZAP_ID], reason == NULL);
        if (reason != NULL) {
            launch_door_log(door, n > ZAP_ADDRESS ? frames[ZAP_ADDRESS].bytes : "?", reason);
        }
    }
}

/* ---- who came -------------------------------------------------------------------------------- */

void launch_door_log(launch_door_t *door, const char *address, const char *what)
{
    const uint64_t now = weft_clock_ns();
    if (now - door->minute_ns >= MINUTE_NS) {
        door->minute_ns = now;
        door->n_logged = 0;
    }
    door->n_logged++;
    if (door->n_logged < LAUNCH_STRANGERS_A_MINUTE) {
        weft_log_warn("stranger refused from=%s: %s", address, what);
    } else if (door->n_logged == LAUNCH_STRANGERS_A_MINUTE) {
        weft_log_warn("stranger refused from=%s: %s; no more of them are told for a minute",
                      address, what);
    }
}

static void remember(launch_door_t *door, int fd)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    const uint32_t slot = door->n_accepted++ % LAUNCH_DOOR_CONNECTIONS;
    door->accepted[slot].fd = fd;
    strcpy(door->accepted[slot].address, "?");
    if (getpeername(fd, (struct sockaddr *)&peer, &length) == 0) {
        (void)getnameinfo((struct sockaddr *)&peer, length, door->accepted[slot].address,
                          sizeof(door->accepted[slot].address), NULL, 0, NI_NUMERICHOST);
    }
}

/* The newest of that descriptor. */
static const char *address_of(const launch_door_t *door, int fd)
{
    const uint32_t n =
        door->n_accepted < LAUNCH_DOOR_CONNECTIONS ? door->n_accepted : LAUNCH_DOOR_CONNECTIONS;
    for (uint32_t i = 1; i <= n; i++) {
        const uint32_t slot = (door->n_accepted - i) % LAUNCH_DOOR_CONNECTIONS;
        if (door->accepted[slot].fd == fd) {
            return door->accepted[slot].address;
        }
    }
    return "?";
}

/* A failed handshake is told just before its connection's end, which has the descriptor. */
void launch_door_look(launch_door_t *door)
{
    launch_event_t event;
    while (launch_monitor_next(door->monitor, &event)) {
        switch (event.kind) {
        case ZMQ_EVENT_ACCEPTED:
            remember(door, event.value);
            break;
        case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
            door->failure = launch_monitor_reason(&event);
            break;
        case ZMQ_EVENT_DISCONNECTED:
            if (door->failure != NULL) {
                launch_door_log(door, address_of(door, event.value), door->failure);
                door->failure = NULL;
            }
            door->ended(door->user, event.value);
            break;
        default:
            break;
        }
    }
}

/* ---- opening --------------------------------------------------------------------------------- */

static weft_status_t set_keys(const launch_door_t *door)
{
    const int yes = 1;
    const launch_key_pair_t *pair = &door->group->secret.leader;
    if (zmq_setsockopt(door->router, ZMQ_ZAP_DOMAIN, ZAP_DOMAIN, strlen(ZAP_DOMAIN)) != 0) {
        return WEFT_ERR_INTERNAL;
    }
    return !door->group->has_secret ||
                   (zmq_setsockopt(door->router, ZMQ_CURVE_SERVER, &yes, sizeof(yes)) == 0 &&
                    zmq_setsockopt(door->router, ZMQ_CURVE_SECRETKEY, pair->secret_key,
                                   LAUNCH_KEY_BYTES) == 0)
               ? WEFT_OK
               : WEFT_ERR_INTERNAL;
}

/* The loopback alone when that is where the leader is looked for; else every address. */
static void endpoint_of(const launch_place_t *place, char *text, size_t size)
{
    const char *host = place->leader_host;
    if (strcmp(host, "localhost") == 0) {
        snprintf(text, size, "tcp://127.0.0.1:%u", place->leader_port);
    } else if (launch_address_is_loopback(host)) { /* of 127.0.0.0/8 it may be any */
        snprintf(text, size, strchr(host, ':') != NULL ? "tcp://[%s]:%u" : "tcp://%s:%u", host,
                 place->leader_port);
    } else {
        snprintf(text, size, "tcp://*:%u", place->leader_port);
    }
}

static weft_status_t listen_at(launch_door_t *door)
{
    launch_group_t *group = door->group;
    char endpoint[128];
    endpoint_of(&group->place, endpoint, sizeof(endpoint));
    if (zmq_bind(door->router, endpoint) != 0) {
        const weft_status_t status = errno == EADDRINUSE ? WEFT_ERR_IN_USE : WEFT_ERR_IO;
        launch_group_end(group, status, "rank 0 cannot listen on %s: %s", endpoint,
                         zmq_strerror(errno));
        return status;
    }
    weft_log_info("rank 0 of %u waits for the others on %s; %s", group->place.size, endpoint,
                  group->has_secret ? "they need the secret (CURVE)"
                                    : "without a --secret-file, for private addresses alone");
    return WEFT_OK;
}

static weft_status_t open_sockets(launch_door_t *door)
{
    void *context = door->group->context;
    const int backlog = 1024; /* all ranks at once */
    door->zap = zmq_socket(context, ZMQ_REP);
    if (door->zap == NULL || zmq_bind(door->zap, ZAP_ENDPOINT) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    door->router = zmq_socket(context, ZMQ_ROUTER);
    if (door->router == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = launch_group_set_up_socket(door->group, door->router);
    if (status == WEFT_OK) {
        (void)zmq_setsockopt(door->router, ZMQ_BACKLOG, &backlog, sizeof(backlog));
        status = set_keys(door);
    }
    return status < 0 ? status : launch_monitor_open(context, door->router, &door->monitor);
}

weft_status_t launch_door_open(launch_group_t *group, void (*ended)(void *user, int fd), void *user,
                               launch_door_t *door, void **router_out)
{
    *door = (launch_door_t){.group = group, .ended = ended, .user = user};
    weft_status_t status = open_sockets(door);
    if (status < 0) {
        launch_group_end(group, status, "rank 0 cannot make its sockets: %s", zmq_strerror(errno));
        return status;
    }
    status = listen_at(door);
    *router_out = door->router;
    return status;
}

void launch_door_close(launch_door_t *door)
{
    launch_monitor_close(door->router, door->monitor);
    if (door->router != NULL) {
        zmq_close(door->router);
    }
    if (door->zap != NULL) {
        zmq_close(door->zap);
    }
}
