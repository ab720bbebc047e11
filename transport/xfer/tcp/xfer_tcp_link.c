/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A link's connection. It tries the peer's hosts in turn, the one that was right before first, and
 * rests between rounds. Lost for good: nothing went on for the patience; or for a second whoever
 * answers refuses (a process that was killed); or the peer says that it is of no use.
 */
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/alloc.h"
#include "transport/xfer/tcp/xfer_tcp_priv.h"

#define WEFT_LOG_MODULE "xfer"
#include "base/log.h"

#define CONNECT_LIMIT_NS WEFT_NS_PER_SECOND
#define GREET_LIMIT_NS   (5 * WEFT_NS_PER_SECOND) /* a peer whose progress is not called is slow */
#define REFUSED_LIMIT_NS WEFT_NS_PER_SECOND
#define MIN_BACKOFF_NS   (20 * WEFT_NS_PER_MS)
#define MAX_BACKOFF_NS   (500 * WEFT_NS_PER_MS)
#define MAX_BARREN_CUTS  50 /* connections that end before anything went on */

xfer_tcp_link_t *xfer_tcp_link_of(xfer_link_t *base)
{
    return WEFT_CONTAINER(base, xfer_tcp_link_t, base);
}

xfer_tcp_port_t *xfer_tcp_link_port(const xfer_tcp_link_t *link)
{
    return WEFT_CONTAINER(link->base.port, xfer_tcp_port_t, base);
}

bool xfer_tcp_link_is_busy(const xfer_tcp_link_t *link)
{
    return link->n_flying > 0 || link->notes.n > 0 || link->ops[XFER_TCP_ISSUING].head != NULL;
}

void xfer_tcp_link_dirty(xfer_tcp_link_t *link)
{
    xfer_tcp_port_t *port = xfer_tcp_link_port(link);
    if (!link->is_dirty && !link->is_closed) {
        link->is_dirty = true;
        link->next_dirty = port->dirty;
        port->dirty = link;
    }
}

void xfer_tcp_link_begin(xfer_tcp_link_t *link)
{
    xfer_tcp_port_t *port = xfer_tcp_link_port(link);
    if (!xfer_tcp_link_is_busy(link)) {
        link->alive_at = weft_clock_ns();
        xfer_tcp_wake_at(port, link->alive_at + port->settings.patience_ns);
    }
}

/* ---- the end --------------------------------------------------------------------------------- */

static void lose(xfer_tcp_link_t *link, const char *why)
{
    if (link->state == XFER_TCP_GONE) {
        return;
    }
    weft_log_info("fabric peer lost backend=tcp peer=%s reason=\"%s\"", link->peer, why);
    link->state = XFER_TCP_GONE;
    xfer_tcp_stream_close(&link->stream);
    xfer_tcp_ask_fail(link, WEFT_ERR_PEER_GONE);
    xfer_tcp_note_clear(&link->notes);
    xfer_tcp_link_dirty(link); /* its owner is told from there */
}

static void rest(xfer_tcp_link_t *link, uint64_t now)
{
    link->state = XFER_TCP_RESTING;
    link->rests_until = now + link->backoff_ns;
    link->backoff_ns =
        link->backoff_ns * 2 < MAX_BACKOFF_NS ? link->backoff_ns * 2 : MAX_BACKOFF_NS;
    link->n_tried = link->n_refused = link->n_silent = 0;
    link->is_good_refused = false;
    xfer_tcp_wake_at(xfer_tcp_link_port(link), link->rests_until);
}

void xfer_tcp_link_cut(xfer_tcp_link_t *link, const char *why)
{
    const uint64_t now = weft_clock_ns();
    weft_log_debug("fabric connection lost backend=tcp peer=%s reason=\"%s\"", link->peer, why);
    xfer_tcp_stream_close(&link->stream);
    if (!xfer_tcp_link_is_busy(link)) {
        link->alive_at = now;
    }
    link->refused_since = 0;
    link->backoff_ns = MIN_BACKOFF_NS;
    rest(link, now);
    xfer_tcp_note_rewind(&link->notes);
    xfer_tcp_ask_cut(link);
    if (now - link->cut_at > xfer_tcp_link_port(link)->settings.patience_ns) {
        link->n_barren_cuts = 0;
    }
    link->cut_at = now;
    if (++link->n_barren_cuts > MAX_BARREN_CUTS) {
        lose(link, "no connection holds");
        return;
    }
    xfer_tcp_wake_at(xfer_tcp_link_port(link), xfer_tcp_link_deadline(link));
}

/* ---- connecting ------------------------------------------------------------------------------ */

static void try_host(xfer_tcp_link_t *link, uint64_t now);

