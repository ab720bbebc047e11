/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/k_cores.h"
#include "kernels/k_isa.h"
#include "kernels/k_team.h"
#include "kernels/kernels.h"

static const k_ops_t *const all_ops[] = {
#define ISA(name) &k_ops_##name,
#include "kernels/isas.def"
#undef ISA
    NULL,
};

const k_ops_t *const *k_ops_all(void)
{
    return all_ops;
}

static void list_supported(char *names, size_t bytes)
{
    names[0] = '\0';
    for (const k_ops_t *const *ops = all_ops; *ops != NULL; ops++) {
        if ((*ops)->is_supported()) {
            strncat(names, names[0] == '\0' ? "" : ", ", bytes - strlen(names) - 1);
            strncat(names, (*ops)->name, bytes - strlen(names) - 1);
        }
    }
}

static weft_status_t choose_ops(const char *isa, weft_diag_t *diag, const k_ops_t **ops_out)
{
    const bool is_auto = strcmp(isa, "auto") == 0;
    bool is_known = false;
    for (const k_ops_t *const *ops = all_ops; *ops != NULL; ops++) {
        const bool is_named = strcmp(isa, (*ops)->name) == 0;
        is_known |= is_named;
        if ((is_auto || is_named) && (*ops)->is_supported()) {
            *ops_out = *ops;
            return WEFT_OK;
        }
    }
    char names[128];
    list_supported(names, sizeof(names));
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                     is_known ? "instruction set %s: this machine has %s"
                              : "unknown instruction set %s: this machine has %s",
                     isa, names);
}

weft_status_t k_stream_create(weft_device_t *device, const char *isa, uint32_t threads,
                              weft_diag_t *diag, k_stream_t **stream_out)
{
    if (strcmp(device->ops->name, "cpu") != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "no kernels for device %s", device->ops->name);
    }
    const k_ops_t *ops = NULL;
    weft_status_t status = choose_ops(isa, diag, &ops);
    if (status < 0) {
        return status;
    }
    k_stream_t *stream = weft_zalloc(sizeof(*stream), "kernels.stream");
    if (stream == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for a kernel stream");
    }
    stream->ops = ops;
    stream->device = device;
    stream->scratch.fd = -1;
    status = device->ops->open_queue(device, &stream->queue);
    if (status < 0) {
        weft_diag(diag, status, "device %s: cannot open a queue", device->ops->name);
        goto cleanup;
    }
    threads = threads > 0 ? threads : k_cores_usable();
    status = k_team_create(threads, &stream->team);
    if (status < 0) {
        weft_diag(diag, status, "cannot start %u compute threads", threads);
        goto cleanup;
    }
    *stream_out = stream;
    stream = NULL; /* the caller owns it now */

cleanup:
    k_stream_destroy(stream);
    return status;
}

void k_stream_destroy(k_stream_t *stream)
{
    if (stream == NULL) {
        return;
    }
    k_team_destroy(stream->team);
    if (stream->scratch.addr != NULL) {
        stream->device->ops->free(stream->device, &stream->scratch);
    }
    if (stream->queue != NULL) {
        stream->device->ops->close_queue(stream->queue);
    }
    weft_free(stream);
}

weft_status_t k_stream_reserve(k_stream_t *stream, uint32_t rows, uint32_t width)
{
    const size_t bytes = stream->ops->scratch_bytes(rows, width, k_team_size(stream->team));
    if (bytes <= stream->scratch.bytes) {
        return WEFT_OK;
    }
    weft_mem_t mem;
    const weft_status_t status = stream->device->ops->alloc(stream->device, bytes, 0, &mem);
    if (status < 0) {
        return status;
    }
    if (stream->scratch.addr != NULL) {
        stream->device->ops->free(stream->device, &stream->scratch);
    }
    stream->scratch = mem;
    return WEFT_OK;
}

weft_status_t k_stream_sync(k_stream_t *stream)
{
    return stream->device->ops->sync(stream->queue);
}

uint32_t k_stream_threads(const k_stream_t *stream)
{
    return k_team_size(stream->team);
}
