/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "transport/coll/coll_place.h"
#include "transport/coll/shm/coll_shm_pass.h"
#include "transport/coll/shm/coll_shm_priv.h"

#define PAGE_BYTES ((size_t)4096)
#define MAX_SLOT   ((size_t)1 << 20)
#define ALL_SLOTS  ((size_t)16 << 20) /* of all ranks together: less than a last cache */
#define FEEDS_BYTES                                                                                \
    ((size_t)1 << 36) /* of the file, behind the channels: address space, not memory */

typedef struct meeting {
    int32_t status;
    coll_shm_name_t name; /* rank 0's */
} meeting_t;

static size_t round_up(size_t bytes)
{
    return (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
}

static weft_status_t exchange(const coll_config_t *config, const void *mine, size_t bytes,
                              void *all, weft_diag_t *diag)
{
    return config->exchange.all_gather(config->exchange.user, mine, bytes, all, diag);
}

weft_status_t coll_shm_probe(const coll_config_t *config, weft_diag_t *diag)
{
    const weft_status_t status = coll_place_check(config, diag);
    if (status >= 0 && !config->device->ops->is_host) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "device %s is not host memory",
                         config->device->ops->name);
    }
    return status;
}

/* ---- layout ---------------------------------------------------------------------------------- */

static size_t lines_offset(void)
{
    return PAGE_BYTES;
}

static size_t slots_offset(uint32_t size)
{
    return lines_offset() + round_up(2 * (size_t)size * sizeof(coll_shm_line_t));
}

static size_t choose_slot_bytes(uint32_t size)
{
    const size_t share = ALL_SLOTS / (2 * (size_t)size) & ~(PAGE_BYTES - 1);
    return share < MAX_SLOT ? share : MAX_SLOT;
}

static size_t channels_offset(const coll_shm_t *shm)
{
    const uint32_t size = shm->base.config.size;
    return slots_offset(size) + 2 * (size_t)size * shm->slot_bytes;
}

size_t coll_shm_pair_offset(const coll_shm_t *shm, uint32_t from, uint32_t to)
{
    return channels_offset(shm) + ((size_t)from * shm->base.config.size + to) * COLL_SHM_PAIR_BYTES;
}

static size_t feeds_offset(const coll_shm_t *shm)
{
    return coll_shm_pair_offset(shm, shm->base.config.size, 0);
}

size_t coll_shm_feeds_left(const coll_shm_t *shm)
{
    return feeds_offset(shm) + FEEDS_BYTES - shm->feed_offset;
}

/* ---- meeting --------------------------------------------------------------------------------- */

/* Nobody can resize it any more: whoever maps it never gets SIGBUS. */
static weft_status_t make_file(coll_shm_t *shm, weft_diag_t *diag)
{
    shm->fd = memfd_create("weft-coll", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (shm->fd < 0 || ftruncate(shm->fd, (off_t)(feeds_offset(shm) + FEEDS_BYTES)) != 0 ||
        fcntl(shm->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "shm: no file for the segment: %s",
                         strerror(errno));
    }
    return WEFT_OK;
}

void *coll_shm_map(const coll_shm_t *shm, size_t offset, size_t bytes)
{
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, shm->fd, (off_t)offset);
    return mapped == MAP_FAILED ? NULL : mapped;
}

static weft_status_t map_segment(coll_shm_t *shm, weft_diag_t *diag)
{
    char *base;
    shm->mapped_bytes = channels_offset(shm);
    base = coll_shm_map(shm, 0, shm->mapped_bytes);
    if (base == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "shm: %zu bytes cannot be mapped: %s",
                         shm->mapped_bytes, strerror(errno));
    }
    shm->head = (coll_shm_head_t *)(void *)base;
    shm->lines = (coll_shm_line_t *)(void *)(base + lines_offset());
    shm->slots = base + slots_offset(shm->base.config.size);
    return WEFT_OK;
}

