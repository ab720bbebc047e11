/* SPDX-License-Identifier: Apache-2.0 */
/*
 * faulty: another backend, made worse on purpose, for tests. Only for agents that name it. Rates
 * are between 0 and 1, drawn from a seeded generator.
 *
 *     faulty.under=tcp       what is wrapped; "faulty.tcp.host=…" is its parameter "host"
 *     faulty.seed=1
 *     faulty.delay_us=500    requests end so much later at most
 *     faulty.reorder=0.1     requests that end 1 ms later, so behind others
 *     faulty.drop=0.01       requests and notifications that get lost, and their link with them
 *     faulty.cut_after=n     a link is lost once it has moved so many bytes
 *     faulty.corrupt=0.01    reads that end well with a byte changed
 *
 * An op is passed on as a copy, so that its end comes here first.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/xfer/xfer_backend.h"

#define REORDER_NS  UINT64_C(1000000)
#define NEEDED_CAPS (XFER_CAP_DRAM | XFER_CAP_GUARD | XFER_CAP_NOTIFY)

typedef struct faulty_link faulty_link_t;

typedef struct faulty_op {
    xfer_op_t op; /* passed on */
    xfer_op_t *outer;
    faulty_link_t *link;
    struct faulty_op *next;
    bool is_done; /* it waits for due_ns with status */
    weft_status_t status;
    uint64_t due_ns;
} faulty_op_t;

typedef struct faulty_port {
    xfer_port_t base;
    const xfer_backend_t *under;
    xfer_port_t *port; /* of under */
    faulty_link_t *links;
    int epoll_fd;
    int timer_fd;
    int under_fd; /* in epoll_fd; -1: none yet */
    uint64_t random;
    uint64_t delay_ns;
    uint64_t cut_after;
    double reorder;
    double drop;
    double corrupt;
} faulty_port_t;

struct faulty_link {
    xfer_link_t base;
    faulty_link_t *next;
    xfer_link_t *link; /* of under; NULL: cut */
    faulty_op_t *ops;
    uint64_t moved_bytes;
    bool is_to_be_cut; /* at the next progress */
    bool is_lost;      /* the agent was told */
    weft_status_t end; /* what ops end with instead of WEFT_ERR_CANCELLED; OK: that */
};

static faulty_port_t *port_of(const xfer_link_t *link)
{
    return (faulty_port_t *)link->port;
}

/* ---- chance ---------------------------------------------------------------------------------- */

/* Sebastiano Vigna's splitmix64. */
static uint64_t draw(faulty_port_t *port)
{
    uint64_t z = (port->random += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static bool happens(faulty_port_t *port, double rate)
{
    return rate > 0 && (double)(draw(port) >> 11) * 0x1p-53 < rate;
}

/* ---- parameters ------------------------------------------------------------------------------ */

static weft_status_t get_number(const xfer_port_config_t *config, const char *key, double max,
                                weft_diag_t *diag, double *value_out)
{
    const char *text = config->param(config->user, key);
    if (text == NULL) {
        return WEFT_OK;
    }
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0 && value <= max)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s is a number from 0 to %g, not \"%s\"", key,
                         max, text);
    }
    *value_out = value;
    return WEFT_OK;
}

static weft_status_t get_numbers(faulty_port_t *port, weft_diag_t *diag)
{
    double seed = 1;
    double delay_us = 0;
    double cut_after = 0;
    const struct {
        const char *key;
        double max;
        double *to;
    } numbers[] = {
        {"seed", 0x1p53, &seed},           {"delay_us", 1e9, &delay_us},
        {"cut_after", 0x1p53, &cut_after}, {"reorder", 1, &port->reorder},
        {"drop", 1, &port->drop},          {"corrupt", 1, &port->corrupt},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(numbers); i++) {
        weft_status_t status =
            get_number(&port->base.config, numbers[i].key, numbers[i].max, diag, numbers[i].to);
        if (status < 0) {
            return status;
        }
    }
    port->random = (uint64_t)seed;
    port->delay_ns = (uint64_t)(delay_us * 1000);
    port->cut_after = (uint64_t)cut_after;
    return WEFT_OK;
}

static weft_status_t find_under(faulty_port_t *port, weft_diag_t *diag)
{
    const char *name = port->base.config.param(port->base.config.user, "under");
    if (name == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "faulty.under has to name a backend");
    }
    for (size_t i = 0; xfer_backends[i] != NULL; i++) {
        const xfer_backend_t *row = xfer_backends[i];
        if (strcmp(row->name, name) == 0 && (row->caps & XFER_CAP_NAMED) == 0) {
            port->under = row;
        }
    }
    if (port->under == NULL || (port->under->caps & NEEDED_CAPS) != NEEDED_CAPS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "\"%s\" cannot be wrapped", name);
    }
    return WEFT_OK;
}

