/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "nccl"

#include "transport/coll/nccl/coll_nccl_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define SYSTEM_LIBRARY "libnccl.so.2"
#define MAJOR(version) ((version) / 10000)
#define MINOR(version) ((version) % 10000 / 100)
#define PATCH(version) ((version) % 100)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static nccl_functions_t loaded; /* written once, guarded by lock until then */
static bool is_loaded;          /* guarded by lock */

static bool find(void *library, const char *name, void *function_out)
{
    void *symbol = dlsym(library, name);
    memcpy(function_out, &symbol, sizeof(symbol));
    return symbol != NULL;
}

/* The first that is missing, or NULL. */
static const char *find_functions(void *library, nccl_functions_t *functions)
{
#define NCCL_FUNCTION(name, arguments)                                                             \
    if (!find(library, #name, &functions->name)) {                                                 \
        return #name;                                                                              \
    }
#include "transport/coll/nccl/coll_nccl_functions.def"
#undef NCCL_FUNCTION
    (void)find(library, "ncclGetLastError", &functions->ncclGetLastError);
    return find(library, "ncclGetErrorString", &functions->ncclGetErrorString)
               ? NULL
               : "ncclGetErrorString";
}

static weft_status_t check_library(void *library, const char *path, nccl_functions_t *functions,
                                   weft_diag_t *diag)
{
    const char *missing = find_functions(library, functions);
    if (missing != NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "%s has no %s", path, missing);
    }
    if (functions->ncclGetVersion(&functions->version) != NCCL_SUCCESS ||
        functions->version < NCCL_OLDEST || MAJOR(functions->version) != 2) {
        return weft_diag(
            diag, WEFT_ERR_UNSUPPORTED, "%s is NCCL %d.%d.%d; %d.%d.%d is the oldest that works",
            path, MAJOR(functions->version), MINOR(functions->version), PATCH(functions->version),
            MAJOR(NCCL_OLDEST), MINOR(NCCL_OLDEST), PATCH(NCCL_OLDEST));
    }
    return WEFT_OK;
}

static weft_status_t load(weft_diag_t *diag)
{
    nccl_functions_t functions = {.version = 0};
    const char *named = getenv("WEFT_NCCL_LIBRARY");
    const char *path = named != NULL && named[0] != '\0' ? named : SYSTEM_LIBRARY;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "no NCCL: %s; pip install nvidia-nccl-cu13, then set WEFT_NCCL_LIBRARY to "
                         "its lib/libnccl.so.2",
                         dlerror());
    }
    const weft_status_t status = check_library(library, path, &functions, diag);
    if (status >= 0) {
        weft_log_info("loaded=%s version=%d.%d.%d", path, MAJOR(functions.version),
                      MINOR(functions.version), PATCH(functions.version));
        loaded = functions;
    } else {
        dlclose(library);
    }
    return status;
}

weft_status_t coll_nccl_load(weft_diag_t *diag, const nccl_functions_t **functions_out)
{
    weft_status_t status = WEFT_OK;
    pthread_mutex_lock(&lock);
    if (!is_loaded) {
        status = load(diag);
        is_loaded = status >= 0;
    }
    pthread_mutex_unlock(&lock);
    *functions_out = &loaded;
    return status;
}
