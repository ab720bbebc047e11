/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tcp backend's table, and its port: regions, events and time. One epoll holds the listening
 * socket, a timer, and the connections of links and guests; it is level-triggered, so work that is
 * left over for the next progress is seen by it, except what calls from outside added: dirty links.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "transport/xfer/tcp/xfer_tcp_priv.h"

#define WEFT_LOG_MODULE "xfer"
#include "base/log.h"

#define TURN_NS    (100 * UINT64_C(1000))
#define MAX_EVENTS 32
#define HUSH_NS    WEFT_NS_PER_SECOND

static xfer_tcp_port_t *port_of(xfer_port_t *base)
{
    return WEFT_CONTAINER(base, xfer_tcp_port_t, base);
}

/* ---- parameters ------------------------------------------------------------------------------ */

typedef struct number_param {
    const char *key;
    uint64_t fallback;
    uint64_t min;
    uint64_t max;
} number_param_t;

static weft_status_t read_number(const xfer_port_config_t *config, const number_param_t *param,
                                 weft_diag_t *diag, uint64_t *number_out)
{
    const char *text = config->param != NULL ? config->param(config->user, param->key) : NULL;
    char *end = NULL;
    if (text == NULL) {
        *number_out = param->fallback;
        return WEFT_OK;
    }
    errno = 0;
    const unsigned long long number = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || number < param->min ||
        number > param->max) {
        return weft_diag(diag, WEFT_ERR_INVALID, "tcp.%s: %s is not a number of %llu to %llu",
                         param->key, text, (unsigned long long)param->min,
                         (unsigned long long)param->max);
    }
    *number_out = number;
    return WEFT_OK;
}

static weft_status_t read_switch(const xfer_port_config_t *config, const char *key, bool fallback,
                                 weft_diag_t *diag, bool *is_on_out)
{
    const char *text = config->param != NULL ? config->param(config->user, key) : NULL;
    *is_on_out = text == NULL ? fallback : strcmp(text, "on") == 0;
    if (text != NULL && !*is_on_out && strcmp(text, "off") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "tcp.%s: %s is neither on nor off", key, text);
    }
    return WEFT_OK;
}

/*
 * reconnect_ms: half a minute covers a switch that restarts its port or a route that moves, and is what
 * a lease of blocks lasts; a process that died is noticed sooner, see xfer_tcp_link.c.
 */
static weft_status_t read_settings(const xfer_port_config_t *config, weft_diag_t *diag,
                                   xfer_tcp_settings_t *settings_out)
{
    static const number_param_t params[] = {
        {"port", 0, 0, 65535},
        {"reconnect_ms", 30000, 1, 3600000},
        {"silence_ms", 5000, 100, 3600000},
        {"window_bytes", 4 << 20, 4096, 1 << 30},
        {"slice_bytes", 512 << 10, 1, XFER_TCP_MAX_SLICE},
    };
    uint64_t numbers[WEFT_ARRAY_LEN(params)];
    bool has_sums;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(params); i++) {
        const weft_status_t status = read_number(config, &params[i], diag, &numbers[i]);
        if (status < 0) {
            return status;
        }
    }
    const weft_status_t status = read_switch(config, "checksum", true, diag, &has_sums);
    if (status < 0) {
        return status;
    }
    *settings_out = (xfer_tcp_settings_t){
        .host = config->param != NULL ? config->param(config->user, "host") : NULL,
        .port = (uint16_t)numbers[0],
        .has_sums = has_sums,
        .patience_ns = numbers[1] * WEFT_NS_PER_MS,
        .silence_ms = (uint32_t)numbers[2],
        .window_bytes = (uint32_t)numbers[3],
        .slice_bytes = (uint32_t)numbers[4],
    };
    return WEFT_OK;
}

/* ---- open and close -------------------------------------------------------------------------- */

static void port_close(xfer_port_t *base)
{
    xfer_tcp_port_t *port = port_of(base);
    while (port->guests != NULL) {
        xfer_tcp_guest_close(port->guests);
    }
    while (port->links != NULL) {
        xfer_tcp_link_disconnect(&port->links->base);
    }
    xfer_tcp_session_free_all(port);
    for (size_t i = 0; i < port->n_regions; i++) {
        weft_free(port->regions[i]);
    }
    const int fds[] = {port->listener, port->timer, port->epoll};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fds); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    xfer_vram_close(port->vram);
    weft_free(port->regions);
    weft_free(port->scratch);
    weft_free(port->zeros);
    weft_free(port);
}

