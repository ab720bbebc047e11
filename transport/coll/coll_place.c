/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/coll_place.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"

/* Ranks share memory when they run on one kernel, and sockets' names when their network is one. */
typedef struct place {
    char boot[40];
    uint64_t network_namespace;
} place_t;

static weft_status_t find_place(place_t *place_out)
{
    place_t place = {.network_namespace = 0};
    struct stat space;
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    const ssize_t n = read(fd, place.boot, sizeof(place.boot) - 1);
    close(fd);
    if (n <= 0 || stat("/proc/thread-self/ns/net", &space) != 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    place.network_namespace = space.st_ino;
    *place_out = place;
    return WEFT_OK;
}

static weft_status_t compare_places(const coll_config_t *config, const place_t *mine,
                                    const place_t *all, weft_diag_t *diag)
{
    for (uint32_t rank = 0; rank < config->size; rank++) {
        if (strcmp(all[rank].boot, mine->boot) != 0 ||
            all[rank].network_namespace != mine->network_namespace) {
            return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                             "rank %u is on another host, or in another network namespace, than "
                             "rank %u",
                             rank, config->rank);
        }
    }
    return WEFT_OK;
}

weft_status_t coll_place_check(const coll_config_t *config, weft_diag_t *diag)
{
    place_t mine = {.network_namespace = 0};
    place_t *all = weft_calloc(config->size, sizeof(*all), "coll.places");
    if (all == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = find_place(&mine);
    const weft_status_t exchanged =
        config->exchange.all_gather(config->exchange.user, &mine, sizeof(mine), all, diag);
    if (exchanged < 0) {
        status = exchanged;
    } else if (status < 0) {
        status = weft_diag(diag, status, "/proc does not say which host this is");
    } else {
        status = compare_places(config, &mine, all, diag);
    }
    weft_free(all);
    return status;
}
