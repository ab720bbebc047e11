/* SPDX-License-Identifier: Apache-2.0 */
/*
 * faulty_io: a row of kv_io that fails as asked. One instance at a time.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kvstore/disk/kv_io.h"

typedef struct faulty_io_plan {
    uint32_t fail_read; /* this one (1: the first) ends with `error`; 0: none; so below */
    uint32_t fail_write;
    uint32_t tear_write; /* only its first half lands, and it is said to be whole */
    bool dies;           /* or the process is killed right then */
    int error;
    bool is_short;          /* never more than a page at a time */
    atomic_bool is_holding; /* nothing ends until faulty_io_release */
} faulty_io_plan_t;

/* Set before open. */
extern faulty_io_plan_t faulty_io_plan;
extern const kv_io_ops_t kv_io_faulty;

void faulty_io_release(void);
