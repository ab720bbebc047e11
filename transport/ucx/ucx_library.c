/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/ucx/ucx_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ucs/config/types.h>

#define WEFT_LOG_MODULE "ucx"
#include "base/log.h"

#define SYSTEM_LIBRARY "libucp.so.0"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static ucx_functions_t loaded; /* written once, guarded by lock until then */
static bool is_loaded;         /* guarded by lock */

/* What was tried, for people. */
typedef struct attempts {
    char text[WEFT_DIAG_BYTES / 2];
    size_t length;
} attempts_t;

static void note_attempt(attempts_t *attempts, const char *path, const char *what)
{
    const size_t room = sizeof(attempts->text) - attempts->length;
    const int n = snprintf(attempts->text + attempts->length, room, "%s%s: %s",
                           attempts->length > 0 ? "; " : "", path, what);
    attempts->length += (size_t)n < room ? (size_t)n : room - 1;
}

static const char *find_functions(void *library, ucx_functions_t *functions)
{
    void *symbol;
#define UCX_FUNCTION(name)                                                                         \
    symbol = dlsym(library, #name);                                                                \
    if (symbol == NULL) {                                                                          \
        return #name;                                                                              \
    }                                                                                              \
    memcpy(&functions->name, &symbol, sizeof(symbol));
#include "transport/ucx/ucx_functions.def"
#undef UCX_FUNCTION
    return NULL;
}

/*
 * UCX, as it is loaded, does two things to the whole process. It takes over the signals of a crash to
 * print a trace: they are the program's (or the sanitizer's), so they are given back. And it patches
 * mmap, munmap and their like to watch over its cache of registered memory, of which we make no use
 * (RCACHE_ENABLE): a variable, read in its constructor only, keeps it from that.
 */
#define HOOK_MODE "UCX_MEM_MMAP_HOOK_MODE"

static void *open_library(const char *path)
{
    static const int signals[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction before[WEFT_ARRAY_LEN(signals)];
    const bool is_ours = getenv(HOOK_MODE) == NULL && setenv(HOOK_MODE, "none", 0) == 0;

    for (size_t i = 0; i < WEFT_ARRAY_LEN(signals); i++) {
        sigaction(signals[i], NULL, &before[i]);
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(signals); i++) {
        sigaction(signals[i], &before[i], NULL);
    }
    if (is_ours) {
        unsetenv(HOOK_MODE);
    }
    return library;
}

/*
 * UCX writes to stdout, which is the program's. What it calls an error is mostly one of a peer. Its
 * header of these two does not compile as strict C: level is ucs_log_level_t, the result
 * UCS_LOG_FUNC_RC_STOP.
 */
static int log_line(const char *file, unsigned line, const char *function, int level,
                    const void *component, const char *format, va_list arguments)
{
    char text[512];

    (void)file;
    (void)line;
    (void)function;
    (void)component;
    vsnprintf(text, sizeof(text), format, arguments);
    weft_log(level <= UCS_LOG_LEVEL_WARN ? WEFT_LOG_WARN : WEFT_LOG_DEBUG, WEFT_LOG_MODULE,
             "ucx: %s", text);
    return 0;
}

static void take_log(void *library)
{
    void (*push_handler)(weft_typeof(&log_line) handler);
    void *symbol = dlsym(library, "ucs_log_push_handler");

    if (symbol != NULL && getenv("UCX_LOG_FILE") == NULL) {
        memcpy(&push_handler, &symbol, sizeof(symbol));
        push_handler(log_line);
    }
}

/* A library that will not do stays open: UCX does not survive being unloaded. */
static bool try_library(const char *path, attempts_t *attempts)
{
    ucx_functions_t functions;
    unsigned major;
    unsigned minor;
    unsigned release;
    char what[64];

    void *library = open_library(path);
    if (library == NULL) {
        note_attempt(attempts, path, dlerror());
        return false;
    }
    const char *missing = find_functions(library, &functions);
    if (missing != NULL) {
        snprintf(what, sizeof(what), "has no %s", missing);
        note_attempt(attempts, path, what);
        return false;
    }
    functions.ucp_get_version(&major, &minor, &release);
    if (major != 1 || minor < WEFT_UCX_OLDEST_MINOR) {
        snprintf(what, sizeof(what), "is version %u.%u.%u", major, minor, release);
        note_attempt(attempts, path, what);
        return false;
    }
    weft_log_info("loaded=%s version=%u.%u.%u", path, major, minor, release);
    loaded = functions;
    take_log(library);
    return true;
}

static bool try_libraries(const char *path, attempts_t *attempts)
{
    if (path == NULL) {
        path = getenv("WEFT_UCX_LIBRARY");
    }
    if (path != NULL && path[0] != '\0') {
        return try_library(path, attempts);
    }
    return try_library(WEFT_UCX_LIBRARY, attempts) || try_library(SYSTEM_LIBRARY, attempts);
}

weft_status_t ucx_load(const char *path, weft_diag_t *diag, const ucx_functions_t **functions_out)
{
    attempts_t attempts = {0};
    weft_status_t status = WEFT_OK;

    pthread_mutex_lock(&lock);
    is_loaded = is_loaded || try_libraries(path, &attempts);
    if (is_loaded) {
        *functions_out = &loaded;
    } else {
        status = weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                           "ucx: no UCX of at least 1.%d: %s; pip install libucx-cu13, then set "
                           "ucx.library (or WEFT_UCX_LIBRARY) to its lib/libucp.so.0",
                           WEFT_UCX_OLDEST_MINOR, attempts.text);
    }
    pthread_mutex_unlock(&lock);
    return status;
}
