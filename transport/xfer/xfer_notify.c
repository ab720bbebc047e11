/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_peer_priv.h"

#define WEFT_LOG_MODULE "xfer"
#include "base/log.h"

/* What nobody has taken yet may hold so much; what comes then is dropped. */
#define MAX_UNREAD_BYTES ((size_t)64 << 20)

typedef struct note {
    xfer_notification_t public;
    char bytes[]; /* the peer's name, terminated, then the data */
} note_t;

/* ---- arriving -------------------------------------------------------------------------------- */

static size_t held_bytes(const xfer_notification_t *notification)
{
    return sizeof(note_t) + strlen(notification->peer) + 1 + notification->bytes;
}

static note_t *note_create(const char *peer, const void *data, size_t bytes)
{
    const size_t name_bytes = strlen(peer) + 1;
    note_t *note = weft_alloc(sizeof(*note) + name_bytes + bytes, "xfer.notification");
    if (note == NULL) {
        return NULL;
    }
    memcpy(note->bytes, peer, name_bytes);
    if (bytes > 0) {
        memcpy(note->bytes + name_bytes, data, bytes);
    }
    note->public = (xfer_notification_t){
        .peer = note->bytes, .data = note->bytes + name_bytes, .bytes = bytes};
    return note;
}

/* False: there are too many. */
static bool queue_note(xfer_agent_t *agent, note_t *note)
{
    const size_t bytes = held_bytes(&note->public);
    pthread_mutex_lock(&agent->notes_lock);
    const bool has_room = bytes <= MAX_UNREAD_BYTES - agent->notes_bytes;
    if (has_room) {
        *agent->notes_end = &note->public;
        agent->notes_end = &note->public.next;
        agent->notes_bytes += bytes;
    }
    pthread_mutex_unlock(&agent->notes_lock);
    return has_room;
}

/* A line for the first, the second, the fourth and so on: who does not read may be flooded. */
static void count_dropped(xfer_agent_t *agent, const char *peer, size_t bytes)
{
    const uint64_t n = ++agent->notes_dropped;
    if ((n & (n - 1)) == 0) {
        weft_log_warn("peer=%s notification dropped, too many are unread: bytes=%zu dropped=%llu",
                      peer, bytes, (unsigned long long)n);
    }
}

void xfer_notify_arrived(void *user, const char *peer, const void *data, size_t bytes)
{
    xfer_way_t *way = user;
    xfer_agent_t *agent = way->agent;
    way->stats.notifications_received++;
    note_t *note = note_create(peer, data, bytes);
    if (note == NULL || !queue_note(agent, note)) {
        weft_free(note);
        count_dropped(agent, peer, bytes);
        return;
    }
    agent->has_event = agent->has_event || agent->on_event != NULL;
}

/* ---- taking ---------------------------------------------------------------------------------- */

xfer_notification_t *xfer_next_notification(xfer_agent_t *agent)
{
    pthread_mutex_lock(&agent->notes_lock);
    xfer_notification_t *notification = agent->notes;
    if (notification != NULL) {
        agent->notes = notification->next;
        if (agent->notes == NULL) {
            agent->notes_end = &agent->notes;
        }
        agent->notes_bytes -= held_bytes(notification);
        notification->next = NULL;
    }
    pthread_mutex_unlock(&agent->notes_lock);
    return notification;
}

void xfer_notification_free(xfer_notification_t *notification)
{
    weft_free(notification); /* the note's first field */
}

void xfer_notify_fini(xfer_agent_t *agent)
{
    xfer_notification_t *notification;
    while ((notification = xfer_next_notification(agent)) != NULL) {
        xfer_notification_free(notification);
    }
}

/* ---- sending --------------------------------------------------------------------------------- */

static weft_status_t notify_by(xfer_route_t *route, const void *data, size_t bytes)
{
    if ((route->way->backend->caps & XFER_CAP_NOTIFY) == 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    weft_status_t status = xfer_route_open(route);
    if (status == WEFT_OK) {
        status = route->way->backend->notify(route->link, data, bytes);
    }
    route->way->stats.notifications_sent += status == WEFT_OK;
    return status;
}

/* By the first way that can, those that were lost last time behind the others. */
static weft_status_t notify_peer(xfer_peer_t *peer, const void *data, size_t bytes)
{
    weft_status_t status = WEFT_ERR_PEER_GONE;
    for (int is_doubtful = 0; is_doubtful < 2; is_doubtful++) {
        for (size_t w = 0; w < peer->agent->n_ways; w++) {
            xfer_route_t *route = &peer->routes[w];
            if ((int)route->is_doubtful != is_doubtful) {
                continue;
            }
            const weft_status_t one = notify_by(route, data, bytes);
            if (one == WEFT_OK || one == WEFT_ERR_QUEUE_FULL) {
                return one;
            }
            status = one == WEFT_ERR_UNSUPPORTED ? status : one;
        }
    }
    return status;
}

weft_status_t xfer_notify(xfer_peer_t *peer, const void *data, size_t bytes)
{
    if (bytes > XFER_MAX_NOTIFICATION) {
        return WEFT_ERR_TOO_LARGE;
    }
    xfer_agent_enter(peer->agent);
    weft_status_t status = notify_peer(peer, data, bytes);
    xfer_agent_leave(peer->agent);
    return status;
}
