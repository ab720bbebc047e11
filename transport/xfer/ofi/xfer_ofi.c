/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ofi: whatever libfabric has (EFA, CXI, its own tcp and shm) by one code: reliable datagrams with
 * one-sided reads and writes. The initiator moves the bytes and asks the other side for their sums.
 */
#define WEFT_LOG_MODULE "xfer"
#include "transport/xfer/ofi/xfer_ofi_priv.h"

#ifdef WEFT_HAS_OFI

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"

#define SOON_NS       (WEFT_NS_PER_MS)         /* a connection is being made, say */
#define ASK_AGAIN_NS  (WEFT_NS_PER_SECOND / 2) /* sums were asked for and did not come */
#define PATIENCE_MS   5000
#define MAX_COMPLETED 64 /* at once */

/* ---- the port -------------------------------------------------------------------------------- */

static void ofi_close(xfer_port_t *base)
{
    ofi_port_t *port = (ofi_port_t *)base;
    ofi_link_free_dead(port);
    ofi_door_close(port, &port->door); /* before the rooms that it receives into */
    ofi_slots_close(&port->answers);
    ofi_slots_close(&port->receives);
    ofi_objects_close(port);
    if (port->epoll_fd >= 0) {
        close(port->epoll_fd);
    }
    if (port->timer_fd >= 0) {
        close(port->timer_fd);
    }
    weft_free(port);
}

