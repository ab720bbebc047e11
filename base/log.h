/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log: one line a fact, to stderr.
 *
 * Levels by volume: error cannot go on, warn went on degraded, info per process or peer, debug per
 * request, trace per block or token. A line is lower case, `key=value`, request id first.
 * Control characters become "?".
 * Threads  any; a line is written whole
 */
#pragma once

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/status.h"

typedef enum weft_log_level {
    WEFT_LOG_ERROR,
    WEFT_LOG_WARN,
    WEFT_LOG_INFO,
    WEFT_LOG_DEBUG,
    WEFT_LOG_TRACE,
} weft_log_level_t;

void weft_log_set_level(weft_log_level_t level); /* default WEFT_LOG_INFO */
bool weft_log_enabled(weft_log_level_t level);

/*
 * "error" "warn" "info" "debug" "trace", any case, and vLLM's names "warning" and "critical".
 * WEFT_ERR_INVALID: diag lists them.
 */
weft_status_t weft_log_level_parse(const char *text, weft_diag_t *diag,
                                   weft_log_level_t *level_out);

void weft_log(weft_log_level_t level, const char *module, const char *format, ...)
    WEFT_PRINTF(3, 4);

/*
 * "listening on URL", in a line of the log with ` more` behind it; where level info is off and the port
 * is the system's choice a bare line on stderr, or nobody could find it.
 */
void weft_log_listening(const char *module, const char *url, const char *more, bool is_chosen);

/* Each file that logs defines WEFT_LOG_MODULE before it includes this header. */
#define weft_log_error(...) weft_log(WEFT_LOG_ERROR, WEFT_LOG_MODULE, __VA_ARGS__)
#define weft_log_warn(...)  weft_log(WEFT_LOG_WARN, WEFT_LOG_MODULE, __VA_ARGS__)
#define weft_log_info(...)  weft_log(WEFT_LOG_INFO, WEFT_LOG_MODULE, __VA_ARGS__)
#define weft_log_debug(...)                                                                        \
    (weft_log_enabled(WEFT_LOG_DEBUG) ? weft_log(WEFT_LOG_DEBUG, WEFT_LOG_MODULE, __VA_ARGS__)     \
                                      : (void)0)
#define weft_log_trace(...)                                                                        \
    (weft_log_enabled(WEFT_LOG_TRACE) ? weft_log(WEFT_LOG_TRACE, WEFT_LOG_MODULE, __VA_ARGS__)     \
                                      : (void)0)
