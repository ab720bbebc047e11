/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_nccl_library: NCCL's functions, from a library that is loaded when the first group of ranks wants
 * it and stays loaded. Its ABI, as it is since 2.14, is declared anew here, so that building needs no
 * headers of it.
 *
 * Threads  any
 */
#pragma once

#include <limits.h>
#include <stddef.h>

#include "base/diag.h"

typedef struct nccl_comm nccl_comm_t; /* an ncclComm_t points to one */

/* ncclUniqueId */
typedef struct nccl_id {
    char bytes[128];
} nccl_id_t;

/* ncclConfig_t of version 2.14; later versions take what they have more as not given. */
typedef struct nccl_config {
    size_t bytes; /* of this struct */
    unsigned magic;
    unsigned version;
    int is_blocking;
    int unused;
} nccl_config_t;

#define NCCL_CONFIG_MAGIC   0xcafebeefU
#define NCCL_CONFIG_VERSION 21400U

/* ncclResult_t; others are failures, too */
enum { NCCL_SUCCESS = 0, NCCL_REMOTE_ERROR = 6, NCCL_IN_PROGRESS = 7 };
/* ncclDataType_t, ncclRedOp_t */
enum { NCCL_BYTE = 1, NCCL_F16 = 6, NCCL_F32 = 7, NCCL_BF16 = 9 };
enum { NCCL_SUM = 0 };

#define NCCL_OLDEST     21403 /* 2.14.3, the first with communicators that do not block */
#define NCCL_MULTI_RANK 23000 /* 2.30, the first that lets ranks share a GPU */

typedef struct nccl_functions {
#define NCCL_FUNCTION(name, arguments) int(*name) arguments;
#include "transport/coll/nccl/coll_nccl_functions.def"
#undef NCCL_FUNCTION
    const char *(*ncclGetErrorString)(int result);
    const char *(*ncclGetLastError)(nccl_comm_t *comm); /* may be NULL */
    int version;                                        /* 23007 is 2.30.7 */
} nccl_functions_t;

/*
 * $WEFT_NCCL_LIBRARY or none; where it is not set, libnccl.so.2 of the system. WEFT_ERR_UNSUPPORTED: diag
 * names what was tried and what to install.
 */
weft_status_t coll_nccl_load(weft_diag_t *diag, const nccl_functions_t **functions_out);
