/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A blob made a peer, or more of one. First everything is checked and allocated, apart from what is
 * known (staged); then it joins what is known, which cannot fail.
 */
#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_blob.h"
#include "transport/xfer/xfer_peer_priv.h"

typedef struct import {
    xfer_agent_t *agent;
    weft_diag_t *diag;
    bool is_own; /* the blob is the agent's own */
    xfer_blob_t blob;
    char name[XFER_MAX_NAME + 1];
    xfer_peer_t *known; /* NULL: the peer is new */
    xfer_peer_t *fresh; /* all that the blob says, as a peer of its own */
} import_t;

/* ---- pieces ---------------------------------------------------------------------------------- */

void xfer_peer_region_destroy(xfer_peer_region_t *region, size_t n_ways)
{
    for (size_t w = 0; w < n_ways; w++) {
        weft_free(region->at[w].key);
    }
    weft_free(region);
}

static xfer_peer_t *peer_alloc(xfer_agent_t *agent, const char *name)
{
    xfer_peer_t *peer =
        weft_zalloc(sizeof(*peer) + agent->n_ways * sizeof(peer->routes[0]), "xfer.peer");
    if (peer == NULL) {
        return NULL;
    }
    peer->agent = agent;
    peer->last_way = agent->n_ways;
    atomic_init(&peer->references, 1);
    memcpy(peer->name, name, strlen(name) + 1);
    for (size_t w = 0; w < agent->n_ways; w++) {
        peer->routes[w].peer = peer;
        peer->routes[w].way = &agent->ways[w];
    }
    return peer;
}

/* The number of our way of that name; n_ways: we have none. */
static size_t find_way(const xfer_agent_t *agent, xfer_bytes_t wire_name)
{
    size_t w = 0;
    for (; w < agent->n_ways; w++) {
        const char *name = agent->ways[w].backend->wire_name;
        if (strlen(name) == wire_name.n && memcmp(name, wire_name.data, wire_name.n) == 0) {
            break;
        }
    }
    return w;
}

static void *copy_bytes(xfer_bytes_t bytes)
{
    void *copy = weft_alloc(bytes.n, "xfer.peer");
    if (copy != NULL) {
        memcpy(copy, bytes.data, bytes.n);
    }
    return copy;
}

/* ---- staging --------------------------------------------------------------------------------- */

static weft_status_t set_name(import_t *import)
{
    const xfer_bytes_t name = import->blob.agent;
    if (name.n > XFER_MAX_NAME || memchr(name.data, '\0', name.n) != NULL) {
        return weft_diag(import->diag, WEFT_ERR_MALFORMED, "blob: an agent's name of %zu bytes",
                         name.n);
    }
    memcpy(import->name, name.data, name.n);
    if (!import->is_own && strcmp(import->name, import->agent->name) == 0) {
        return weft_diag(import->diag, WEFT_ERR_INVALID, "the blob of agent \"%s\" is its own",
                         import->name);
    }
    return WEFT_OK;
}

