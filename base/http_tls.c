/* SPDX-License-Identifier: Apache-2.0 */
#include "base/http_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/x509.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"

#define WEFT_LOG_MODULE "tls"
#include "base/log.h"

#define MAX_PEM_BYTES ((off_t)1 << 20)
#define MAX_CHAIN     16

/* What tells one version of a file from the next; Kubernetes swaps links, so the inode counts. */
typedef struct stamp {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec changed;
} stamp_t;

typedef struct pem {
    char *path;
    stamp_t stamp; /* of the version that was last tried */
    gnutls_datum_t text;
} pem_t;

struct http_tls {
    pem_t cert;
    pem_t key;
};

static _Thread_local http_tls_t *current;

void http_tls_set_current(http_tls_t *tls)
{
    current = tls;
}

static stamp_t stamp_of(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        return (stamp_t){0};
    }
    return (stamp_t){info.st_dev, info.st_ino, info.st_size, info.st_mtim};
}

static bool is_same(const stamp_t *a, const stamp_t *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
}

static weft_status_t report_file(const char *path, int error, weft_diag_t *diag)
{
    const weft_status_t status = error == ENOENT || error == ENOTDIR ? WEFT_ERR_NOT_FOUND
                                 : error == EACCES || error == EPERM ? WEFT_ERR_DENIED
                                                                     : WEFT_ERR_IO;
    return weft_diag(diag, status, "%s: %s", path, strerror(error));
}

static void wipe(gnutls_datum_t *text)
{
    if (text->data != NULL) {
        gnutls_memset(text->data, 0, text->size); /* it may be a private key */
    }
    weft_free(text->data);
    *text = (gnutls_datum_t){0};
}

static weft_status_t read_all(int fd, const char *path, size_t size, weft_diag_t *diag,
                              gnutls_datum_t *text_out)
{
    gnutls_datum_t text = {.data = weft_zalloc(size + 1, "tls.pem"), .size = 0};
    if (text.data == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    while (text.size < size) {
        const ssize_t n = read(fd, text.data + text.size, size - text.size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            break; /* it shrank; what is there is judged by the parser */
        }
        text.size += (unsigned int)n;
    }
    if (text.size == 0) {
        wipe(&text);
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: is empty", path);
    }
    *text_out = text;
    return WEFT_OK;
}

static weft_status_t read_pem(const char *path, weft_diag_t *diag, gnutls_datum_t *text_out)
{
    struct stat info;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) != 0) {
        const int error = errno;
        if (fd >= 0) {
            close(fd);
        }
        return report_file(path, error, diag);
    }
    const weft_status_t status =
        S_ISREG(info.st_mode) && info.st_size <= MAX_PEM_BYTES
            ? read_all(fd, path, (size_t)info.st_size, diag, text_out)
            : weft_diag(diag, WEFT_ERR_MALFORMED, "%s: not a file of at most 1 MiB", path);
    close(fd);
    return status;
}

/* On its own first: GnuTLS 3.7 leaks a certificate that fails to parse beside its key. */
static int check_cert(const gnutls_datum_t *cert)
{
    gnutls_x509_crt_t *chain = NULL;
    unsigned int n = 0;
    const int error = gnutls_x509_crt_list_import2(&chain, &n, cert, GNUTLS_X509_FMT_PEM, 0);
    for (unsigned int i = 0; error >= 0 && i < n; i++) {
        gnutls_x509_crt_deinit(chain[i]);
    }
    if (error >= 0) {
        gnutls_free(chain);
    }
    return error;
}

/* Whether the two are PEM, and the key is the certificate's. */
static weft_status_t check_pair(const http_tls_t *tls, const gnutls_datum_t *cert,
                                const gnutls_datum_t *key, weft_diag_t *diag)
{
    gnutls_certificate_credentials_t credentials = NULL;
    int error = check_cert(cert);
    if (error < 0) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "certificate %s: %s", tls->cert.path,
                         gnutls_strerror(error));
    }
    error = gnutls_certificate_allocate_credentials(&credentials);
    if (error < 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    error = gnutls_certificate_set_x509_key_mem(credentials, cert, key, GNUTLS_X509_FMT_PEM);
    gnutls_certificate_free_credentials(credentials);
    if (error < 0) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "certificate %s with key %s: %s", tls->cert.path,
                         tls->key.path, gnutls_strerror(error));
    }
    return WEFT_OK;
}