/* ---- ends ------------------------------------------------------------------------------------ */

static void unlink_op(faulty_op_t *op)
{
    faulty_op_t **at = &op->link->ops;
    while (*at != op) {
        at = &(*at)->next;
    }
    *at = op->next;
}

static void finish(faulty_op_t *op, weft_status_t status)
{
    xfer_op_t *outer = op->outer;
    unlink_op(op);
    outer->resumed = op->op.resumed;
    weft_free(op);
    xfer_op_end(outer, status);
}

static void damage(faulty_port_t *port, const xfer_op_t *op)
{
    const xfer_extent_t *extent = &op->extents[draw(port) % op->n_extents];
    uint8_t *byte = (uint8_t *)(uintptr_t)(extent->local + draw(port) % extent->bytes);
    *byte ^= (uint8_t)(1 + draw(port) % 255);
}

static uint64_t draw_delay(faulty_port_t *port)
{
    return (port->delay_ns > 0 ? draw(port) % port->delay_ns : 0) +
           (happens(port, port->reorder) ? REORDER_NS : 0);
}

/* For the copy's xfer_op.end. */
static void passed_op_ended(xfer_op_t *base, weft_status_t status)
{
    faulty_op_t *op = WEFT_CONTAINER(base, faulty_op_t, op);
    faulty_link_t *link = op->link;
    faulty_port_t *port = port_of(&link->base);
    if (status == WEFT_ERR_CANCELLED && link->end != WEFT_OK) {
        status = link->end;
    }
    if (status == WEFT_OK) {
        link->moved_bytes += op->op.bytes;
        link->is_to_be_cut |= port->cut_after > 0 && link->moved_bytes >= port->cut_after;
        if (op->op.direction == XFER_READ && op->op.n_extents > 0 && happens(port, port->corrupt)) {
            damage(port, &op->op);
        }
    }
    const uint64_t delay = status == WEFT_OK ? draw_delay(port) : 0;
    if (delay == 0) {
        finish(op, status);
        return;
    }
    op->is_done = true;
    op->status = status;
    op->due_ns = weft_clock_ns() + delay;
}

/* Those that only waited to end do so now. */
static void finish_done(faulty_link_t *link, uint64_t now_ns, weft_status_t instead)
{
    for (faulty_op_t *op = link->ops; op != NULL;) {
        faulty_op_t *next = op->next;
        if (op->is_done && op->due_ns <= now_ns) {
            finish(op, instead == WEFT_OK ? op->status : instead);
        }
        op = next;
    }
}

/* The link of under goes, and with it what still runs. */
static void cut(faulty_link_t *link, weft_status_t end)
{
    link->end = end;
    if (link->link != NULL) {
        xfer_link_t *under = link->link;
        link->link = NULL;
        port_of(&link->base)->under->disconnect(under);
    }
    finish_done(link, UINT64_MAX, end);
    while (link->ops != NULL) { /* dropped ones */
        finish(link->ops, end);
    }
}

static void tell_lost(faulty_link_t *link)
{
    const xfer_port_config_t *config = &link->base.port->config;
    if (!link->is_lost) {
        link->is_lost = true;
        config->on_link_lost(config->user, &link->base);
    }
}

/* ---- what under says ------------------------------------------------------------------------- */

static const char *under_param(void *user, const char *key)
{
    const faulty_port_t *port = user;
    char full[128];
    snprintf(full, sizeof(full), "%s.%s", port->under->name, key);
    return port->base.config.param(port->base.config.user, full);
}

static void under_notification(void *user, const char *peer, const void *data, size_t bytes)
{
    const faulty_port_t *port = user;
    port->base.config.on_notification(port->base.config.user, peer, data, bytes);
}

static void under_checksum_error(void *user)
{
    const faulty_port_t *port = user;
    port->base.config.on_checksum_error(port->base.config.user);
}

static void under_link_up(void *user, xfer_link_t *under)
{
    const faulty_port_t *port = user;
    if (under->user != NULL) {
        port->base.config.on_link_up(port->base.config.user, under->user);
    }
}

static void under_link_lost(void *user, xfer_link_t *under)
{
    (void)user;
    faulty_link_t *link = under->user;
    finish_done(link, UINT64_MAX, WEFT_OK);
    link->is_to_be_cut = true; /* not from within under */
}

/* ---- ports ----------------------------------------------------------------------------------- */

static void faulty_close(xfer_port_t *base)
{
    faulty_port_t *port = (faulty_port_t *)base;
    if (port->port != NULL) {
        port->under->close(port->port);
    }
    if (port->epoll_fd >= 0) {
        close(port->epoll_fd);
    }
    if (port->timer_fd >= 0) {
        close(port->timer_fd);
    }
    weft_free(port);
}