static weft_status_t stage_conns(import_t *import)
{
    xfer_peer_t *peer = import->fresh;
    for (size_t i = 0; i < import->blob.n_conns; i++) {
        const xfer_blob_conn_t *conn = &import->blob.conns[i];
        const size_t w = find_way(import->agent, conn->backend);
        if (w == import->agent->n_ways) {
            continue;
        }
        xfer_route_t *route = &peer->routes[w];
        route->address = copy_bytes(conn->address);
        if (route->address == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        route->address_bytes = conn->address.n;
        peer->ways |= UINT32_C(1) << w;
    }
    if (import->blob.n_conns > 0 && peer->ways == 0) {
        return weft_diag(import->diag, WEFT_ERR_UNSUPPORTED,
                         "agent \"%s\" has %zu backends, of which we have none", import->name,
                         import->blob.n_conns);
    }
    return WEFT_OK;
}

static weft_status_t stage_region(import_t *import, size_t w, int32_t space,
                                  const xfer_blob_region_t *from)
{
    const size_t n_ways = import->agent->n_ways;
    xfer_peer_region_t *region =
        weft_zalloc(sizeof(*region) + n_ways * sizeof(region->at[0]), "xfer.peer_region");
    if (region == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    region->range = (xfer_range_t){.space = space,
                                   .device = from->device,
                                   .addr = from->addr,
                                   .bytes = from->bytes,
                                   .ways = UINT32_C(1) << w};
    xfer_peer_mapping_t *mapping = &region->at[w];
    mapping->key_bytes = from->key.n;
    mapping->key = from->key.n == 0 ? NULL : copy_bytes(from->key);
    weft_status_t status = from->key.n > 0 && mapping->key == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    if (status == WEFT_OK) {
        status = xfer_ranges_reserve(&import->fresh->regions, 1);
    }
    if (status < 0) {
        xfer_peer_region_destroy(region, n_ways);
        return status;
    }
    xfer_ranges_append(&import->fresh->regions, &region->range);
    return WEFT_OK;
}

static bool is_same_range(const xfer_range_t *a, const xfer_range_t *b)
{
    return a->space == b->space && a->device == b->device && a->addr == b->addr &&
           a->bytes == b->bytes;
}

/* Moves to `to` what `from`, the same memory, knows and it does not. */
static void merge_region(xfer_peer_region_t *to, xfer_peer_region_t *from, size_t n_ways)
{
    for (size_t w = 0; w < n_ways; w++) {
        const uint32_t bit = UINT32_C(1) << w;
        if ((from->range.ways & bit) != 0 && (to->range.ways & bit) == 0) {
            to->at[w] = from->at[w];
            to->range.ways |= bit;
            from->at[w] = (xfer_peer_mapping_t){0};
        }
    }
}

/* One memory comes once for each backend: such neighbours become one. */
static weft_status_t unite_regions(import_t *import)
{
    xfer_ranges_t *set = &import->fresh->regions;
    const size_t n_ways = import->agent->n_ways;
    size_t kept = 0;
    xfer_ranges_sort(set);
    for (size_t i = 0; i < set->n; i++) {
        xfer_peer_region_t *region = (xfer_peer_region_t *)set->items[i];
        xfer_peer_region_t *last = kept == 0 ? NULL : (xfer_peer_region_t *)set->items[kept - 1];
        if (last != NULL && is_same_range(&last->range, &region->range) &&
            (last->range.ways & region->range.ways) == 0) {
            merge_region(last, region, n_ways);
            xfer_peer_region_destroy(region, n_ways);
        } else {
            set->items[kept++] = &region->range;
        }
    }
    set->n = kept;
    const xfer_range_t *clash = xfer_ranges_clash(set);
    if (clash != NULL) {
        return weft_diag(import->diag, WEFT_ERR_MALFORMED,
                         "blob: the region of %llu bytes at 0x%llx overlaps another",
                         (unsigned long long)clash->bytes, (unsigned long long)clash->addr);
    }
    return WEFT_OK;
}

static weft_status_t stage_sections(import_t *import)
{
    for (size_t s = 0; s < import->blob.n_sections; s++) {
        const xfer_blob_section_t *section = &import->blob.sections[s];
        const size_t w = find_way(import->agent, section->backend);
        if (w == import->agent->n_ways || xfer_space_cap(section->space) == 0) {
            continue;
        }
        for (size_t i = 0; i < section->n; i++) {
            weft_status_t status = stage_region(import, w, section->space, &section->regions[i]);
            if (status < 0) {
                return status;
            }
        }
    }
    return unite_regions(import);
}

static weft_status_t stage(import_t *import)
{
    weft_status_t status = set_name(import);
    if (status < 0) {
        return status;
    }
    import->fresh = peer_alloc(import->agent, import->name);
    if (import->fresh == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    status = stage_conns(import);
    return status < 0 ? status : stage_sections(import);
}

/* ---- joining; both locks are held ------------------------------------------------------------ */

static weft_status_t is_changed(const import_t *import, const char *what)
{
    return weft_diag(import->diag, WEFT_ERR_EXISTS,
                     "%s of agent \"%s\" is not what it was: forget it first", what, import->name);
}

static bool is_same_key(const xfer_peer_mapping_t *a, const xfer_peer_mapping_t *b)
{
    return a->key_bytes == b->key_bytes &&
           (a->key_bytes == 0 || memcmp(a->key, b->key, a->key_bytes) == 0);
}

static weft_status_t check_region(const import_t *import, const xfer_peer_region_t *region)
{
    const xfer_range_t *old = xfer_ranges_overlap(&import->known->regions, &region->range);
    if (old == NULL) {
        return WEFT_OK;
    }
    const uint32_t both = old->ways & region->range.ways;
    bool is_same = is_same_range(old, &region->range);
    for (size_t w = 0; is_same && w < import->agent->n_ways; w++) {
        is_same = (both & UINT32_C(1) << w) == 0 ||
                  is_same_key(&((const xfer_peer_region_t *)old)->at[w], &region->at[w]);
    }
    return is_same ? WEFT_OK : is_changed(import, "a region");
}

static weft_status_t check_known(const import_t *import)
{
    const xfer_peer_t *known = import->known;
    const xfer_peer_t *fresh = import->fresh;
    for (size_t w = 0; w < import->agent->n_ways; w++) {
        const xfer_route_t *a = &known->routes[w];
        const xfer_route_t *b = &fresh->routes[w];
        if (a->address != NULL && b->address != NULL &&
            (a->address_bytes != b->address_bytes ||
             memcmp(a->address, b->address, a->address_bytes) != 0)) {
            return is_changed(import, "the address");
        }
    }
    for (size_t i = 0; i < fresh->regions.n; i++) {
        weft_status_t status =
            check_region(import, (const xfer_peer_region_t *)fresh->regions.items[i]);
        if (status < 0) {
            return status;
        }
    }
    return xfer_ranges_reserve(&import->known->regions, fresh->regions.n);
}

static void join_routes(import_t *import)
{
    for (size_t w = 0; w < import->agent->n_ways; w++) {
        xfer_route_t *to = &import->known->routes[w];
        xfer_route_t *from = &import->fresh->routes[w];
        if (to->address == NULL && from->address != NULL) {
            to->address = from->address;
            to->address_bytes = from->address_bytes;
            from->address = NULL;
            import->known->ways |= UINT32_C(1) << w;
        }
    }
}

/* Known regions learn new ways; the others are added. */
static void join_regions(import_t *import)
{
    xfer_ranges_t *fresh = &import->fresh->regions;
    const size_t n_ways = import->agent->n_ways;
    size_t kept = 0;
    for (size_t i = 0; i < fresh->n; i++) {
        xfer_peer_region_t *region = (xfer_peer_region_t *)fresh->items[i];
        xfer_range_t *old = xfer_ranges_overlap(&import->known->regions, &region->range);
        if (old != NULL) {
            merge_region((xfer_peer_region_t *)old, region, n_ways);
            xfer_peer_region_destroy(region, n_ways);
        } else {
            fresh->items[kept++] = &region->range;
        }
    }
    fresh->n = kept;
    if (kept > 0) {
        xfer_ranges_add_all(&import->known->regions, fresh);
    }
}

static weft_status_t join(import_t *import)
{
    xfer_agent_t *agent = import->agent;
    import->known = agent->peers;
    while (import->known != NULL && strcmp(import->known->name, import->name) != 0) {
        import->known = import->known->next;
    }
    if (import->known == NULL) {
        import->known = import->fresh;
        import->fresh = NULL;
        import->known->next = agent->peers;
        agent->peers = import->known;
        return WEFT_OK;
    }
    weft_status_t status = check_known(import);
    if (status == WEFT_OK) {
        join_routes(import);
        join_regions(import);
    }
    return status;
}

static weft_status_t run(import_t *import, const void *blob, size_t bytes, xfer_peer_t **peer_out)
{
    xfer_agent_t *agent = import->agent;
    weft_status_t status = xfer_blob_decode(blob, bytes, import->diag, &import->blob);
    if (status < 0) {
        return status;
    }
    status = stage(import);
    if (status == WEFT_OK) {
        xfer_agent_enter(agent);
        pthread_mutex_lock(&agent->tables);
        status = join(import);
        pthread_mutex_unlock(&agent->tables);
        xfer_agent_leave(agent);
    }
    xfer_peer_release(import->fresh);
    xfer_blob_fini(&import->blob);
    if (status == WEFT_OK) {
        *peer_out = import->known;
    }
    return status;
}

weft_status_t xfer_import(xfer_agent_t *agent, const void *blob, size_t bytes, weft_diag_t *diag,
                          xfer_peer_t **peer_out)
{
    import_t import = {.agent = agent, .diag = diag};
    return run(&import, blob, bytes, peer_out);
}

weft_status_t xfer_import_self(xfer_agent_t *agent, weft_diag_t *diag, xfer_peer_t **peer_out)
{
    import_t import = {.agent = agent, .diag = diag, .is_own = true};
    weft_buffer_t blob = {0};
    weft_status_t status = xfer_export(agent, NULL, 0, true, &blob);
    if (status == WEFT_OK) {
        status = run(&import, blob.data, blob.length, peer_out);
    }
    weft_buffer_free(&blob);
    return status;
}
