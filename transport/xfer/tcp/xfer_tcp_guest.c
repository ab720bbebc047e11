/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who connects to us. Nothing is done for anyone who has not said hello with the port's token, and
 * few may be waited for at a time. A link's session outlives its connections, so that each of its
 * notifications is told once; a new connection of a session ends the one before, whose late data
 * must not be written any more.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "transport/xfer/tcp/xfer_tcp_priv.h"

#define WEFT_LOG_MODULE "xfer"
#include "base/log.h"

#define HELLO_LIMIT_NS (5 * WEFT_NS_PER_SECOND)
#define DEAF_NS        (WEFT_NS_PER_SECOND / 10)
#define MAX_STRANGERS  64
#define MAX_SESSIONS   4096 /* without a connection */
#define SESSION_EXTRA_NS                                                                           \
    (60 * WEFT_NS_PER_SECOND) /* the two ends notice a cut at different times */
#define MAX_ACCEPTS 16
#define MAX_KEEP_MS UINT32_C(3600000)

/* ---- sessions -------------------------------------------------------------------------------- */

static xfer_tcp_session_t *find_session(const xfer_tcp_port_t *port, const uint8_t id[16])
{
    xfer_tcp_session_t *session = port->sessions;
    while (session != NULL && memcmp(session->id, id, sizeof(session->id)) != 0) {
        session = session->next;
    }
    return session;
}

static bool is_over(const xfer_tcp_session_t *session, uint64_t now)
{
    return session->guest == NULL && now >= session->ends_at;
}

static void drop_sessions(xfer_tcp_port_t *port, uint64_t now)
{
    for (xfer_tcp_session_t **at = &port->sessions; *at != NULL;) {
        xfer_tcp_session_t *session = *at;
        if (is_over(session, now)) {
            *at = session->next;
            port->n_sessions--;
            weft_free(session);
        } else {
            at = &session->next;
        }
    }
}

static xfer_tcp_session_t *add_session(xfer_tcp_port_t *port, const uint8_t id[16])
{
    drop_sessions(port, weft_clock_ns());
    if (port->n_sessions >= MAX_SESSIONS) {
        return NULL;
    }
    xfer_tcp_session_t *session = weft_zalloc(sizeof(*session), "xfer_tcp.session");
    if (session != NULL) {
        memcpy(session->id, id, sizeof(session->id));
        session->next = port->sessions;
        port->sessions = session;
        port->n_sessions++;
    }
    return session;
}

void xfer_tcp_session_free_all(xfer_tcp_port_t *port)
{
    while (port->sessions != NULL) {
        xfer_tcp_session_t *session = port->sessions;
        port->sessions = session->next;
        weft_free(session);
    }
}

/* ---- coming and going ------------------------------------------------------------------------ */

void xfer_tcp_guest_free(xfer_tcp_guest_t *guest)
{
    for (size_t i = 0; i < XFER_TCP_MAX_SLICES; i++) {
        weft_free(guest->requests[i].pieces);
    }
    xfer_tcp_stage_fini(&guest->stage);
    xfer_tcp_stream_fini(&guest->stream);
    weft_free(guest);
}

void xfer_tcp_guest_close(xfer_tcp_guest_t *guest)
{
    xfer_tcp_session_t *session = guest->session;
    guest->is_closed = true;
    xfer_tcp_stream_close(&guest->stream);
    if (session != NULL) {
        session->guest = NULL;
        session->ends_at = weft_clock_ns() + guest->keep_ms * WEFT_NS_PER_MS + SESSION_EXTRA_NS;
    } else {
        guest->port->n_strangers--;
    }
    xfer_tcp_bury_guest(guest->port, guest);
}

static void close_oldest_stranger(xfer_tcp_port_t *port)
{
    xfer_tcp_guest_t *oldest = NULL;
    for (xfer_tcp_guest_t *guest = port->guests; guest != NULL; guest = guest->next) {
        oldest = guest->session == NULL ? guest : oldest; /* new ones are put at the front */
    }
    if (oldest != NULL) {
        xfer_tcp_complain(port, "reason=\"too many that said nothing\"");
        xfer_tcp_guest_close(oldest);
    }
}