/* All hosts were tried. Where the peer was before, its refusal alone counts. */
static void end_round(xfer_tcp_link_t *link, uint64_t now)
{
    const bool is_refused = link->is_good_refused || (link->n_refused > 0 && link->n_silent == 0);
    if (!is_refused) {
        link->refused_since = 0;
    } else if (link->refused_since == 0) {
        link->refused_since = now;
    } else if (now - link->refused_since >= REFUSED_LIMIT_NS) {
        lose(link, "refused");
        return;
    }
    rest(link, now);
}

typedef enum outcome { REFUSED, SILENT, UNREACHABLE } outcome_t;

static void host_failed(xfer_tcp_link_t *link, outcome_t outcome)
{
    const uint64_t now = weft_clock_ns();
    xfer_tcp_stream_close(&link->stream);
    link->n_refused += outcome == REFUSED ? 1 : 0;
    link->n_silent += outcome == SILENT ? 1 : 0;
    link->is_good_refused |= outcome == REFUSED && link->host == link->good_host;
    link->host = (uint16_t)((link->host + 1) % link->n_hosts);
    if (++link->n_tried < link->n_hosts) {
        try_host(link, now);
    } else {
        end_round(link, now);
    }
}

static void host_failed_with(xfer_tcp_link_t *link, int error)
{
    const bool is_refusal = error == ECONNREFUSED || error == ECONNRESET;
    host_failed(link, is_refusal ? REFUSED : error == ETIMEDOUT ? SILENT : UNREACHABLE);
}

static void try_host(xfer_tcp_link_t *link, uint64_t now)
{
    xfer_tcp_port_t *port = xfer_tcp_link_port(link);
    const int fd =
        xfer_tcp_connect_to(&link->hosts[link->host], link->port_number, port->settings.silence_ms);
    if (fd < 0) {
        host_failed_with(link, errno);
        return;
    }
    if (xfer_tcp_stream_open(&link->stream, fd, port->epoll, link) < 0) {
        host_failed(link, UNREACHABLE);
        return;
    }
    link->stream.has_sums = false;
    link->state = XFER_TCP_CONNECTING;
    link->attempt_ends = now + CONNECT_LIMIT_NS;
    xfer_tcp_stream_watch(&link->stream, true);
    xfer_tcp_wake_at(port, link->attempt_ends);
}

