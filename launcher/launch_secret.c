/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_secret.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <zmq.h>

#include "base/alloc.h"

#define SALT "weft rendezvous 1"

static weft_status_t derive(const uint8_t *bytes, size_t n, const char *info,
                            uint8_t key_out[LAUNCH_KEY_BYTES])
{
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *context = kdf != NULL ? EVP_KDF_CTX_new(kdf) : NULL;
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)bytes, n),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)SALT, strlen(SALT)),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)info, strlen(info)),
        OSSL_PARAM_construct_end(),
    };
    const bool is_made =
        context != NULL && EVP_KDF_derive(context, key_out, LAUNCH_KEY_BYTES, params) == 1;
    EVP_KDF_CTX_free(context);
    EVP_KDF_free(kdf);
    return is_made ? WEFT_OK : WEFT_ERR_NO_MEMORY;
}

static weft_status_t make_pair(const uint8_t *bytes, size_t n, const char *info,
                               launch_key_pair_t *pair)
{
    char secret_text[41];
    char public_text[41];
    weft_status_t status = derive(bytes, n, info, pair->secret_key);
    if (status == WEFT_OK &&
        (zmq_z85_encode(secret_text, pair->secret_key, LAUNCH_KEY_BYTES) == NULL ||
         zmq_curve_public(public_text, secret_text) != 0 ||
         zmq_z85_decode(pair->public_key, public_text) == NULL)) {
        status = WEFT_ERR_UNSUPPORTED;
    }
    OPENSSL_cleanse(secret_text, sizeof(secret_text));
    return status;
}

static weft_status_t check_file(int fd, const char *path, weft_diag_t *diag)
{
    struct stat about;
    if (fd < 0 || fstat(fd, &about) != 0) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "--secret-file %s: %s", path, strerror(errno));
    }
    if (!S_ISREG(about.st_mode)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--secret-file %s: not a plain file", path);
    }
    if ((about.st_mode & 077) != 0) {
        return weft_diag(diag, WEFT_ERR_DENIED,
                         "--secret-file %s: its mode is %03o, so that others may read it; 400 or "
                         "600 is wanted",
                         path, (unsigned)about.st_mode & 0777);
    }
    return WEFT_OK;
}

static weft_status_t read_file(int fd, const char *path, uint8_t *bytes, size_t *n_out,
                               weft_diag_t *diag)
{
    size_t n = 0;
    ssize_t got = 1;
    while (got > 0 && n <= LAUNCH_SECRET_MAX_BYTES) {
        got = read(fd, bytes + n, LAUNCH_SECRET_MAX_BYTES + 1 - n);
        n += got > 0 ? (size_t)got : 0;
    }
    if (got < 0) {
        return weft_diag(diag, WEFT_ERR_IO, "--secret-file %s: %s", path, strerror(errno));
    }
    if (n < LAUNCH_SECRET_MIN_BYTES || n > LAUNCH_SECRET_MAX_BYTES) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--secret-file %s: %zu bytes; %d to %d are wanted",
                         path, n, LAUNCH_SECRET_MIN_BYTES, LAUNCH_SECRET_MAX_BYTES);
    }
    *n_out = n;
    return WEFT_OK;
}

weft_status_t launch_secret_read(const char *path, weft_diag_t *diag, launch_secret_t *secret_out)
{
    launch_secret_t secret;
    size_t n = 0;
    uint8_t *bytes = weft_zalloc(LAUNCH_SECRET_MAX_BYTES + 1, "launch.secret");
    if (bytes == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    weft_status_t status = check_file(fd, path, diag);
    if (status == WEFT_OK) {
        status = read_file(fd, path, bytes, &n, diag);
    }
    if (status == WEFT_OK && zmq_has("curve") == 0) {
        status = weft_diag(diag, WEFT_ERR_UNSUPPORTED, "--secret-file: this libzmq has no CURVE");
    }
    if (status == WEFT_OK) {
        status = make_pair(bytes, n, "leader", &secret.leader);
    }
    if (status == WEFT_OK) {
        status = make_pair(bytes, n, "follower", &secret.follower);
    }
    if (status == WEFT_OK) {
        *secret_out = secret;
    }
    if (fd >= 0) {
        close(fd);
    }
    OPENSSL_cleanse(bytes, LAUNCH_SECRET_MAX_BYTES);
    OPENSSL_cleanse(&secret, sizeof(secret));
    weft_free(bytes);
    return status;
}

void launch_secret_wipe(launch_secret_t *secret)
{
    OPENSSL_cleanse(secret, sizeof(*secret));
}