static weft_status_t load(http_tls_t *tls, weft_diag_t *diag)
{
    gnutls_datum_t cert = {0};
    gnutls_datum_t key = {0};
    tls->cert.stamp = stamp_of(tls->cert.path); /* before reading: a later change is seen again */
    tls->key.stamp = stamp_of(tls->key.path);
    weft_status_t status = read_pem(tls->cert.path, diag, &cert);
    if (status >= 0) {
        status = read_pem(tls->key.path, diag, &key);
    }
    if (status >= 0) {
        status = check_pair(tls, &cert, &key, diag);
    }
    if (status < 0) {
        wipe(&cert);
        wipe(&key);
        return status;
    }
    wipe(&tls->cert.text);
    wipe(&tls->key.text);
    tls->cert.text = cert;
    tls->key.text = key;
    return WEFT_OK;
}

weft_status_t http_tls_create(const char *cert_path, const char *key_path, weft_diag_t *diag,
                              http_tls_t **tls_out)
{
    http_tls_t *tls = weft_zalloc(sizeof(*tls), "tls");
    if (tls == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    tls->cert.path = weft_strdup(cert_path, "tls.path");
    tls->key.path = weft_strdup(key_path, "tls.path");
    const weft_status_t status =
        tls->cert.path == NULL || tls->key.path == NULL ? WEFT_ERR_NO_MEMORY : load(tls, diag);
    if (status < 0) {
        http_tls_destroy(tls);
        return status;
    }
    *tls_out = tls;
    return WEFT_OK;
}

void http_tls_destroy(http_tls_t *tls)
{
    if (tls == NULL) {
        return;
    }
    wipe(&tls->cert.text);
    wipe(&tls->key.text);
    weft_free(tls->cert.path);
    weft_free(tls->key.path);
    weft_free(tls);
}

static void reload_if_changed(http_tls_t *tls)
{
    const stamp_t cert = stamp_of(tls->cert.path);
    const stamp_t key = stamp_of(tls->key.path);
    if (is_same(&cert, &tls->cert.stamp) && is_same(&key, &tls->key.stamp)) {
        return;
    }
    weft_diag_t diag = {0};
    if (load(tls, &diag) < 0) {
        weft_log_warn("certificate kept, the new one does not load: %s", diag.text);
    } else {
        weft_log_info("certificate reloaded cert=%s", tls->cert.path);
    }
}

static int import_key(const gnutls_datum_t *text, gnutls_privkey_t *key_out)
{
    gnutls_privkey_t key = NULL;
    int error = gnutls_privkey_init(&key);
    if (error < 0) {
        return error;
    }
    error = gnutls_privkey_import_x509_raw(key, text, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (error < 0) {
        gnutls_privkey_deinit(key);
        return error;
    }
    *key_out = key;
    return 0;
}

/*
 * Every handshake gets its own copies, which GnuTLS frees: one that takes long is not disturbed by
 * a reload.
 */
int http_tls_retrieve(gnutls_session_t session, const struct gnutls_cert_retr_st *info,
                      gnutls_pcert_st **certs, unsigned int *certs_length,
                      gnutls_ocsp_data_st **ocsp, unsigned int *ocsp_length,
                      gnutls_privkey_t *privkey, unsigned int *flags)
{
    (void)session;
    (void)info;
    reload_if_changed(current);
    unsigned int n = MAX_CHAIN;
    gnutls_pcert_st *chain = gnutls_calloc(MAX_CHAIN, sizeof(*chain));
    if (chain == NULL) {
        return GNUTLS_E_MEMORY_ERROR;
    }
    int error =
        gnutls_pcert_list_import_x509_raw(chain, &n, &current->cert.text, GNUTLS_X509_FMT_PEM, 0);
    if (error >= 0) {
        error = import_key(&current->key.text, privkey);
        for (unsigned int i = 0; error < 0 && i < n; i++) {
            gnutls_pcert_deinit(&chain[i]);
        }
    }
    if (error < 0) {
        gnutls_free(chain);
        weft_log_warn("handshake failed: %s", gnutls_strerror(error));
        return error;
    }
    *certs = chain;
    *certs_length = n;
    *ocsp = NULL;
    *ocsp_length = 0;
    *flags = GNUTLS_CERT_RETR_DEINIT_ALL;
    return 0;
}