static void greet(xfer_tcp_link_t *link)
{
    xfer_tcp_port_t *port = xfer_tcp_link_port(link);
    int error = 0;
    socklen_t length = sizeof(error);
    if (getsockopt(link->stream.fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0) {
        host_failed_with(link, error);
        return;
    }
    xfer_tcp_hello_t hello = {
        .attempt = ++link->attempt,
        .keep_ms = (uint32_t)(port->settings.patience_ns / WEFT_NS_PER_MS),
        .flags = (port->settings.has_sums ? XFER_TCP_WANTS_SUMS : 0) |
                 (link->was_up ? XFER_TCP_IS_RESUMED : 0),
    };
    memcpy(hello.token, link->token, sizeof(hello.token));
    memcpy(hello.session, link->session, sizeof(hello.session));
    (void)strncpy(hello.agent, port->base.config.agent, sizeof(hello.agent) - 1);
    xfer_tcp_wire_put_hello(&hello);
    xfer_tcp_stream_put(&link->stream, &hello, sizeof(hello));
    link->state = XFER_TCP_GREETING;
    link->attempt_ends = weft_clock_ns() + GREET_LIMIT_NS;
    xfer_tcp_wake_at(port, link->attempt_ends);
}

static void go_up(xfer_tcp_link_t *link, const xfer_tcp_welcome_t *welcome)
{
    xfer_tcp_port_t *port = xfer_tcp_link_port(link);
    char text[64];
    xfer_tcp_stream_skip(&link->stream, sizeof(*welcome));
    link->stream.has_sums = (welcome->flags & XFER_TCP_WANTS_SUMS) != 0 && port->settings.has_sums;
    if (!xfer_tcp_note_confirm(&link->notes, welcome->sequence)) {
        lose(link, "it confirms what was not sent");
        return;
    }
    xfer_tcp_note_rewind(&link->notes);
    if (!link->was_up) {
        link->alive_at = weft_clock_ns();
    }
    link->state = XFER_TCP_UP;
    link->was_up = true;
    link->good_host = link->host;
    link->refused_since = 0;
    weft_log_debug("fabric connected backend=tcp peer=%s host=%s port=%u", link->peer,
                   xfer_tcp_host_text(&link->hosts[link->host], text), link->port_number);
    if (port->base.config.on_link_up != NULL) {
        port->base.config.on_link_up(port->base.config.user, &link->base);
    }
}

/* Whoever answers like nobody that we know is not the peer; perhaps another host is. */
static void read_welcome(xfer_tcp_link_t *link)
{
    xfer_tcp_welcome_t welcome;
    const uint8_t *wire = xfer_tcp_stream_peek(&link->stream, sizeof(welcome));
    if (wire == NULL) {
        return;
    }
    const weft_status_t status = xfer_tcp_wire_get_welcome(wire, &welcome);
    if (status == WEFT_ERR_UNSUPPORTED) {
        weft_log_warn("fabric peer speaks another version backend=tcp peer=%s theirs=%u ours=%u",
                      link->peer, welcome.version, XFER_TCP_VERSION);
        lose(link, "another version");
    } else if (status < 0 || welcome.verdict == XFER_TCP_STRANGER) {
        host_failed(link, REFUSED);
    } else if (welcome.verdict != XFER_TCP_WELCOME) {
        lose(link, "it does not know us any more");
    } else {
        go_up(link, &welcome);
    }
}

/* ---- turns ----------------------------------------------------------------------------------- */

static weft_status_t understand(xfer_tcp_link_t *link)
{
    xfer_tcp_event_t event;
    weft_status_t status = WEFT_OK;
    while (link->state == XFER_TCP_UP &&
           (status = xfer_tcp_stream_next(&link->stream, &event)) == WEFT_OK) {
        status = event.is_trailer ? xfer_tcp_ask_trailer(link, &event)
                                  : xfer_tcp_ask_frame(link, &event);
        if (status < 0) {
            return status;
        }
    }
    return status;
}

/* A connection that ended while it was greeted was refused, in a way. */
static void receive_failed(xfer_tcp_link_t *link)
{
    if (link->state == XFER_TCP_GREETING) {
        host_failed(link, REFUSED);
    } else {
        xfer_tcp_link_cut(link, "closed");
    }
}

static void note_damage(xfer_tcp_link_t *link, weft_status_t status)
{
    const xfer_port_config_t *config = &link->base.port->config;
    if (status == WEFT_ERR_CORRUPT && config->on_checksum_error != NULL) {
        config->on_checksum_error(config->user);
    }
    xfer_tcp_link_cut(link, weft_strerror(status));
}

static void receive(xfer_tcp_link_t *link)
{
    const xfer_tcp_port_t *port = xfer_tcp_link_port(link);
    do {
        weft_status_t status = xfer_tcp_stream_receive(&link->stream);
        if (status < 0) {
            receive_failed(link);
            return;
        }
        if (link->state == XFER_TCP_GREETING) {
            read_welcome(link);
        } else if (status == WEFT_OK) {
            link->alive_at = weft_clock_ns();
        }
        status = link->state == XFER_TCP_UP ? understand(link) : WEFT_OK;
        if (status < 0) {
            note_damage(link, status);
            return;
        }
    } while (link->state == XFER_TCP_UP && !link->stream.is_drained &&
             !xfer_tcp_turn_is_over(port));
}

static void send_all(xfer_tcp_link_t *link)
{
    const xfer_tcp_port_t *port = xfer_tcp_link_port(link);
    weft_status_t status;
    bool is_all;
    do {
        is_all = link->state != XFER_TCP_UP || xfer_tcp_ask_fill(link);
        status = xfer_tcp_stream_send(&link->stream);
        if (link->state == XFER_TCP_UP && status >= 0) {
            xfer_tcp_note_end_sent(link);
        }
    } while (status == WEFT_OK && !is_all && !xfer_tcp_turn_is_over(port));
    if (status < 0) {
        receive_failed(link);
        return;
    }
    xfer_tcp_stream_watch(&link->stream, status == WEFT_PENDING || !is_all);
}

void xfer_tcp_link_turn(xfer_tcp_link_t *link, bool can_receive, bool can_send)
{
    if ((can_receive || can_send) && link->state == XFER_TCP_CONNECTING) {
        greet(link);
    } else if (can_receive && (link->state == XFER_TCP_GREETING || link->state == XFER_TCP_UP)) {
        receive(link);
    }
    if (link->state == XFER_TCP_GREETING || link->state == XFER_TCP_UP) {
        send_all(link);
    }
}

uint64_t xfer_tcp_link_deadline(const xfer_tcp_link_t *link)
{
    const uint64_t patience = link->alive_at + xfer_tcp_link_port(link)->settings.patience_ns;
    const uint64_t limit = xfer_tcp_ask_limit(link);
    switch (link->state) {
    case XFER_TCP_RESTING:
        return link->rests_until < patience ? link->rests_until : patience;
    case XFER_TCP_CONNECTING:
    case XFER_TCP_GREETING:
        return link->attempt_ends < patience ? link->attempt_ends : patience;
    case XFER_TCP_UP:
        return xfer_tcp_link_is_busy(link) && patience < limit ? patience : limit;
    default:
        return XFER_TCP_NEVER;
    }
}

void xfer_tcp_link_tick(xfer_tcp_link_t *link, uint64_t now)
{
    const uint64_t patience = link->alive_at + xfer_tcp_link_port(link)->settings.patience_ns;
    if (now < xfer_tcp_link_deadline(link)) {
        return;
    }
    if (now >= patience) {
        lose(link, "nothing goes on");
    } else if (link->state == XFER_TCP_RESTING) {
        link->host = link->good_host >= 0 ? (uint16_t)link->good_host : 0;
        try_host(link, now);
    } else if (link->state == XFER_TCP_UP) {
        xfer_tcp_link_cut(link, "a cancelled write is not answered");
    } else {
        host_failed(link, SILENT);
    }
}

/* ---- the table's calls ----------------------------------------------------------------------- */

/* Loopback addresses lead to the peer only from its machine, where they are the best. */
static void choose_hosts(xfer_tcp_link_t *link, const xfer_tcp_host_t *hosts, unsigned n,
                         bool is_here)
{
    for (int loopback = 1; loopback >= 0; loopback--) {
        for (unsigned i = 0; i < n; i++) {
            if (hosts[i].is_loopback == loopback && (loopback == 0 || is_here)) {
                link->hosts[link->n_hosts++] = hosts[i];
            }
        }
    }
}

static xfer_tcp_link_t *create(xfer_tcp_port_t *port, const char *peer)
{
    xfer_tcp_link_t *link = weft_zalloc(sizeof(*link), "xfer_tcp.link");
    if (link == NULL) {
        return NULL;
    }
    link->watch = XFER_TCP_WATCH_LINK;
    link->base.port = &port->base;
    link->stream.fd = -1;
    link->sending = link->receiving = -1;
    link->good_host = -1;
    link->notes.tail = &link->notes.head;
    link->backoff_ns = MIN_BACKOFF_NS;
    link->alive_at = weft_clock_ns();
    link->state = XFER_TCP_RESTING;
    link->peer = weft_strdup(peer, "xfer_tcp.peer");
    if (link->peer == NULL ||
        getrandom(link->session, sizeof(link->session), 0) != sizeof(link->session)) {
        xfer_tcp_link_free(link);
        return NULL;
    }
    return link;
}

weft_status_t xfer_tcp_link_connect(xfer_port_t *base, const char *peer, const void *address,
                                    size_t bytes, xfer_link_t **link_out)
{
    xfer_tcp_port_t *port = WEFT_CONTAINER(base, xfer_tcp_port_t, base);
    xfer_tcp_address_t decoded;
    xfer_tcp_host_t hosts[XFER_TCP_MAX_HOSTS];
    const weft_status_t status = xfer_tcp_wire_get_address(address, bytes, &decoded, hosts);
    if (status == WEFT_ERR_UNSUPPORTED) {
        weft_log_warn("fabric peer speaks another version backend=tcp peer=%s theirs=%u ours=%u",
                      peer, decoded.version, XFER_TCP_VERSION);
    }
    if (status < 0) {
        return status;
    }
    xfer_tcp_link_t *link = create(port, peer);
    if (link == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    choose_hosts(link, hosts, decoded.n_hosts,
                 memcmp(decoded.machine, port->machine, sizeof(port->machine)) == 0);
    if (link->n_hosts == 0) { /* it listens to its own machine only */
        xfer_tcp_link_free(link);
        return WEFT_ERR_UNSUPPORTED;
    }
    link->port_number = decoded.port;
    memcpy(link->token, decoded.token, sizeof(link->token));
    link->next = port->links;
    link->link_to_this = &port->links;
    if (link->next != NULL) {
        link->next->link_to_this = &link->next;
    }
    port->links = link;
    xfer_tcp_wake_at(port, 0);
    *link_out = &link->base;
    return WEFT_OK;
}

void xfer_tcp_link_disconnect(xfer_link_t *base)
{
    xfer_tcp_link_t *link = xfer_tcp_link_of(base);
    if (link->state == XFER_TCP_UP) {
        (void)xfer_tcp_note_fill(link); /* what has been promised, if it can go at once */
        (void)xfer_tcp_stream_send(&link->stream);
    }
    link->state = XFER_TCP_GONE;
    link->is_lost_told = true;
    xfer_tcp_stream_close(&link->stream);
    xfer_tcp_ask_fail(link, WEFT_ERR_CANCELLED);
    while (link->ops[XFER_TCP_ENDED].head != NULL) {
        xfer_tcp_ask_end_due(link);
    }
    link->is_closed = true;
    xfer_tcp_bury_link(xfer_tcp_link_port(link), link);
}

void xfer_tcp_link_free(xfer_tcp_link_t *link)
{
    xfer_tcp_note_clear(&link->notes);
    xfer_tcp_stage_fini(&link->stage);
    xfer_tcp_stream_fini(&link->stream);
    weft_free(link->peer);
    weft_free(link);
}