static void add_guest(xfer_tcp_port_t *port, int fd)
{
    xfer_tcp_guest_t *guest = weft_zalloc(sizeof(*guest), "xfer_tcp.guest");
    if (guest == NULL) {
        close(fd);
        return;
    }
    guest->watch = XFER_TCP_WATCH_GUEST;
    guest->port = port;
    guest->answering = -1;
    guest->deadline = weft_clock_ns() + HELLO_LIMIT_NS;
    if (xfer_tcp_stream_open(&guest->stream, fd, port->epoll, guest) < 0) {
        xfer_tcp_guest_free(guest);
        return;
    }
    if (port->n_strangers >= MAX_STRANGERS) {
        close_oldest_stranger(port);
    }
    port->n_strangers++;
    xfer_tcp_set_options(fd, port->settings.silence_ms);
    guest->next = port->guests;
    guest->link_to_this = &port->guests;
    if (guest->next != NULL) {
        guest->next->link_to_this = &guest->next;
    }
    port->guests = guest;
    xfer_tcp_wake_at(port, guest->deadline);
}

/* Callers wait in the kernel meanwhile; without this the listener would wake us all the time. */
static void be_deaf(xfer_tcp_port_t *port)
{
    weft_log_warn("fabric port has no descriptor for a connection backend=tcp reason=\"%s\"",
                  strerror(errno));
    (void)epoll_ctl(port->epoll, EPOLL_CTL_DEL, port->listener, NULL);
    port->deaf_until = weft_clock_ns() + DEAF_NS;
    xfer_tcp_wake_at(port, port->deaf_until);
}

