/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/loop_backend.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"

typedef struct loop_note {
    struct loop_note *next;
    size_t bytes;
    char peer[XFER_MAX_NAME + 1];
    uint8_t data[];
} loop_note_t;

typedef struct loop_map {
    struct loop_map *next;
    uint64_t id;
    uint64_t addr;
    uint64_t bytes;
} loop_map_t;

typedef struct loop_port {
    xfer_port_t base;
    struct loop_port *next; /* guarded by world, so below */
    uint64_t id;
    loop_map_t *maps;
    loop_note_t *notes;
    int fd;
    xfer_op_t *ops;  /* the agent's, by priority */
    int rail;        /* 1, 2; 0: not a rail's */
    bool no_connect; /* as told by parameters: these calls say that they cannot */
    bool no_map;
    bool no_import;
    bool no_move;
} loop_port_t;

typedef struct loop_link {
    xfer_link_t base;
    uint64_t peer;
    bool is_lost;
} loop_link_t;

static pthread_mutex_t world = PTHREAD_MUTEX_INITIALIZER;
static loop_port_t *ports;
static uint64_t last_id;

static loop_port_t *port_of(xfer_port_t *port)
{
    return (loop_port_t *)port;
}

static loop_port_t *find_port(uint64_t id)
{
    loop_port_t *port = ports;
    while (port != NULL && port->id != id) {
        port = port->next;
    }
    return port;
}

/* ---- rails that fail ------------------------------------------------------------------------- */

static atomic_int stalled_rail;
static atomic_int lost_rail;

void loop_backend_stall(int rail)
{
    atomic_store(&stalled_rail, rail);
}

void loop_backend_lose(int rail)
{
    atomic_store(&lost_rail, rail);
}

static bool is_it(const loop_port_t *port, const atomic_int *rail)
{
    return port->rail != 0 && (atomic_load(rail) == port->rail || atomic_load(rail) == LOOP_BOTH);
}

/* ---- ports and links ------------------------------------------------------------------------- */

static weft_status_t loop_open(const xfer_port_config_t *config, weft_diag_t *diag,
                               xfer_port_t **port_out)
{
    loop_port_t *port = weft_zalloc(sizeof(*port), "loop.port");
    if (port == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (config->param(config->user, "refuse") != NULL) {
        weft_free(port);
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "told to refuse");
    }
    port->base.config = *config;
    port->no_connect = config->param(config->user, "no_connect") != NULL;
    port->no_map = config->param(config->user, "no_map") != NULL;
    port->no_import = config->param(config->user, "no_import") != NULL;
    port->no_move = config->param(config->user, "no_move") != NULL;
    port->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_lock(&world);
    port->id = ++last_id;
    port->next = ports;
    ports = port;
    pthread_mutex_unlock(&world);
    *port_out = &port->base;
    return WEFT_OK;
}

static weft_status_t rail_open(int rail, const xfer_port_config_t *config, weft_diag_t *diag,
                               xfer_port_t **port_out)
{
    const weft_status_t status = loop_open(config, diag, port_out);
    if (status >= 0) {
        port_of(*port_out)->rail = rail;
    }
    return status;
}

static weft_status_t rail_one_open(const xfer_port_config_t *config, weft_diag_t *diag,
                                   xfer_port_t **port_out)
{
    return rail_open(1, config, diag, port_out);
}

static weft_status_t rail_two_open(const xfer_port_config_t *config, weft_diag_t *diag,
                                   xfer_port_t **port_out)
{
    return rail_open(2, config, diag, port_out);
}

static void loop_close(xfer_port_t *base)
{
    loop_port_t *port = port_of(base);
    pthread_mutex_lock(&world);
    loop_port_t **link = &ports;
    while (*link != port) {
        link = &(*link)->next;
    }
    *link = port->next;
    pthread_mutex_unlock(&world);
    while (port->notes != NULL) {
        loop_note_t *note = port->notes;
        port->notes = note->next;
        weft_free(note);
    }
    close(port->fd);
    weft_free(port);
}

