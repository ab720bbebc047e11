/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/drafter.h"

#include <string.h>

#define DRAFTER(method) extern const drafter_kind_t drafter_##method;
#include "runtime/drafters.def"
#undef DRAFTER

const drafter_kind_t *const drafter_kinds[] = {
#define DRAFTER(method) &drafter_##method,
#include "runtime/drafters.def"
#undef DRAFTER
    NULL,
};

const drafter_kind_t *drafter_find(const char *method)
{
    const drafter_kind_t *const *kind = drafter_kinds;
    while (*kind != NULL && strcmp((*kind)->method, method) != 0) {
        kind++;
    }
    return *kind;
}

weft_status_t drafter_create(const drafter_config_t *config, weft_diag_t *diag,
                             drafter_t **drafter_out)
{
    return config->how->kind->create(config, diag, drafter_out);
}

void drafter_destroy(drafter_t *drafter)
{
    if (drafter != NULL) {
        drafter->kind->destroy(drafter);
    }
}

void drafter_guess(drafter_t *drafter, const sched_draft_t *rows, uint32_t n)
{
    drafter->kind->guess(drafter, rows, n);
}
