/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_hostfile: a hostfile; a zero byte parts it from a list as -H takes it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "launcher/job/launch_hosts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool is_true)
{
    if (!is_true) {
        abort();
    }
}

static void check(launch_hosts_t *hosts, weft_status_t status, const weft_diag_t *diag)
{
    require(status == WEFT_OK || diag->text[0] != '\0');
    for (uint32_t i = 0; i < hosts->n; i++) {
        const launch_seats_t *seats = &hosts->all[i];
        require(seats->name[0] != '\0' && seats->name[0] != '-');
        require(seats->slots >= 1 && seats->slots <= LAUNCH_MAX_RANKS);
        require(seats->max_slots == 0 || seats->max_slots >= seats->slots);
    }
    launch_hosts_fini(hosts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    const char *zero = size == 0 ? NULL : memchr(text, '\0', size);
    const size_t length = zero == NULL ? size : (size_t)(zero - text);
    launch_hosts_t hosts = {0};
    weft_diag_t diag = {0};

    check(&hosts, launch_hosts_parse(&hosts, text, length, "hosts", &diag), &diag);
    if (zero != NULL) {
        char *list = weft_strndup(zero + 1, size - length - 1, "fuzz.list");
        diag = (weft_diag_t){0};
        check(&hosts, launch_hosts_parse_list(&hosts, list, &diag), &diag);
        weft_free(list);
    }
    return 0;
}
