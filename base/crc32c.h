/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crc32c: the sum of iSCSI, ext4 and others (RFC 3720, 12.1): polynomial 0x1EDC6F41, reflected.
 *
 * The processor's instructions do the work where it has them: 64-byte carry-less multiplication, or
 * the CRC32 instruction on three streams at a time, or else a table.
 * Threads  any
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The sum of what gave `sum` followed by data; begin with 0. */
uint32_t weft_crc32c(uint32_t sum, const void *data, size_t bytes);
