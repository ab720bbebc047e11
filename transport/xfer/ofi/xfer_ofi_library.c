/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/ofi/xfer_ofi_library.h"

#ifdef WEFT_HAS_OFI

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#define LIBRARY "libfabric.so.1"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static xfer_ofi_functions_t loaded; /* written once, guarded by lock until then */
static bool is_loaded;              /* guarded by lock */

static bool find(void *library, const char *name, void *function_out)
{
    void *symbol = dlsym(library, name);
    memcpy(function_out, &symbol, sizeof(symbol));
    return symbol != NULL;
}

static weft_status_t load(weft_diag_t *diag)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ofi: no libfabric: %s", dlerror());
    }
    is_loaded = find(library, "fi_getinfo", &loaded.getinfo) &&
                find(library, "fi_freeinfo", &loaded.freeinfo) &&
                find(library, "fi_dupinfo", &loaded.dupinfo) &&
                find(library, "fi_fabric", &loaded.fabric) &&
                find(library, "fi_strerror", &loaded.strerror);
    return is_loaded ? WEFT_OK
                     : weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ofi: %s is not libfabric", LIBRARY);
}

weft_status_t xfer_ofi_load(weft_diag_t *diag, const xfer_ofi_functions_t **functions_out)
{
    pthread_mutex_lock(&lock);
    const weft_status_t status = is_loaded ? WEFT_OK : load(diag);
    pthread_mutex_unlock(&lock);
    *functions_out = &loaded;
    return status;
}

#endif