static weft_status_t open_fds(ofi_port_t *port)
{
    struct epoll_event event = {.events = EPOLLIN};
    port->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    port->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (port->epoll_fd < 0 || port->timer_fd < 0 ||
        epoll_ctl(port->epoll_fd, EPOLL_CTL_ADD, port->timer_fd, &event) != 0) {
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

static weft_status_t read_params(ofi_port_t *port, weft_diag_t *diag)
{
    const xfer_port_config_t *config = &port->base.config;
    const char *checksum = config->param(config->user, "checksum");
    const char *patience = config->param(config->user, "timeout_ms");
    char *end = NULL;
    const unsigned long long ms = patience != NULL ? strtoull(patience, &end, 10) : PATIENCE_MS;
    if (checksum != NULL && strcmp(checksum, "on") != 0 && strcmp(checksum, "off") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "ofi.checksum is on or off, not \"%s\"", checksum);
    }
    if (ms == 0 || ms > UINT32_MAX || (patience != NULL && *end != '\0')) {
        return weft_diag(diag, WEFT_ERR_INVALID, "ofi.timeout_ms is a number of milliseconds");
    }
    port->has_sums = checksum == NULL || strcmp(checksum, "on") == 0;
    port->patience_ns = ms * WEFT_NS_PER_MS;
    return WEFT_OK;
}

static weft_status_t open_rooms(ofi_port_t *port)
{
    weft_status_t status = ofi_slots_open(port, &port->answers, OFI_ANSWERS, XFER_OFI_MAX_MESSAGE);
    if (status == WEFT_OK) {
        status = ofi_slots_open(port, &port->receives, OFI_RECEIVES, XFER_OFI_MAX_MESSAGE);
    }
    if (status == WEFT_OK && getrandom(port->address.token, sizeof(port->address.token), 0) !=
                                 (ssize_t)sizeof(port->address.token)) {
        status = WEFT_ERR_IO;
    }
    return status;
}

static weft_status_t ofi_open(const xfer_port_config_t *config, weft_diag_t *diag,
                              xfer_port_t **port_out)
{
    const xfer_ofi_functions_t *functions;
    const char *provider = config->param(config->user, "provider");
    const char *host = config->param(config->user, "host");
    weft_status_t status = xfer_ofi_load(diag, &functions);
    if (status < 0) {
        return status;
    }
    ofi_port_t *port = weft_zalloc(sizeof(*port), "xfer.ofi.port");
    if (port == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    port->base = (xfer_port_t){.backend = &xfer_backend_ofi, .config = *config};
    port->ofi = functions;
    port->door.wait_fd = -1;
    port->epoll_fd = -1;
    port->timer_fd = -1;
    status = read_params(port, diag);
    if (status == WEFT_OK) {
        status = open_fds(port);
    }
    if (status == WEFT_OK) {
        status = ofi_objects_open(port, provider, host, diag);
    }
    if (status == WEFT_OK) {
        status = open_rooms(port);
    }
    if (status < 0) {
        ofi_close(&port->base);
        return status;
    }
    ofi_letter_post_receives(port);
    *port_out = &port->base;
    return WEFT_OK;
}

static weft_status_t ofi_address(xfer_port_t *base, weft_buffer_t *out)
{
    const ofi_port_t *port = (const ofi_port_t *)base;
    weft_buffer_append(out, &port->address, sizeof(port->address));
    weft_buffer_append(out, port->provider_address, port->address.bytes);
    return WEFT_OK;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static weft_status_t ofi_map(xfer_port_t *base, const xfer_memory_t *memory, weft_buffer_t *out,
                             void **handle_out)
{
    ofi_port_t *port = (ofi_port_t *)base;
    if (memory->space != XFER_DRAM) {
        return WEFT_ERR_UNSUPPORTED;
    }
    ofi_region_t *region = weft_zalloc(sizeof(*region), "xfer.ofi.region");
    if (region == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (ofi_memory_open(port, (void *)(uintptr_t)memory->addr, memory->bytes,
                        FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE, &region->mr) != 0) {
        weft_free(region);
        return WEFT_ERR_UNSUPPORTED;
    }
    region->number = ++port->regions_made;
    region->addr = memory->addr;
    region->bytes = memory->bytes;
    const bool is_virtual = (port->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR) != 0;
    const xfer_ofi_key_t key = {.version = XFER_OFI_VERSION,
                                .region = region->number,
                                .key = fi_mr_key(region->mr),
                                .origin = is_virtual ? memory->addr : 0};
    weft_buffer_append(out, &key, sizeof(key));
    region->next = port->regions;
    port->regions = region;
    *handle_out = region;
    return WEFT_OK;
}

static void ofi_unmap(xfer_port_t *base, void *handle)
{
    ofi_port_t *port = (ofi_port_t *)base;
    ofi_region_t *region = handle;
    ofi_region_t **at = &port->regions;
    while (*at != region) {
        at = &(*at)->next;
    }
    *at = region->next;
    (void)fi_close(&region->mr->fid);
    weft_free(region);
}

static weft_status_t ofi_import(xfer_link_t *link, const xfer_memory_t *memory, const void *blob,
                                size_t bytes, void **handle_out)
{
    xfer_ofi_key_t key;
    (void)link;
    const weft_status_t status = xfer_ofi_decode_key(blob, bytes, &key);
    if (status < 0) {
        return status;
    }
    if (memory->space != XFER_DRAM) {
        return WEFT_ERR_UNSUPPORTED;
    }
    ofi_import_t *import = weft_alloc(sizeof(*import), "xfer.ofi.import");
    if (import == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *import = (ofi_import_t){.key = key, .addr = memory->addr};
    *handle_out = import;
    return WEFT_OK;
}

static void ofi_release(xfer_port_t *port, void *handle)
{
    (void)port;
    weft_free(handle);
}

/* ---- its turn -------------------------------------------------------------------------------- */

static void take_completion(ofi_port_t *port, ofi_slot_t *slot, size_t bytes)
{
    if (slot->link != NULL) {
        slot->link->flight--;
        slot->link->stuck_ns = 0;
    }
    switch (slot->kind) {
    case OFI_MOVE:
    case OFI_WORD:
        ofi_move_completed(slot);
        break;
    case OFI_LETTER:
        ofi_link_up(slot->link);
        ofi_slot_give(&slot->link->letters, slot);
        break;
    case OFI_ANSWER:
        ofi_slot_give(&port->answers, slot);
        break;
    case OFI_RECEIVE:
        ofi_letter_received(port, slot, bytes);
        ofi_slot_give(&port->receives, slot);
        break;
    }
}

/* What failed on a link is its end; an answer or receive is only tried again. */
static bool take_error(ofi_port_t *port, const ofi_door_t *door)
{
    struct fi_cq_err_entry entry = {.op_context = NULL};
    if (fi_cq_readerr(door->cq, &entry, 0) != 1 || entry.op_context == NULL) {
        return false;
    }
    ofi_slot_t *slot = entry.op_context;
    if (slot->link != NULL) {
        weft_log_debug("ofi link failed: %s", port->ofi->strerror(entry.err));
        slot->link->has_failed = true;
    } else {
        ofi_slot_give(slot->kind == OFI_ANSWER ? &port->answers : &port->receives, slot);
    }
    return true;
}

static bool take_completions(ofi_port_t *port, const ofi_door_t *door)
{
    struct fi_cq_msg_entry entries[MAX_COMPLETED];
    const ssize_t n = fi_cq_read(door->cq, entries, MAX_COMPLETED);
    if (n == -FI_EAVAIL) {
        return take_error(port, door);
    }
    for (ssize_t i = 0; i < n; i++) {
        take_completion(port, entries[i].op_context, entries[i].len);
    }
    return n > 0;
}

static void set_timer(ofi_port_t *port, uint64_t delay_ns)
{
    const struct itimerspec when = {.it_value = {.tv_sec = (time_t)(delay_ns / WEFT_NS_PER_SECOND),
                                                 .tv_nsec = (long)(delay_ns % WEFT_NS_PER_SECOND)}};
    if (!port->is_ticking) {
        port->is_ticking = timerfd_settime(port->timer_fd, 0, &when, NULL) == 0;
    }
}

static void on_timer(ofi_port_t *port)
{
    uint64_t times;
    if (read(port->timer_fd, &times, sizeof(times)) != (ssize_t)sizeof(times)) {
        return;
    }
    port->is_ticking = false;
}

/* Nothing of the link is under way though it should: it is being connected, or the peer is dead. */
static void lose_patience(ofi_port_t *port, ofi_link_t *link, uint64_t now)
{
    const bool is_stuck = (link->is_stuck || link->unsent != NULL) && link->flight == 0;
    if (!is_stuck) {
        link->stuck_ns = 0;
    } else if (link->stuck_ns == 0) {
        link->stuck_ns = now;
    } else if (now - link->stuck_ns > port->patience_ns) {
        link->has_failed = true;
    }
    if (is_stuck) {
        set_timer(port, SOON_NS);
    }
}

static bool run_links(ofi_port_t *port)
{
    const uint64_t now = weft_clock_ns();
    bool did_something = false;
    for (ofi_link_t *link = port->links, *next; link != NULL; link = next) {
        next = link->next;
        if (link->door.ep == NULL) {
            continue;
        }
        did_something = take_completions(port, &link->door) || did_something;
        ofi_letter_send_unsent(link);
        did_something = ofi_move(link) || did_something;
        if (link->busy.first != NULL && now - link->asked_ns > ASK_AGAIN_NS) {
            link->asked_ns = now;
            ofi_move_ask_again(link);
        }
        if (link->busy.first != NULL) {
            set_timer(port, ASK_AGAIN_NS);
        }
        lose_patience(port, link, now);
    }
    return did_something;
}

static bool ofi_progress(xfer_port_t *base)
{
    ofi_port_t *port = (ofi_port_t *)base;
    on_timer(port);
    ofi_link_free_dead(port);
    bool did_something = take_completions(port, &port->door);
    did_something = run_links(port) || did_something;
    ofi_letter_post_receives(port);
    ofi_link_lose_failed(port);
    return did_something;
}

static bool has_work(const ofi_link_t *link)
{
    return link->has_failed || (xfer_op_queue_first(&link->ready) != NULL && !link->is_stuck);
}

/* False: there is something to take already. */
static bool can_wait(ofi_port_t *port, const ofi_door_t *door)
{
    struct fid *fids[] = {&door->cq->fid};
    if (door->wait_fd < 0) {
        set_timer(port, SOON_NS);
        return true;
    }
    return fi_trywait(port->fabric, fids, 1) == 0;
}

static bool ofi_arm(xfer_port_t *base, int *fd_out)
{
    ofi_port_t *port = (ofi_port_t *)base;
    *fd_out = port->epoll_fd;
    for (const ofi_link_t *link = port->links; link != NULL; link = link->next) {
        if (link->door.ep != NULL && (has_work(link) || !can_wait(port, &link->door))) {
            return false;
        }
    }
    return can_wait(port, &port->door);
}

const xfer_backend_t xfer_backend_ofi = {
    .name = "ofi",
    .wire_name = "WEFT_OFI",
    .caps = XFER_CAP_DRAM | XFER_CAP_GUARD | XFER_CAP_NOTIFY | XFER_CAP_HOSTS | XFER_CAP_SUMS,
    .open = ofi_open,
    .close = ofi_close,
    .address = ofi_address,
    .connect = ofi_connect,
    .disconnect = ofi_disconnect,
    .map = ofi_map,
    .unmap = ofi_unmap,
    .import = ofi_import,
    .release = ofi_release,
    .post = ofi_post,
    .cancel = ofi_cancel,
    .notify = ofi_notify,
    .progress = ofi_progress,
    .arm = ofi_arm,
};

#else

static weft_status_t ofi_open(const xfer_port_config_t *config, weft_diag_t *diag,
                              xfer_port_t **port_out)
{
    (void)config;
    (void)port_out;
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ofi: built without libfabric's headers");
}

const xfer_backend_t xfer_backend_ofi = {.name = "ofi", .wire_name = "WEFT_OFI", .open = ofi_open};

#endif
