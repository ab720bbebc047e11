/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_ofi_library: libfabric's functions, from a library that is loaded when the first port wants
 * it and stays. Everything but these few is called through the tables of its own objects.
 *
 * Threads  any
 */
#pragma once

#include "base/diag.h"

#ifdef WEFT_HAS_OFI /* its headers are to be had */

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

typedef struct xfer_ofi_functions {
    int (*getinfo)(uint32_t version, const char *node, const char *service, uint64_t flags,
                   const struct fi_info *hints, struct fi_info **info_out);
    void (*freeinfo)(struct fi_info *info);
    struct fi_info *(*dupinfo)(const struct fi_info *info); /* of NULL: an empty one */
    int (*fabric)(struct fi_fabric_attr *attr, struct fid_fabric **fabric_out, void *context);
    const char *(*strerror)(int error);
} xfer_ofi_functions_t;

/* WEFT_ERR_UNSUPPORTED: diag says what is missing. */
weft_status_t xfer_ofi_load(weft_diag_t *diag, const xfer_ofi_functions_t **functions_out);

#endif
