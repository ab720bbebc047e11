/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/draft/drafter.h"

#include <string.h>

#define DRAFTER(method) extern const drafter_kind_t drafter_##method;
#include "runtime/draft/drafters.def"
#undef DRAFTER

static const drafter_kind_t *const kinds[] = {
#define DRAFTER(method) &drafter_##method,
#include "runtime/draft/drafters.def"
#undef DRAFTER
    NULL,
};

#define DRAFTER(method) " " #method
const char drafter_methods[] =
#include "runtime/draft/drafters.def"
    ;
#undef DRAFTER

const drafter_kind_t *drafter_find(const char *method)
{
    const drafter_kind_t *const *kind = kinds;
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
