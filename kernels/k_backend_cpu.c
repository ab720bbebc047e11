/* SPDX-License-Identifier: Apache-2.0 */
/* Streams of the cpu: the best ops table this machine can run, and a team of threads. */
#include <string.h>

#include "kernels/k_backend.h"
#include "kernels/k_cores.h"
#include "kernels/k_isa.h"
#include "kernels/k_team.h"

extern const k_backend_t k_backend_cpu;

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

static weft_status_t cpu_open(k_stream_t *stream, const char *isa, uint32_t threads,
                              weft_diag_t *diag)
{
    weft_status_t status = choose_ops(isa, diag, &stream->ops);
    if (status < 0) {
        return status;
    }
    if (threads > K_TEAM_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--threads %u: at most %d", threads, K_TEAM_MAX);
    }
    threads = threads > 0 ? threads : k_cores_usable();
    status = k_team_create(threads, &stream->team);
    return status < 0 ? weft_diag(diag, status, "cannot start %u compute threads", threads)
                      : status;
}

static void cpu_close(k_stream_t *stream)
{
    k_team_destroy(stream->team);
}

const k_backend_t k_backend_cpu = {
    .device = "cpu",
    .open = cpu_open,
    .close = cpu_close,
};
