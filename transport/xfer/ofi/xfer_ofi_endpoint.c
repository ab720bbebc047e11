/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/ofi/xfer_ofi_priv.h"

#ifdef WEFT_HAS_OFI

#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/alloc.h"

#define API_VERSION      FI_VERSION(1, 14)
#define PORT_COMPLETIONS 256

static weft_status_t fail(const ofi_port_t *port, weft_diag_t *diag, const char *what, int result)
{
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ofi: %s: %s", what, port->ofi->strerror(-result));
}

/*
 * Whether there is hardware that libfabric drives and UCX does not. Without, what remains is slower
 * than the other backends, and finding out takes libfabric half a second.
 */
static bool has_hardware(void)
{
    static const char *const devices[] = {"/sys/class/infiniband/efa_*", "/sys/class/cxi/cxi*"};
    bool is_there = false;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(devices) && !is_there; i++) {
        glob_t found = {.gl_pathc = 0};
        is_there = glob(devices[i], GLOB_NOSORT, NULL, &found) == 0;
        globfree(&found);
    }
    return is_there;
}

/* Of this host alone, or given up by libfabric itself: only when they are named. */
static bool is_common(const char *provider)
{
    static const char *const others[] = {"shm", "sm2", "sockets", "udp", "net", "lpp"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(others); i++) {
        const size_t length = strlen(others[i]);
        if (strncmp(provider, others[i], length) == 0 &&
            (provider[length] == '\0' || provider[length] == ';')) {
            return false;
        }
    }
    return true;
}

static struct fi_info *make_hints(const ofi_port_t *port, const char *provider)
{
    struct fi_info *hints = port->ofi->dupinfo(NULL);
    if (hints == NULL) {
        return NULL;
    }
    hints->caps = FI_MSG | FI_RMA;
    hints->mode = FI_CONTEXT | FI_CONTEXT2;
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->mr_mode =
        FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;
    if (provider != NULL) {
        hints->fabric_attr->prov_name = strdup(provider); /* freeinfo frees it by free() */
    }
    return hints;
}

