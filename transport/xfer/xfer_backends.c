/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_backend.h"

const xfer_backend_t *const xfer_backends[] = {
#define BACKEND(name) &xfer_backend_##name,
#include "transport/xfer/xfer_backends.def"
#undef BACKEND
    NULL,
};
