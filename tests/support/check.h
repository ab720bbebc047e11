/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check: cmocka with what it needs, and assert_status.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/status.h"

#define assert_status(call, expected)                                                              \
    assert_string_equal(weft_status_name(call), weft_status_name(expected))