/* The first that libfabric lists is the one it likes best. */
static weft_status_t choose_provider(ofi_port_t *port, const char *provider, const char *host,
                                     weft_diag_t *diag)
{
    struct fi_info *list = NULL;
    if (provider == NULL && !has_hardware()) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "ofi: no EFA or CXI device is here; ofi.provider=tcp does without");
    }
    struct fi_info *hints = make_hints(port, provider);
    if (hints == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const int result =
        port->ofi->getinfo(API_VERSION, host, NULL, host != NULL ? FI_SOURCE : 0, hints, &list);
    port->ofi->freeinfo(hints);
    const struct fi_info *info = result == 0 ? list : NULL;
    while (info != NULL && provider == NULL && !is_common(info->fabric_attr->prov_name)) {
        info = info->next;
    }
    if (info == NULL) {
        port->ofi->freeinfo(list);
        return fail(port, diag, provider != NULL ? provider : "no provider",
                    result == 0 ? -FI_ENODATA : result);
    }
    port->info = port->ofi->dupinfo(info);
    port->ofi->freeinfo(list);
    return port->info == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

static void close_fid(struct fid *fid)
{
    if (fid != NULL) {
        (void)fi_close(fid);
    }
}

static int open_queue(ofi_port_t *port, size_t completions, ofi_door_t *door)
{
    struct fi_cq_attr attr = {
        .size = completions, .format = FI_CQ_FORMAT_MSG, .wait_obj = FI_WAIT_FD};
    int result = fi_cq_open(port->domain, &attr, &door->cq, NULL);
    if (result != 0) { /* some can only be asked: then the timer says when */
        attr.wait_obj = FI_WAIT_NONE;
        return fi_cq_open(port->domain, &attr, &door->cq, NULL);
    }
    struct epoll_event event = {.events = EPOLLIN};
    result = fi_control(&door->cq->fid, FI_GETWAIT, &door->wait_fd);
    if (result == 0 && epoll_ctl(port->epoll_fd, EPOLL_CTL_ADD, door->wait_fd, &event) != 0) {
        result = -errno;
        door->wait_fd = -1;
    }
    return result;
}

static int open_endpoint(ofi_port_t *port, ofi_door_t *door)
{
    int result = fi_endpoint(port->domain, port->info, &door->ep, NULL);
    if (result == 0) {
        result = fi_ep_bind(door->ep, &port->av->fid, 0);
    }
    if (result == 0) {
        result = fi_ep_bind(door->ep, &door->cq->fid, FI_TRANSMIT | FI_RECV);
    }
    return result == 0 ? fi_enable(door->ep) : result;
}

int ofi_door_open(ofi_port_t *port, size_t completions, ofi_door_t *door_out)
{
    ofi_door_t door = {.wait_fd = -1};
    int result = open_queue(port, completions, &door);
    if (result == 0) {
        result = open_endpoint(port, &door);
    }
    if (result != 0) {
        ofi_door_close(port, &door);
        return result;
    }
    *door_out = door;
    return 0;
}

void ofi_door_close(const ofi_port_t *port, ofi_door_t *door)
{
    close_fid(door->ep != NULL ? &door->ep->fid : NULL);
    if (door->wait_fd >= 0) {
        (void)epoll_ctl(port->epoll_fd, EPOLL_CTL_DEL, door->wait_fd, NULL);
    }
    close_fid(door->cq != NULL ? &door->cq->fid : NULL);
    *door = (ofi_door_t){.wait_fd = -1};
}

static weft_status_t open_objects(ofi_port_t *port, weft_diag_t *diag)
{
    struct fi_av_attr av_attr = {.type = port->info->domain_attr->av_type};
    int result = port->ofi->fabric(port->info->fabric_attr, &port->fabric, NULL);
    if (result != 0) {
        return fail(port, diag, "fabric", result);
    }
    result = fi_domain(port->fabric, port->info, &port->domain, NULL);
    if (result != 0) {
        return fail(port, diag, "domain", result);
    }
    result = fi_av_open(port->domain, &av_attr, &port->av, NULL);
    if (result != 0) {
        return fail(port, diag, "address vector", result);
    }
    result = ofi_door_open(port, PORT_COMPLETIONS, &port->door);
    return result != 0 ? fail(port, diag, "endpoint", result) : WEFT_OK;
}

static weft_status_t learn_address(ofi_port_t *port, weft_diag_t *diag)
{
    size_t bytes = sizeof(port->provider_address);
    const int result = fi_getname(&port->door.ep->fid, port->provider_address, &bytes);
    if (result != 0 || bytes == 0) {
        return fail(port, diag, "address", result);
    }
    port->address.magic = XFER_OFI_MAGIC;
    port->address.version = XFER_OFI_VERSION;
    port->address.bytes = (uint16_t)bytes;
    port->address.format = port->info->addr_format;
    strncpy(port->address.provider, port->info->fabric_attr->prov_name,
            sizeof(port->address.provider) - 1);
    return WEFT_OK;
}

weft_status_t ofi_objects_open(ofi_port_t *port, const char *provider, const char *host,
                               weft_diag_t *diag)
{
    weft_status_t status = choose_provider(port, provider, host, diag);
    if (status == WEFT_OK) {
        status = open_objects(port, diag);
    }
    return status == WEFT_OK ? learn_address(port, diag) : status;
}

void ofi_objects_close(ofi_port_t *port)
{
    ofi_door_close(port, &port->door);
    close_fid(port->av != NULL ? &port->av->fid : NULL);
    close_fid(port->domain != NULL ? &port->domain->fid : NULL);
    close_fid(port->fabric != NULL ? &port->fabric->fid : NULL);
    if (port->info != NULL) {
        port->ofi->freeinfo(port->info);
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

int ofi_memory_open(ofi_port_t *port, void *addr, size_t bytes, uint64_t access,
                    struct fid_mr **mr_out)
{
    struct fid_mr *mr;
    int result = fi_mr_reg(port->domain, addr, bytes, access, 0, ++port->keys_made, 0, &mr, NULL);
    if (result == 0 && (port->info->domain_attr->mr_mode & FI_MR_ENDPOINT) != 0) {
        result = fi_mr_bind(mr, &port->door.ep->fid, 0);
        if (result == 0) {
            result = fi_mr_enable(mr);
        }
        if (result != 0) {
            fi_close(&mr->fid);
        }
    }
    if (result == 0) {
        *mr_out = mr;
    }
    return result;
}

weft_status_t ofi_slots_open(ofi_port_t *port, ofi_slots_t *slots, size_t n, size_t room_bytes)
{
    slots->slots = weft_calloc(n, sizeof(*slots->slots), "xfer.ofi.slots");
    slots->rooms = weft_alloc_aligned(4096, n * room_bytes, "xfer.ofi.rooms");
    if (slots->slots == NULL || slots->rooms == NULL) {
        ofi_slots_close(slots);
        return WEFT_ERR_NO_MEMORY;
    }
    if ((port->info->domain_attr->mr_mode & FI_MR_LOCAL) != 0 &&
        ofi_memory_open(port, slots->rooms, n * room_bytes, FI_SEND | FI_RECV | FI_READ,
                        &slots->mr) != 0) {
        ofi_slots_close(slots);
        return WEFT_ERR_NO_MEMORY;
    }
    slots->n = n;
    for (size_t i = 0; i < n; i++) {
        slots->slots[i].room = slots->rooms + i * room_bytes;
        slots->slots[i].next = slots->free;
        slots->free = &slots->slots[i];
    }
    return WEFT_OK;
}

ofi_slot_t *ofi_slot_take(ofi_slots_t *slots)
{
    ofi_slot_t *slot = slots->free;
    if (slot != NULL) {
        slots->free = slot->next;
    }
    return slot;
}

void ofi_slot_give(ofi_slots_t *slots, ofi_slot_t *slot)
{
    slot->next = slots->free;
    slots->free = slot;
}

void *ofi_slots_desc(const ofi_slots_t *slots)
{
    return slots->mr != NULL ? fi_mr_desc(slots->mr) : NULL;
}

void ofi_slots_close(ofi_slots_t *slots)
{
    close_fid(slots->mr != NULL ? &slots->mr->fid : NULL);
    weft_free(slots->slots);
    weft_free(slots->rooms);
    *slots = (ofi_slots_t){.n = 0};
}
#endif