void xfer_tcp_guest_accept(xfer_tcp_port_t *port)
{
    for (int i = 0; i < MAX_ACCEPTS; i++) {
        const int fd = accept4(port->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            add_guest(port, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            be_deaf(port);
            return;
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

/* ---- hello ----------------------------------------------------------------------------------- */

/* In a time that does not depend on where they differ. */
static bool is_token(const uint8_t *a, const uint8_t *b)
{
    unsigned differs = 0;
    for (size_t i = 0; i < XFER_TCP_TOKEN_BYTES; i++) {
        differs |= (unsigned)(a[i] ^ b[i]);
    }
    return differs == 0;
}

static void answer(xfer_tcp_guest_t *guest, xfer_tcp_verdict_t verdict, uint64_t sequence)
{
    xfer_tcp_welcome_t welcome = {.verdict = verdict,
                                  .flags = guest->stream.has_sums ? XFER_TCP_WANTS_SUMS : 0,
                                  .sequence = sequence};
    xfer_tcp_wire_put_welcome(&welcome);
    xfer_tcp_stream_put(&guest->stream, &welcome, sizeof(welcome));
}

static void refuse(xfer_tcp_guest_t *guest, xfer_tcp_verdict_t verdict)
{
    answer(guest, verdict, 0);
    (void)xfer_tcp_stream_send(&guest->stream);
    xfer_tcp_guest_close(guest);
}

/* Whose link it is. The one before it on the same link is over. */
static weft_status_t session_of(xfer_tcp_port_t *port, const xfer_tcp_hello_t *hello,
                                xfer_tcp_session_t **session_out)
{
    xfer_tcp_session_t *session = find_session(port, hello->session);
    if (session == NULL && (hello->flags & XFER_TCP_IS_RESUMED) == 0) {
        session = add_session(port, hello->session);
        *session_out = session;
        return session != NULL ? WEFT_OK : WEFT_ERR_NO_MEMORY;
    }
    if (session == NULL || hello->attempt <= session->attempt) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (session->guest != NULL) {
        xfer_tcp_guest_close(session->guest);
    }
    *session_out = session;
    return WEFT_OK;
}

static void let_in(xfer_tcp_guest_t *guest, const xfer_tcp_hello_t *hello)
{
    xfer_tcp_port_t *port = guest->port;
    xfer_tcp_session_t *session = NULL;
    const weft_status_t status = session_of(port, hello, &session);
    if (status == WEFT_ERR_NOT_FOUND) {
        refuse(guest, XFER_TCP_FORGOTTEN);
        return;
    }
    if (status < 0) {
        xfer_tcp_guest_close(guest); /* it tries again */
        return;
    }
    port->n_strangers--;
    session->guest = guest;
    session->attempt = hello->attempt;
    guest->session = session;
    guest->deadline = XFER_TCP_NEVER;
    guest->keep_ms = hello->keep_ms < MAX_KEEP_MS ? hello->keep_ms : MAX_KEEP_MS;
    memcpy(guest->agent, hello->agent, sizeof(guest->agent));
    answer(guest, XFER_TCP_WELCOME, session->sequence);
}

static void read_hello(xfer_tcp_guest_t *guest)
{
    xfer_tcp_port_t *port = guest->port;
    xfer_tcp_hello_t hello = {0};
    const size_t begin = offsetof(xfer_tcp_hello_t, sum); /* the same in every version */
    const uint8_t *wire = xfer_tcp_stream_peek(&guest->stream, begin);
    if (wire == NULL) {
        return;
    }
    weft_status_t status = xfer_tcp_wire_get_greeting(wire, &hello.version);
    if (status == WEFT_OK) {
        wire = xfer_tcp_stream_peek(&guest->stream, sizeof(hello));
        if (wire == NULL) {
            return;
        }
        status = xfer_tcp_wire_get_hello(wire, &hello);
    }
    if (status == WEFT_ERR_UNSUPPORTED) {
        xfer_tcp_complain(port, "reason=\"another version\" theirs=%u ours=%u", hello.version,
                          XFER_TCP_VERSION);
        refuse(guest, XFER_TCP_OTHER_VERSION);
    } else if (status < 0) {
        xfer_tcp_complain(port, "reason=\"no hello: %s\"", weft_strerror(status));
        xfer_tcp_guest_close(guest);
    } else if (!is_token(hello.token, port->token)) {
        xfer_tcp_complain(port, "reason=\"not our token\"");
        refuse(guest, XFER_TCP_STRANGER);
    } else {
        xfer_tcp_stream_skip(&guest->stream, sizeof(hello));
        guest->stream.has_sums =
            port->settings.has_sums && (hello.flags & XFER_TCP_WANTS_SUMS) != 0;
        let_in(guest, &hello);
    }
}

/* ---- turns ----------------------------------------------------------------------------------- */

static weft_status_t understand(xfer_tcp_guest_t *guest)
{
    xfer_tcp_event_t event;
    weft_status_t status;
    while ((status = xfer_tcp_stream_next(&guest->stream, &event)) == WEFT_OK) {
        status = event.is_trailer ? xfer_tcp_serve_trailer(guest, &event)
                                  : xfer_tcp_serve_frame(guest, &event);
        if (status < 0) {
            return status;
        }
    }
    return status;
}

static void note_damage(xfer_tcp_guest_t *guest, weft_status_t status)
{
    const xfer_port_config_t *config = &guest->port->base.config;
    if (status == WEFT_ERR_CORRUPT && config->on_checksum_error != NULL) {
        config->on_checksum_error(config->user);
    }
    xfer_tcp_complain(guest->port, "peer=%s reason=\"%s\"", guest->agent, weft_strerror(status));
    xfer_tcp_guest_close(guest);
}

static void receive(xfer_tcp_guest_t *guest)
{
    do {
        weft_status_t status = xfer_tcp_stream_receive(&guest->stream);
        if (status < 0) {
            xfer_tcp_guest_close(guest);
            return;
        }
        if (guest->session == NULL) {
            read_hello(guest);
        }
        if (guest->is_closed) {
            return;
        }
        status = guest->session != NULL ? understand(guest) : WEFT_OK;
        if (status < 0) {
            note_damage(guest, status);
            return;
        }
    } while (!guest->stream.is_drained && !xfer_tcp_turn_is_over(guest->port));
}

static void send_all(xfer_tcp_guest_t *guest)
{
    weft_status_t status;
    bool is_all;
    do {
        is_all = guest->session == NULL || xfer_tcp_serve_fill(guest);
        status = xfer_tcp_stream_send(&guest->stream);
    } while (status == WEFT_OK && !is_all && !xfer_tcp_turn_is_over(guest->port));
    if (status < 0) {
        xfer_tcp_guest_close(guest);
        return;
    }
    xfer_tcp_stream_watch(&guest->stream, status == WEFT_PENDING || !is_all);
}

void xfer_tcp_guest_turn(xfer_tcp_guest_t *guest, bool can_receive)
{
    if (can_receive) {
        receive(guest);
    }
    if (!guest->is_closed) {
        send_all(guest);
    }
}