static weft_status_t watch(const faulty_port_t *port, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    return epoll_ctl(port->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? WEFT_OK : WEFT_ERR_IO;
}

static weft_status_t port_init(faulty_port_t *port, weft_diag_t *diag)
{
    weft_status_t status = find_under(port, diag);
    if (status == WEFT_OK) {
        status = get_numbers(port, diag);
    }
    if (status < 0) {
        return status;
    }
    port->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    port->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (port->epoll_fd < 0 || port->timer_fd < 0 || watch(port, port->timer_fd) < 0) {
        return WEFT_ERR_IO;
    }
    const xfer_port_config_t config = {
        .agent = port->base.config.agent,
        .param = under_param,
        .on_notification = under_notification,
        .on_link_up = under_link_up,
        .on_link_lost = under_link_lost,
        .on_checksum_error = under_checksum_error,
        .user = port,
    };
    status = port->under->open(&config, diag, &port->port);
    if (status == WEFT_OK) {
        port->port->backend = port->under;
    }
    return status;
}

static weft_status_t faulty_open(const xfer_port_config_t *config, weft_diag_t *diag,
                                 xfer_port_t **port_out)
{
    faulty_port_t *port = weft_zalloc(sizeof(*port), "xfer.faulty_port");
    if (port == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    port->base.config = *config;
    port->epoll_fd = -1;
    port->timer_fd = -1;
    port->under_fd = -1;
    weft_status_t status = port_init(port, diag);
    if (status < 0) {
        faulty_close(&port->base);
        return status;
    }
    *port_out = &port->base;
    return WEFT_OK;
}

/* Both sides have to wrap the same: its name is part of the address. */
static weft_status_t faulty_address(xfer_port_t *base, weft_buffer_t *out)
{
    const faulty_port_t *port = (const faulty_port_t *)base;
    weft_buffer_append(out, port->under->name, strlen(port->under->name) + 1);
    return port->under->address(port->port, out);
}

/* ---- links ----------------------------------------------------------------------------------- */

static weft_status_t faulty_connect(xfer_port_t *base, const char *peer, const void *address,
                                    size_t bytes, xfer_link_t **link_out)
{
    faulty_port_t *port = (faulty_port_t *)base;
    const size_t name_bytes = strlen(port->under->name) + 1;
    if (bytes <= name_bytes || memcmp(address, port->under->name, name_bytes) != 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    faulty_link_t *link = weft_zalloc(sizeof(*link), "xfer.faulty_link");
    if (link == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    link->base.port = base;
    weft_status_t status = port->under->connect(
        port->port, peer, (const char *)address + name_bytes, bytes - name_bytes, &link->link);
    if (status < 0) {
        weft_free(link);
        return status;
    }
    link->link->port = port->port;
    link->link->user = link;
    link->next = port->links;
    port->links = link;
    *link_out = &link->base;
    return WEFT_OK;
}

static void faulty_disconnect(xfer_link_t *base)
{
    faulty_link_t *link = (faulty_link_t *)base;
    faulty_link_t **at = &port_of(base)->links;
    cut(link, WEFT_ERR_CANCELLED);
    while (*at != link) {
        at = &(*at)->next;
    }
    *at = link->next;
    weft_free(link);
}

static weft_status_t faulty_map(xfer_port_t *base, const xfer_memory_t *memory, weft_buffer_t *out,
                                void **handle_out)
{
    const faulty_port_t *port = (const faulty_port_t *)base;
    return port->under->map(port->port, memory, out, handle_out);
}

static void faulty_unmap(xfer_port_t *base, void *handle)
{
    const faulty_port_t *port = (const faulty_port_t *)base;
    port->under->unmap(port->port, handle);
}

static weft_status_t faulty_import(xfer_link_t *base, const xfer_memory_t *memory, const void *blob,
                                   size_t bytes, void **handle_out)
{
    const faulty_link_t *link = (const faulty_link_t *)base;
    if (link->link == NULL) {
        return WEFT_ERR_PEER_GONE;
    }
    return port_of(base)->under->import(link->link, memory, blob, bytes, handle_out);
}

static void faulty_release(xfer_port_t *base, void *handle)
{
    const faulty_port_t *port = (const faulty_port_t *)base;
    port->under->release(port->port, handle);
}

/* ---- ops ------------------------------------------------------------------------------------- */

static void faulty_post(xfer_link_t *base, xfer_op_t *outer)
{
    faulty_link_t *link = (faulty_link_t *)base;
    faulty_port_t *port = port_of(base);
    if (link->link == NULL) {
        xfer_op_end(outer, WEFT_ERR_PEER_GONE);
        return;
    }
    faulty_op_t *op = weft_zalloc(sizeof(*op), "xfer.faulty_op");
    if (op == NULL) {
        xfer_op_end(outer, WEFT_ERR_NO_MEMORY);
        return;
    }
    op->op = *outer;
    op->op.end = passed_op_ended;
    op->op.link = link->link;
    op->outer = outer;
    op->link = link;
    op->next = link->ops;
    link->ops = op;
    memcpy(&outer->words[0], &op, sizeof(op)); /* for cancel */
    if (happens(port, port->drop)) {
        op->is_done = true;
        op->status = WEFT_ERR_PEER_GONE;
        op->due_ns = UINT64_MAX;
        link->is_to_be_cut = true;
        return;
    }
    port->under->post(link->link, &op->op);
}

static void faulty_cancel(xfer_op_t *outer)
{
    faulty_op_t *op;
    memcpy(&op, &outer->words[0], sizeof(op));
    if (op->is_done) {
        finish(op, op->status);
    } else {
        port_of(&op->link->base)->under->cancel(&op->op);
    }
}

static weft_status_t faulty_notify(xfer_link_t *base, const void *data, size_t bytes)
{
    faulty_link_t *link = (faulty_link_t *)base;
    faulty_port_t *port = port_of(base);
    if (link->link == NULL) {
        return WEFT_ERR_PEER_GONE;
    }
    if (happens(port, port->drop)) {
        link->is_to_be_cut = true;
        return WEFT_OK; /* as with a peer that fell after it was sent */
    }
    return port->under->notify(link->link, data, bytes);
}

/* ---- time ------------------------------------------------------------------------------------ */

static bool cut_links(faulty_port_t *port)
{
    bool has_any = false;
    for (faulty_link_t *link = port->links; link != NULL; link = link->next) {
        if (link->is_to_be_cut && !link->is_lost) {
            has_any = true;
            cut(link, WEFT_ERR_PEER_GONE);
            tell_lost(link);
        }
    }
    return has_any;
}

static bool faulty_progress(xfer_port_t *base)
{
    faulty_port_t *port = (faulty_port_t *)base;
    const bool has_moved = port->under->progress(port->port);
    const uint64_t now = weft_clock_ns();
    for (faulty_link_t *link = port->links; link != NULL; link = link->next) {
        finish_done(link, now, WEFT_OK);
    }
    return cut_links(port) || has_moved;
}

/* When the first of those that wait is due; UINT64_MAX: none waits; 0: there is work now. */
static uint64_t next_due(const faulty_port_t *port)
{
    uint64_t due = UINT64_MAX;
    for (const faulty_link_t *link = port->links; link != NULL; link = link->next) {
        if (link->is_to_be_cut && !link->is_lost) {
            return 0;
        }
        for (const faulty_op_t *op = link->ops; op != NULL; op = op->next) {
            due = op->is_done && op->due_ns < due ? op->due_ns : due;
        }
    }
    return due;
}

static bool set_timer(const faulty_port_t *port, uint64_t due_ns)
{
    struct itimerspec when = {0};
    if (due_ns != UINT64_MAX) {
        when.it_value.tv_sec = (time_t)(due_ns / WEFT_NS_PER_SECOND);
        when.it_value.tv_nsec = (long)(due_ns % WEFT_NS_PER_SECOND);
    }
    return timerfd_settime(port->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0;
}

static bool faulty_arm(xfer_port_t *base, int *fd_out)
{
    faulty_port_t *port = (faulty_port_t *)base;
    int fd = -1;
    const uint64_t due = next_due(port);
    *fd_out = port->epoll_fd;
    if (due <= weft_clock_ns() || !set_timer(port, due) || !port->under->arm(port->port, &fd)) {
        return false;
    }
    if (fd >= 0 && port->under_fd != fd) {
        if (watch(port, fd) < 0) {
            return false;
        }
        port->under_fd = fd;
    }
    return true;
}

const xfer_backend_t xfer_backend_faulty = {
    .name = "faulty",
    .wire_name = "WEFT_FAULTY",
    .caps = NEEDED_CAPS | XFER_CAP_NAMED,
    .open = faulty_open,
    .close = faulty_close,
    .address = faulty_address,
    .connect = faulty_connect,
    .disconnect = faulty_disconnect,
    .map = faulty_map,
    .unmap = faulty_unmap,
    .import = faulty_import,
    .release = faulty_release,
    .post = faulty_post,
    .cancel = faulty_cancel,
    .notify = faulty_notify,
    .progress = faulty_progress,
    .arm = faulty_arm,
};