static weft_status_t loop_address(xfer_port_t *port, weft_buffer_t *out)
{
    weft_buffer_append(out, &port_of(port)->id, sizeof(uint64_t));
    return WEFT_OK;
}

static weft_status_t loop_connect(xfer_port_t *port, const char *peer, const void *address,
                                  size_t bytes, xfer_link_t **link_out)
{
    (void)peer;
    if (port_of(port)->no_connect) {
        return WEFT_ERR_UNSUPPORTED;
    }
    loop_link_t *link = weft_zalloc(sizeof(*link), "loop.link");
    if (link == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (bytes != sizeof(link->peer)) {
        weft_free(link);
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&link->peer, address, sizeof(link->peer));
    pthread_mutex_lock(&world);
    const bool is_there = find_port(link->peer) != NULL;
    pthread_mutex_unlock(&world);
    if (!is_there) {
        weft_free(link);
        return WEFT_ERR_PEER_GONE;
    }
    link->base.port = port;
    *link_out = &link->base;
    return WEFT_OK;
}

static void end_ops(loop_port_t *port, const xfer_link_t *link, weft_status_t status)
{
    for (xfer_op_t **at = &port->ops; *at != NULL;) {
        xfer_op_t *op = *at;
        if (op->link == link) {
            *at = op->next;
            xfer_op_end(op, status);
        } else {
            at = &op->next;
        }
    }
}

static void loop_disconnect(xfer_link_t *link)
{
    end_ops(port_of(link->port), link, WEFT_ERR_CANCELLED);
    weft_free(link);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static weft_status_t loop_map(xfer_port_t *port, const xfer_memory_t *memory, weft_buffer_t *out,
                              void **handle_out)
{
    if (port_of(port)->no_map) {
        return WEFT_ERR_UNSUPPORTED;
    }
    loop_map_t *map = weft_zalloc(sizeof(*map), "loop.map");
    if (map == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    map->addr = memory->addr;
    map->bytes = memory->bytes;
    pthread_mutex_lock(&world);
    map->id = ++last_id;
    map->next = port_of(port)->maps;
    port_of(port)->maps = map;
    pthread_mutex_unlock(&world);
    weft_buffer_append(out, &map->id, sizeof(map->id));
    *handle_out = map;
    return WEFT_OK;
}

static void loop_unmap(xfer_port_t *port, void *handle)
{
    pthread_mutex_lock(&world);
    loop_map_t **link = &port_of(port)->maps;
    while (*link != handle) {
        link = &(*link)->next;
    }
    *link = (*link)->next;
    pthread_mutex_unlock(&world);
    weft_free(handle);
}

static weft_status_t loop_import(xfer_link_t *link, const xfer_memory_t *memory, const void *blob,
                                 size_t bytes, void **handle_out)
{
    (void)memory;
    if (port_of(link->port)->no_import) {
        return WEFT_ERR_UNSUPPORTED;
    }
    uint64_t *id = weft_alloc(sizeof(*id), "loop.import");
    if (id == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (bytes != sizeof(*id)) {
        weft_free(id);
        return WEFT_ERR_MALFORMED;
    }
    memcpy(id, blob, sizeof(*id));
    *handle_out = id;
    return WEFT_OK;
}

static void loop_release(xfer_port_t *port, void *handle)
{
    (void)port;
    weft_free(handle);
}

/* ---- notifications --------------------------------------------------------------------------- */

static weft_status_t loop_notify(xfer_link_t *base, const void *data, size_t bytes)
{
    loop_link_t *link = (loop_link_t *)base;
    loop_note_t *note = weft_zalloc(sizeof(*note) + bytes, "loop.note");
    if (note == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    note->bytes = bytes;
    if (bytes > 0) {
        memcpy(note->data, data, bytes);
    }
    strcpy(note->peer, base->port->config.agent);
    pthread_mutex_lock(&world);
    loop_port_t *to = find_port(link->peer);
    if (to != NULL) {
        loop_note_t **end = &to->notes;
        const uint64_t one = 1;
        while (*end != NULL) {
            end = &(*end)->next;
        }
        *end = note;
        (void)!write(to->fd, &one, sizeof(one));
    }
    pthread_mutex_unlock(&world);
    if (to == NULL) {
        weft_free(note);
        return WEFT_ERR_PEER_GONE;
    }
    return WEFT_OK;
}

static bool deliver_notes(loop_port_t *port)
{
    uint64_t count;
    (void)!read(port->fd, &count, sizeof(count));
    pthread_mutex_lock(&world);
    loop_note_t *note = port->notes;
    port->notes = NULL;
    pthread_mutex_unlock(&world);
    const bool has_any = note != NULL;
    while (note != NULL) {
        loop_note_t *next = note->next;
        const xfer_port_config_t *config = &port->base.config;
        config->on_notification(config->user, note->peer, note->data, note->bytes);
        weft_free(note);
        note = next;
    }
    return has_any;
}

/* ---- ops ------------------------------------------------------------------------------------- */

static void loop_post(xfer_link_t *link, xfer_op_t *op)
{
    xfer_op_t **at = &port_of(link->port)->ops;
    if (port_of(link->port)->no_move) {
        xfer_op_end(op, WEFT_ERR_UNSUPPORTED);
        return;
    }
    while (*at != NULL && (*at)->priority <= op->priority) {
        at = &(*at)->next;
    }
    op->next = *at;
    *at = op;
}

static void take_op(loop_port_t *port, xfer_op_t *op)
{
    xfer_op_t **at = &port->ops;
    while (*at != op) {
        at = &(*at)->next;
    }
    *at = op->next;
}

static void loop_cancel(xfer_op_t *op)
{
    take_op(port_of(op->link->port), op);
    xfer_op_end(op, WEFT_ERR_CANCELLED);
}

/* world is held. NULL: the peer took it back, or never had it so. */
static void *find_memory(loop_port_t *peer, const void *handle, uint64_t addr, uint64_t bytes)
{
    uint64_t id;
    memcpy(&id, handle, sizeof(id));
    const loop_map_t *map = peer->maps;
    while (map != NULL && map->id != id) {
        map = map->next;
    }
    const bool is_in = map != NULL && addr >= map->addr && bytes <= map->bytes &&
                       addr - map->addr <= map->bytes - bytes;
    return is_in ? (void *)(uintptr_t)addr : NULL;
}

static weft_status_t check_guard(loop_port_t *peer, const xfer_op_t *op)
{
    uint64_t word;
    if (!op->has_guard) {
        return WEFT_OK;
    }
    const void *at = find_memory(peer, op->guard_handle, op->guard.addr, sizeof(word));
    if (at == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    memcpy(&word, at, sizeof(word));
    return word == op->guard.expected ? WEFT_OK : WEFT_ERR_STALE;
}

static weft_status_t copy_step(loop_port_t *peer, xfer_op_t *op)
{
    const xfer_extent_t *extent = &op->extents[op->position];
    const uint64_t left = extent->bytes - op->offset;
    const uint64_t bytes = left < LOOP_STEP_BYTES ? left : LOOP_STEP_BYTES;
    void *local = (void *)(uintptr_t)(extent->local + op->offset);
    void *there =
        find_memory(peer, op->peer_handles[extent->peer_region], extent->peer + op->offset, bytes);
    if (there == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    memcpy(op->direction == XFER_READ ? local : there, op->direction == XFER_READ ? there : local,
           bytes);
    op->offset += bytes;
    if (op->offset == extent->bytes) {
        op->position++;
        op->offset = 0;
    }
    return WEFT_OK;
}

/* PENDING: there is more to do. */
static weft_status_t run_step(xfer_op_t *op)
{
    const loop_link_t *link = (const loop_link_t *)op->link;
    weft_status_t status = WEFT_ERR_PEER_GONE;
    pthread_mutex_lock(&world);
    loop_port_t *peer = find_port(link->peer);
    if (peer != NULL) {
        status = op->position == 0 && op->offset == 0 ? check_guard(peer, op) : WEFT_OK;
        if (status == WEFT_OK && op->position < op->n_extents) {
            status = copy_step(peer, op);
        }
        if (status == WEFT_OK) {
            status = op->position < op->n_extents ? WEFT_PENDING : check_guard(peer, op);
        }
    }
    pthread_mutex_unlock(&world);
    if (status == WEFT_OK && op->notification != NULL) {
        status = loop_notify(op->link, op->notification, op->notification_bytes);
    }
    return status;
}

static bool is_gone(const loop_link_t *link)
{
    pthread_mutex_lock(&world);
    const bool is_there = find_port(link->peer) != NULL;
    pthread_mutex_unlock(&world);
    return !is_there;
}

static void lose_link(loop_port_t *port, loop_link_t *link)
{
    link->is_lost = true;
    end_ops(port, &link->base, WEFT_ERR_PEER_GONE);
    port->base.config.on_link_lost(port->base.config.user, &link->base);
}

static bool run_first_op(loop_port_t *port)
{
    xfer_op_t *op = port->ops;
    if (op == NULL || is_it(port, &stalled_rail)) {
        return false;
    }
    if (is_it(port, &lost_rail)) {
        lose_link(port, (loop_link_t *)op->link);
        return true;
    }
    loop_link_t *link = (loop_link_t *)op->link;
    const weft_status_t status = run_step(op);
    if (status == WEFT_PENDING) {
        return true;
    }
    take_op(port, op);
    xfer_op_end(op, status);
    if (status == WEFT_ERR_PEER_GONE && is_gone(link) && !link->is_lost) {
        lose_link(port, link);
    } else if (status == WEFT_OK) {
        port->base.config.on_link_up(port->base.config.user, &link->base);
    }
    return true;
}

static atomic_ullong rounds;

uint64_t loop_backend_rounds(void)
{
    return atomic_load(&rounds);
}

static bool loop_progress(xfer_port_t *base)
{
    loop_port_t *port = port_of(base);
    atomic_fetch_add(&rounds, 1);
    const bool has_notes = deliver_notes(port);
    return run_first_op(port) || has_notes;
}

static bool loop_arm(xfer_port_t *base, int *fd_out)
{
    loop_port_t *port = port_of(base);
    *fd_out = port->fd;
    pthread_mutex_lock(&world);
    const bool is_idle = port->notes == NULL;
    pthread_mutex_unlock(&world);
    return is_idle && (port->ops == NULL || is_it(port, &stalled_rail));
}

#define LOOP_CAPS                                                                                  \
    (XFER_CAP_DRAM | XFER_CAP_GUARD | XFER_CAP_NOTIFY | XFER_CAP_REVOKE | XFER_CAP_HOSTS)

#define LOOP_FUNCTIONS                                                                             \
    .close = loop_close, .address = loop_address, .connect = loop_connect,                         \
    .disconnect = loop_disconnect, .map = loop_map, .unmap = loop_unmap, .import = loop_import,    \
    .release = loop_release, .post = loop_post, .cancel = loop_cancel, .notify = loop_notify,      \
    .progress = loop_progress, .arm = loop_arm

const xfer_backend_t loop_backend = {
    .name = "loop", .wire_name = "WEFT_LOOP", .caps = LOOP_CAPS, .open = loop_open, LOOP_FUNCTIONS};
const xfer_backend_t loop_backend_two = {.name = "loop2",
                                         .wire_name = "WEFT_LOOP2",
                                         .caps = LOOP_CAPS,
                                         .open = loop_open,
                                         LOOP_FUNCTIONS};
static const xfer_backend_t rail_one = {.name = "rail1",
                                        .wire_name = "WEFT_RAIL1",
                                        .caps = LOOP_CAPS | XFER_CAP_RAIL,
                                        .open = rail_one_open,
                                        LOOP_FUNCTIONS};
static const xfer_backend_t rail_two = {.name = "rail2",
                                        .wire_name = "WEFT_RAIL2",
                                        .caps = LOOP_CAPS | XFER_CAP_RAIL,
                                        .open = rail_two_open,
                                        LOOP_FUNCTIONS};

const xfer_backend_t *const loop_backends[] = {&loop_backend, NULL};
const xfer_backend_t *const loop_rails[] = {&rail_one, &rail_two, NULL};
const xfer_backend_t *const loop_backends_two[] = {&loop_backend, &loop_backend_two, NULL};
