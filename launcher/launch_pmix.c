/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_pmix.h"

#ifdef WEFT_HAS_PMIX

#include <dlfcn.h>
#include <pmix.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"

#define LIBRARY       "libpmix.so.2" /* of PMIx 2 to 5 */
#define LEADER_KEY    "weft.leader"
#define FENCE_SECONDS 60

typedef struct pmix {
    void *library;
    weft_typeof(&PMIx_Init) init;
    weft_typeof(&PMIx_Finalize) finalize;
    weft_typeof(&PMIx_Put) put;
    weft_typeof(&PMIx_Commit) commit;
    weft_typeof(&PMIx_Fence) fence;
    weft_typeof(&PMIx_Get) get;
    weft_typeof(&PMIx_Error_string) error_string;
    pmix_proc_t me;
} pmix_t;

static weft_status_t open_library(pmix_t *pmix, weft_diag_t *diag)
{
    const struct {
        const char *name;
        void **where;
    } symbols[] = {
        {"PMIx_Init", (void **)&pmix->init},
        {"PMIx_Finalize", (void **)&pmix->finalize},
        {"PMIx_Put", (void **)&pmix->put},
        {"PMIx_Commit", (void **)&pmix->commit},
        {"PMIx_Fence", (void **)&pmix->fence},
        {"PMIx_Get", (void **)&pmix->get},
        {"PMIx_Error_string", (void **)&pmix->error_string},
    };
    pmix->library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (pmix->library == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "PMIx: %s", dlerror());
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(symbols); i++) {
        *symbols[i].where = dlsym(pmix->library, symbols[i].name);
        if (*symbols[i].where == NULL) {
            return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "PMIx: %s has no %s", LIBRARY,
                             symbols[i].name);
        }
    }
    return WEFT_OK;
}

static weft_status_t fail(const pmix_t *pmix, pmix_status_t status, const char *what,
                          weft_diag_t *diag)
{
    return weft_diag(diag, status == PMIX_ERR_TIMEOUT ? WEFT_ERR_TIMEOUT : WEFT_ERR_UNSUPPORTED,
                     "PMIx: %s: %s", what, pmix->error_string(status));
}

/* Values that get() makes are the library's malloc; one that we drop is small and made once. */
static bool get_number(const pmix_t *pmix, const char *key, bool is_of_job, uint32_t *out)
{
    pmix_proc_t proc = pmix->me;
    pmix_value_t *value = NULL;
    if (is_of_job) {
        proc.rank = PMIX_RANK_WILDCARD;
    }
    if (pmix->get(&proc, key, NULL, 0, &value) != PMIX_SUCCESS || value == NULL) {
        return false;
    }
    const bool is_short = value->type == PMIX_UINT16;
    const bool is_long = value->type == PMIX_UINT32;
    *out = is_short ? value->data.uint16 : is_long ? value->data.uint32 : 0;
    free(value);
    return is_short || is_long;
}

static weft_status_t put_leader(const pmix_t *pmix, const char *host, weft_diag_t *diag)
{
    char copy[256];
    snprintf(copy, sizeof(copy), "%s", host);
    pmix_value_t value = {.type = PMIX_STRING, .data.string = copy};
    pmix_status_t status = pmix->put(PMIX_GLOBAL, LEADER_KEY, &value);
    if (status == PMIX_SUCCESS) {
        status = pmix->commit();
    }
    return status == PMIX_SUCCESS ? WEFT_OK : fail(pmix, status, "put", diag);
}

static weft_status_t fence(const pmix_t *pmix, weft_diag_t *diag)
{
    const bool collect = true;
    const int seconds = FENCE_SECONDS;
    pmix_info_t info[2];
    memset(info, 0, sizeof(info));
    strcpy(info[0].key, PMIX_COLLECT_DATA);
    info[0].value.type = PMIX_BOOL;
    info[0].value.data.flag = collect;
    strcpy(info[1].key, PMIX_TIMEOUT);
    info[1].value.type = PMIX_INT;
    info[1].value.data.integer = seconds;
    const pmix_status_t status = pmix->fence(NULL, 0, info, 2);
    return status == PMIX_SUCCESS ? WEFT_OK : fail(pmix, status, "fence", diag);
}

static weft_status_t get_leader(const pmix_t *pmix, launch_pmix_job_t *job, weft_diag_t *diag)
{
    pmix_proc_t leader = pmix->me;
    pmix_value_t *value = NULL;
    leader.rank = 0;
    const pmix_status_t status = pmix->get(&leader, LEADER_KEY, NULL, 0, &value);
    if (status != PMIX_SUCCESS || value == NULL) {
        return fail(pmix, status, "get", diag);
    }
    const bool is_text = value->type == PMIX_STRING && value->data.string != NULL;
    if (is_text) {
        snprintf(job->leader_host, sizeof(job->leader_host), "%s", value->data.string);
        free(value->data.string);
    }
    free(value);
    return is_text ? WEFT_OK
                   : weft_diag(diag, WEFT_ERR_UNSUPPORTED, "PMIx: %s is no text", LEADER_KEY);
}

static weft_status_t exchange(const pmix_t *pmix, const char *my_host, weft_diag_t *diag,
                              launch_pmix_job_t *job)
{
    weft_status_t status = WEFT_OK;
    job->rank = pmix->me.rank;
    if (!get_number(pmix, PMIX_JOB_SIZE, true, &job->size) ||
        !get_number(pmix, PMIX_LOCAL_RANK, false, &job->local_rank)) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "PMIx: the server tells no size of the job");
    }
    (void)get_number(pmix, PMIX_LOCAL_SIZE, true, &job->local_size);
    if (job->rank == 0) {
        status = put_leader(pmix, my_host, diag);
    }
    /* Whoever could not put must come to the fence all the same: others wait there. */
    const weft_status_t met = fence(pmix, status < 0 ? NULL : diag);
    status = status < 0 ? status : met;
    return status < 0 ? status : get_leader(pmix, job, diag);
}

weft_status_t launch_pmix_read(const char *my_host, weft_diag_t *diag, launch_pmix_job_t *job_out)
{
    pmix_t pmix = {0};
    launch_pmix_job_t job = {0};
    weft_status_t status = open_library(&pmix, diag);
    if (status == WEFT_OK) {
        const pmix_status_t begun = pmix.init(&pmix.me, NULL, 0);
        status = begun == PMIX_SUCCESS ? WEFT_OK : fail(&pmix, begun, "init", diag);
    }
    if (status == WEFT_OK) {
        status = exchange(&pmix, my_host, diag, &job);
        pmix.finalize(NULL, 0);
    }
    if (status == WEFT_OK) {
        *job_out = job;
    }
    /* The library stays open: it leaves threads' keys and exit handlers behind. */
    return status;
}

#else

weft_status_t launch_pmix_read(const char *my_host, weft_diag_t *diag, launch_pmix_job_t *job_out)
{
    (void)my_host;
    (void)job_out;
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "PMIx: built without its headers");
}

#endif
