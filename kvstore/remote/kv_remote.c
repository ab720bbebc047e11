/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote.h"

#include <string.h>

#include "kvstore/remote/kv_remote_fabric.h"
#include "kvstore/remote/kv_remote_lines.h"

static bool is_given(const char *text)
{
    return text != NULL && text[0] != '\0';
}

static weft_status_t check_listen(const kv_remote_config_t *config, weft_diag_t *diag)
{
    char endpoint[KV_REMOTE_MAX_ENDPOINT];
    char host[KV_REMOTE_MAX_ENDPOINT];
    return kv_remote_endpoint(config->listen, strlen(config->listen), config->port_offset, diag,
                              endpoint, host);
}

weft_status_t kv_remote_config_check(const kv_remote_config_t *config, weft_diag_t *diag)
{
    weft_status_t status =
        is_given(config->peers) ? kv_remote_lines_check(config->peers, diag) : WEFT_OK;
    if (status < 0) {
        weft_diag_prefix(diag, "--kv-remote-peers");
        return status;
    }
    status = is_given(config->listen) ? check_listen(config, diag) : WEFT_OK;
    if (status < 0) {
        weft_diag_prefix(diag, "--kv-remote-listen");
    }
    return status;
}
