/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "launcher/launch_group_priv.h"
#include "launcher/launch_message.h"

static const char *value_in_join(const Weft__Rendezvous__Join *join, const char *key)
{
    for (size_t i = 0; i < join->n_facts; i++) {
        if (strcmp(join->facts[i]->key, key) == 0) {
            return join->facts[i]->value;
        }
    }
    return NULL;
}

static bool is_known(const launch_group_t *group, const char *key)
{
    for (uint32_t i = 0; i < group->n_facts; i++) {
        if (strcmp(group->facts[i].key, key) == 0) {
            return true;
        }
    }
    return false;
}

weft_status_t launch_facts_compare(const launch_group_t *group,
                                   const struct Weft__Rendezvous__Join *join, weft_diag_t *diag)
{
    for (uint32_t i = 0; i < group->n_facts; i++) {
        const launch_fact_t *ours = &group->facts[i];
        const char *theirs = value_in_join(join, ours->key);
        if (theirs == NULL || strcmp(theirs, ours->value) != 0) {
            return weft_diag(diag, WEFT_ERR_DENIED, "%s: rank %u has %.300s, the leader %.300s",
                             ours->key, join->rank, theirs != NULL ? theirs : "none", ours->value);
        }
    }
    for (size_t i = 0; i < join->n_facts; i++) {
        if (!is_known(group, join->facts[i]->key)) {
            return weft_diag(diag, WEFT_ERR_DENIED, "%.300s: rank %u has %.300s, the leader none",
                             join->facts[i]->key, join->rank, join->facts[i]->value);
        }
    }
    return WEFT_OK;
}