static struct flock lock_of(uint32_t rank)
{
    return (struct flock){
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)rank, .l_len = 1};
}

static weft_status_t take_lock(const coll_shm_t *shm, weft_diag_t *diag)
{
    struct flock lock = lock_of(shm->base.config.rank);
    if (fcntl(shm->fd, F_SETLK, &lock) != 0) {
        return weft_diag(diag, WEFT_ERR_IO, "shm: rank %u is taken: %s", shm->base.config.rank,
                         strerror(errno));
    }
    return WEFT_OK;
}

bool coll_shm_is_alive(const coll_shm_t *shm, uint32_t rank)
{
    struct flock lock = lock_of(rank);
    return rank == shm->base.config.rank || fcntl(shm->fd, F_GETLK, &lock) != 0 ||
           lock.l_type != F_UNLCK;
}

/* The first failure among ranks, of which every rank comes to the same opinion. */
static weft_status_t agree(const coll_config_t *config, meeting_t *mine, meeting_t *all,
                           weft_diag_t *diag)
{
    weft_diag_t why = {.text = ""};
    const weft_status_t status =
        exchange(config, mine, sizeof(*mine), all, mine->status < 0 ? &why : diag);
    if (status < 0 || mine->status < 0) {
        return mine->status < 0 ? (weft_status_t)mine->status : status;
    }
    for (uint32_t rank = 0; rank < config->size; rank++) {
        if (all[rank].status < 0) {
            return weft_diag(diag, (weft_status_t)all[rank].status,
                             "shm: rank %u could not join: %s", rank,
                             weft_strerror((weft_status_t)all[rank].status));
        }
    }
    return WEFT_OK;
}

/* Rank 0 gives the file to all others. */
static weft_status_t pass_file(coll_shm_t *shm, coll_shm_door_t *door, const coll_shm_name_t *name,
                               weft_diag_t *diag)
{
    const coll_config_t *config = &shm->base.config;
    return config->rank == 0
               ? coll_shm_door_serve(door, shm->fd, config->size - 1, config->timeout_ns, diag)
               : coll_shm_door_enter(name, config->timeout_ns, diag, &shm->fd);
}

static weft_status_t join(coll_shm_t *shm, coll_shm_door_t *door, const coll_shm_name_t *name,
                          weft_diag_t *diag)
{
    weft_status_t status = pass_file(shm, door, name, diag);
    status = status < 0 ? status : map_segment(shm, diag);
    return status < 0 ? status : take_lock(shm, diag);
}

weft_status_t coll_shm_meet(coll_shm_t *shm, weft_diag_t *diag)
{
    const coll_config_t *config = &shm->base.config;
    coll_shm_door_t door = {.fd = -1};
    meeting_t mine = {.status = WEFT_OK};
    meeting_t *all = weft_calloc(config->size, sizeof(*all), "coll.shm.meeting");
    if (all == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    shm->slot_bytes = choose_slot_bytes(config->size);
    if (shm->sources == NULL || shm->to == NULL || shm->from == NULL) {
        mine.status = WEFT_ERR_NO_MEMORY;
    } else if (config->rank == 0) {
        mine.status = make_file(shm, diag);
        mine.status = mine.status < 0 ? mine.status : coll_shm_door_open(&door, &mine.name, diag);
    }
    weft_status_t status = agree(config, &mine, all, diag);
    if (status >= 0) {
        shm->feed_offset = feeds_offset(shm);
        mine.status = join(shm, &door, &all[0].name, diag);
        status = agree(config, &mine, all, diag);
    }
    coll_shm_door_close(&door);
    weft_free(all);
    return status;
}

void coll_shm_leave(coll_shm_t *shm)
{
    if (shm->head != NULL) {
        coll_shm_tell_failure(shm); /* else its end would look like the cause */
        munmap(shm->head, shm->mapped_bytes);
    }
    if (shm->fd >= 0) {
        close(shm->fd); /* lets the lock go */
    }
}
