/* SPDX-License-Identifier: Apache-2.0 */
/*
 * http_tls: the server's certificate and key, reread when their files change.
 *
 * A pair that does not load or fit together leaves the one before in use, with one log line.
 * Threads  that of the server's loop
 */
#pragma once

#include <gnutls/abstract.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct http_tls http_tls_t;

/* PEM files; WEFT_ERR_NOT_FOUND, _DENIED, _MALFORMED: diag says which one and why. */
weft_status_t http_tls_create(const char *cert_path, const char *key_path, weft_diag_t *diag,
                              http_tls_t **tls_out);
void http_tls_destroy(http_tls_t *tls); /* NULL is fine */

/* GnuTLS's callback carries no pointer of ours: this says whose handshakes come next. */
void http_tls_set_current(http_tls_t *tls);

/* For MHD_OPTION_HTTPS_CERT_CALLBACK2. */
gnutls_certificate_retrieve_function3 http_tls_retrieve;