static bool watch(const xfer_tcp_port_t *port, int fd, xfer_tcp_watch_t *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    return epoll_ctl(port->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static weft_status_t open_descriptors(xfer_tcp_port_t *port, weft_diag_t *diag)
{
    port->epoll = epoll_create1(EPOLL_CLOEXEC);
    port->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (port->epoll < 0 || port->timer < 0 ||
        getrandom(port->token, sizeof(port->token), 0) != sizeof(port->token)) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "tcp: %s", strerror(errno));
    }
    const weft_status_t status = xfer_tcp_listen(port, diag);
    if (status < 0) {
        return status;
    }
    return watch(port, port->listener, &port->listener_watch) &&
                   watch(port, port->timer, &port->timer_watch)
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_UNSUPPORTED, "tcp: %s", strerror(errno));
}

static weft_status_t port_open(const xfer_backend_t *row, const xfer_port_config_t *config,
                               weft_diag_t *diag, xfer_port_t **port_out)
{
    xfer_tcp_port_t *port = weft_zalloc(sizeof(*port), "xfer_tcp.port");
    if (port == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    port->base = (xfer_port_t){row, *config};
    port->listener_watch = XFER_TCP_WATCH_LISTENER;
    port->timer_watch = XFER_TCP_WATCH_TIMER;
    port->vram_watch = XFER_TCP_WATCH_VRAM;
    port->epoll = port->timer = port->listener = -1;
    port->tick_at = port->timer_at = XFER_TCP_NEVER;
    port->scratch = weft_alloc(XFER_TCP_SCRATCH_BYTES, "xfer_tcp.scratch");
    port->zeros = weft_zalloc(XFER_TCP_SCRATCH_BYTES, "xfer_tcp.zeros");
    weft_status_t status =
        port->scratch != NULL && port->zeros != NULL ? WEFT_OK : WEFT_ERR_NO_MEMORY;
    status = status < 0 ? status : read_settings(config, diag, &port->settings);
    status = status < 0 ? status : open_descriptors(port, diag);
    if (status < 0) {
        port_close(&port->base);
        return status;
    }
    weft_log_debug("fabric port open backend=tcp port=%u", port->number);
    *port_out = &port->base;
    return WEFT_OK;
}

static weft_status_t port_address(xfer_port_t *base, weft_buffer_t *out)
{
    const xfer_tcp_port_t *port = port_of(base);
    xfer_tcp_address_t address = {.port = port->number, .n_hosts = port->n_hosts};
    memcpy(address.token, port->token, sizeof(address.token));
    memcpy(address.machine, port->machine, sizeof(address.machine));
    xfer_tcp_wire_put_address(&address);
    weft_buffer_append(out, &address, sizeof(address));
    weft_buffer_append(out, port->hosts, port->n_hosts * sizeof(*port->hosts));
    return out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

/* ---- regions --------------------------------------------------------------------------------- */

static weft_status_t grow_regions(xfer_tcp_port_t *port)
{
    const size_t max = port->max_regions * 2 + 8;
    xfer_tcp_region_t **regions =
        weft_realloc(port->regions, max * sizeof(*regions), "xfer_tcp.regions");
    if (regions == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    port->regions = regions;
    port->max_regions = max;
    return WEFT_OK;
}

/* The GPU whose memory was mapped first is the port's. */
static weft_status_t open_vram(xfer_tcp_port_t *port, uint64_t device)
{
    if (port->vram != NULL) {
        return xfer_vram_device(port->vram) == device ? WEFT_OK : WEFT_ERR_UNSUPPORTED;
    }
    const weft_status_t status = xfer_vram_open(device, &port->vram);
    if (status >= 0 && !watch(port, xfer_vram_fd(port->vram), &port->vram_watch)) {
        xfer_vram_close(port->vram);
        port->vram = NULL;
        return WEFT_ERR_IO;
    }
    return status;
}

static weft_status_t port_map(xfer_port_t *base, const xfer_memory_t *memory, weft_buffer_t *out,
                              void **handle_out)
{
    xfer_tcp_port_t *port = port_of(base);
    const bool is_vram = memory->space == XFER_VRAM;
    if (!is_vram && memory->space != XFER_DRAM) {
        return WEFT_ERR_UNSUPPORTED;
    }
    const weft_status_t status = is_vram ? open_vram(port, memory->device) : WEFT_OK;
    if (status < 0) {
        return status;
    }
    if (port->n_regions == port->max_regions && grow_regions(port) < 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    xfer_tcp_region_t *region = weft_alloc(sizeof(*region), "xfer_tcp.region");
    xfer_tcp_region_blob_t blob = {.region = port->next_region};
    xfer_tcp_wire_put_region(&blob);
    weft_buffer_append(out, &blob, sizeof(blob));
    if (region == NULL || out->is_failed) {
        weft_free(region);
        return WEFT_ERR_NO_MEMORY;
    }
    *region = (xfer_tcp_region_t){port->next_region++, memory->addr, memory->bytes, is_vram};
    port->regions[port->n_regions++] = region;
    *handle_out = region;
    return WEFT_OK;
}

static void port_unmap(xfer_port_t *base, void *handle)
{
    xfer_tcp_port_t *port = port_of(base);
    const xfer_tcp_region_t *region = handle;
    size_t at = 0;
    while (port->regions[at] != region) {
        at++;
    }
    port->n_regions--;
    memmove(&port->regions[at], &port->regions[at + 1],
            (port->n_regions - at) * sizeof(*port->regions));
    for (xfer_tcp_guest_t *guest = port->guests; guest != NULL; guest = guest->next) {
        xfer_tcp_serve_unmap(guest, region);
    }
    if (region->is_vram) {
        xfer_vram_wait_all(port->vram); /* for copies that still use it */
    }
    weft_free(handle);
}

/* By number; they were added in its order. */
static const xfer_tcp_region_t *find_region(const xfer_tcp_port_t *port, uint32_t number)
{
    size_t low = 0;
    size_t high = port->n_regions;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (port->regions[middle]->number < number) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < port->n_regions && port->regions[low]->number == number ? port->regions[low]
                                                                         : NULL;
}

void *xfer_tcp_find_memory(const xfer_tcp_port_t *port, const xfer_tcp_piece_t *piece,
                           bool *is_vram_io)
{
    const xfer_tcp_region_t *region = find_region(port, piece->region);
    if (region == NULL || (region->is_vram && is_vram_io == NULL) ||
        piece->offset > region->bytes || piece->bytes > region->bytes - piece->offset) {
        return NULL;
    }
    if (region->is_vram) {
        *is_vram_io = true;
    }
    return (void *)(uintptr_t)(region->addr + piece->offset);
}

static weft_status_t link_import(xfer_link_t *link, const xfer_memory_t *memory, const void *blob,
                                 size_t bytes, void **handle_out)
{
    xfer_tcp_region_blob_t region;
    (void)link;
    if (memory->space != XFER_DRAM && memory->space != XFER_VRAM) {
        return WEFT_ERR_UNSUPPORTED;
    }
    const weft_status_t status = xfer_tcp_wire_get_region(blob, bytes, &region);
    if (status < 0) {
        return status;
    }
    xfer_tcp_import_t *import = weft_alloc(sizeof(*import), "xfer_tcp.import");
    if (import == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *import = (xfer_tcp_import_t){region.region, memory->addr, memory->bytes};
    *handle_out = import;
    return WEFT_OK;
}

static void port_release(xfer_port_t *base, void *handle)
{
    (void)base;
    weft_free(handle);
}

/* ---- events and time ------------------------------------------------------------------------- */

void xfer_tcp_wake_at(xfer_tcp_port_t *port, uint64_t at)
{
    port->tick_at = at < port->tick_at ? at : port->tick_at;
}

bool xfer_tcp_turn_is_over(const xfer_tcp_port_t *port)
{
    return weft_clock_ns() >= port->turn_ends;
}

void xfer_tcp_complain(xfer_tcp_port_t *port, const char *format, ...)
{
    char text[256];
    const uint64_t now = weft_clock_ns();
    va_list arguments;
    if (now < port->hushed_until) {
        port->n_hushed++;
        return;
    }
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    weft_log_warn("fabric connection refused backend=tcp %s unsaid=%llu", text,
                  (unsigned long long)port->n_hushed);
    port->n_hushed = 0;
    port->hushed_until = now + HUSH_NS;
}

void xfer_tcp_bury_link(xfer_tcp_port_t *port, xfer_tcp_link_t *link)
{
    *link->link_to_this = link->next;
    if (link->next != NULL) {
        link->next->link_to_this = link->link_to_this;
    }
    for (xfer_tcp_link_t **at = &port->dirty; *at != NULL; at = &(*at)->next_dirty) {
        if (*at == link) {
            *at = link->next_dirty;
            break;
        }
    }
    if (!port->is_in_progress) {
        xfer_tcp_link_free(link);
        return;
    }
    link->next = port->dead_links;
    port->dead_links = link;
}

void xfer_tcp_bury_guest(xfer_tcp_port_t *port, xfer_tcp_guest_t *guest)
{
    *guest->link_to_this = guest->next;
    if (guest->next != NULL) {
        guest->next->link_to_this = guest->link_to_this;
    }
    if (!port->is_in_progress) {
        xfer_tcp_guest_free(guest);
        return;
    }
    guest->next = port->dead_guests;
    port->dead_guests = guest;
}

static void free_dead(xfer_tcp_port_t *port)
{
    while (port->dead_links != NULL) {
        xfer_tcp_link_t *link = port->dead_links;
        port->dead_links = link->next;
        xfer_tcp_link_free(link);
    }
    while (port->dead_guests != NULL) {
        xfer_tcp_guest_t *guest = port->dead_guests;
        port->dead_guests = guest->next;
        xfer_tcp_guest_free(guest);
    }
}

/* What posting, cancelling and the like left to do. Whatever that adds is for the next progress. */
static bool look_at_dirty(xfer_tcp_port_t *port)
{
    const bool is_any = port->dirty != NULL;
    xfer_tcp_link_t *last = NULL;
    for (xfer_tcp_link_t *link = port->dirty; link != NULL; link = link->next_dirty) {
        last = link;
    }
    for (bool is_last = last == NULL; !is_last;) {
        xfer_tcp_link_t *link = port->dirty;
        is_last = link == last || link == NULL;
        if (link == NULL) {
            break;
        }
        port->dirty = link->next_dirty;
        link->is_dirty = false;
        xfer_tcp_ask_end_due(link);
        if (!link->is_closed && link->state == XFER_TCP_GONE && !link->is_lost_told) {
            link->is_lost_told = true;
            if (port->base.config.on_link_lost != NULL) {
                port->base.config.on_link_lost(port->base.config.user, &link->base);
            }
        } else if (!link->is_closed) {
            xfer_tcp_link_turn(link, false, false);
        }
    }
    return is_any;
}

static void tick(xfer_tcp_port_t *port)
{
    const uint64_t now = weft_clock_ns();
    port->tick_at = XFER_TCP_NEVER;
    for (xfer_tcp_link_t *link = port->links; link != NULL; link = link->next) {
        xfer_tcp_link_tick(link, now);
        xfer_tcp_wake_at(port, xfer_tcp_link_deadline(link));
    }
    for (xfer_tcp_guest_t *guest = port->guests; guest != NULL;) {
        xfer_tcp_guest_t *next = guest->next;
        if (now >= guest->deadline) {
            xfer_tcp_complain(port, "reason=\"said nothing\"");
            xfer_tcp_guest_close(guest);
        } else {
            xfer_tcp_wake_at(port, guest->deadline);
        }
        guest = next;
    }
    if (port->deaf_until != 0 && now >= port->deaf_until) {
        port->deaf_until = 0;
        (void)watch(port, port->listener, &port->listener_watch);
    } else if (port->deaf_until != 0) {
        xfer_tcp_wake_at(port, port->deaf_until);
    }
}

static void on_event(xfer_tcp_port_t *port, void *what, bool can_receive)
{
    uint64_t n;
    switch (*(const xfer_tcp_watch_t *)what) {
    case XFER_TCP_WATCH_LISTENER:
        xfer_tcp_guest_accept(port);
        break;
    case XFER_TCP_WATCH_TIMER:
        (void)!read(port->timer, &n, sizeof(n));
        port->timer_at = XFER_TCP_NEVER;
        break;
    case XFER_TCP_WATCH_VRAM:
        xfer_vram_clear(port->vram);
        break;
    case XFER_TCP_WATCH_LINK: {
        xfer_tcp_link_t *link = WEFT_CONTAINER(what, xfer_tcp_link_t, watch);
        if (!link->is_closed) {
            xfer_tcp_link_turn(link, can_receive, true);
        }
        break;
    }
    case XFER_TCP_WATCH_GUEST: {
        xfer_tcp_guest_t *guest = WEFT_CONTAINER(what, xfer_tcp_guest_t, watch);
        if (!guest->is_closed) {
            xfer_tcp_guest_turn(guest, can_receive);
        }
        break;
    }
    }
}

/* What waited for the GPU goes on. */
static bool look_at_vram(xfer_tcp_port_t *port)
{
    if (port->vram == NULL || !xfer_vram_poll(port->vram)) {
        return false;
    }
    for (xfer_tcp_link_t *link = port->links; link != NULL; link = link->next) {
        xfer_tcp_ask_landed(link);
    }
    for (xfer_tcp_guest_t *guest = port->guests, *next; guest != NULL; guest = next) {
        next = guest->next;
        if (guest->n_acks > 0) {
            xfer_tcp_guest_turn(guest, false);
        }
    }
    return true;
}

static bool port_progress(xfer_port_t *base)
{
    xfer_tcp_port_t *port = port_of(base);
    const uint64_t now = weft_clock_ns();
    struct epoll_event events[MAX_EVENTS];
    assert(!port->is_in_progress);
    port->is_in_progress = true;
    port->turn_ends = now + TURN_NS;
    bool did = look_at_vram(port);
    did |= look_at_dirty(port);
    const int n = epoll_wait(port->epoll, events, MAX_EVENTS, 0);
    for (int i = 0; i < n; i++) {
        on_event(port, events[i].data.ptr, (events[i].events & ~(uint32_t)EPOLLOUT) != 0);
        did = true;
    }
    if (now >= port->tick_at) {
        tick(port);
        did = true;
    }
    port->is_in_progress = false;
    free_dead(port);
    return did;
}

static void set_timer(xfer_tcp_port_t *port)
{
    if (port->timer_at == port->tick_at) {
        return;
    }
    struct itimerspec spec = {0};
    if (port->tick_at != XFER_TCP_NEVER) {
        spec.it_value.tv_sec = (time_t)(port->tick_at / WEFT_NS_PER_SECOND);
        spec.it_value.tv_nsec = (long)(port->tick_at % WEFT_NS_PER_SECOND);
    }
    (void)timerfd_settime(port->timer, TFD_TIMER_ABSTIME, &spec, NULL);
    port->timer_at = port->tick_at;
}

static bool port_arm(xfer_port_t *base, int *fd_out)
{
    xfer_tcp_port_t *port = port_of(base);
    *fd_out = port->epoll;
    if (port->dirty != NULL || port->tick_at <= weft_clock_ns() ||
        (port->vram != NULL && !xfer_vram_arm(port->vram))) {
        return false;
    }
    set_timer(port);
    return true;
}

/*
 * The rows: tcp, and rails beside it for agents that name them, each with a port, an address and
 * parameters of its own ("tcp1.host=10.1.0.7"), so that a large request can use several networks.
 */
#define ROW_OPEN(row)                                                                              \
    static weft_status_t row##_open(const xfer_port_config_t *config, weft_diag_t *diag,           \
                                    xfer_port_t **port_out)                                        \
    {                                                                                              \
        return port_open(&xfer_backend_##row, config, diag, port_out);                             \
    }

#define ROW(row, wire, more_caps)                                                                  \
    const xfer_backend_t xfer_backend_##row = {                                                    \
        .name = #row,                                                                              \
        .wire_name = wire,                                                                         \
        .caps = XFER_CAP_DRAM | XFER_CAP_VRAM | XFER_CAP_GUARD | XFER_CAP_NOTIFY |                 \
                XFER_CAP_HOSTS | XFER_CAP_RESUME | XFER_CAP_SUMS | XFER_CAP_REVOKE |               \
                XFER_CAP_RAIL | (more_caps),                                                       \
        .open = row##_open,                                                                        \
        .close = port_close,                                                                       \
        .address = port_address,                                                                   \
        .connect = xfer_tcp_link_connect,                                                          \
        .disconnect = xfer_tcp_link_disconnect,                                                    \
        .map = port_map,                                                                           \
        .unmap = port_unmap,                                                                       \
        .import = link_import,                                                                     \
        .release = port_release,                                                                   \
        .post = xfer_tcp_ask_post,                                                                 \
        .cancel = xfer_tcp_ask_cancel,                                                             \
        .notify = xfer_tcp_note_send,                                                              \
        .progress = port_progress,                                                                 \
        .arm = port_arm,                                                                           \
    }

ROW_OPEN(tcp)
ROW_OPEN(tcp1)
ROW_OPEN(tcp2)
ROW_OPEN(tcp3)
ROW(tcp, "WEFT_TCP", 0);
ROW(tcp1, "WEFT_TCP1", XFER_CAP_NAMED);
ROW(tcp2, "WEFT_TCP2", XFER_CAP_NAMED);
ROW(tcp3, "WEFT_TCP3", XFER_CAP_NAMED);
