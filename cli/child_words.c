/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/child_words.h"

#include <stdarg.h>

#define WEFT_LOG_MODULE "shares"
#include "base/log.h"

void child_words_init(child_words_t *words, weft_arena_t *arena, uint32_t max)
{
    *words = (child_words_t){
        .arena = arena,
        .list = weft_arena_calloc(arena, (size_t)max + 1, sizeof(*words->list)),
        .max = max,
    };
    words->is_failed = words->list == NULL;
}

void child_words_add(child_words_t *words, const char *word)
{
    words->is_failed |= word == NULL || words->n == words->max;
    if (!words->is_failed) {
        words->list[words->n++] = word;
    }
}

void child_words_add_flag(child_words_t *words, const char *flag, const char *format, ...)
{
    va_list arguments;
    child_words_add(words, flag);
    va_start(arguments, format);
    child_words_add(words, weft_arena_vprintf(words->arena, format, arguments));
    va_end(arguments);
}

static void say_share(const char *name, const engine_options_t *options,
                      const engine_share_t *share)
{
    if (share->sharers > 1) {
        weft_log_info("%s shares its GPU device=%s copies_there=%u gpu_memory_utilization=%.6g "
                      "of=%.6g",
                      name, share->device, share->sharers, share->utilization,
                      options->gpu_memory_utilization);
    } else {
        weft_log_info("%s has device=%s", name, share->device);
    }
}

void child_words_add_share(child_words_t *words, const char *name, const weft_option_set_t *set,
                           const engine_options_t *options, const engine_share_t *share)
{
    say_share(name, options, share);
    child_words_add_flag(words, "--device", "%s", share->device);
    if (options->threads == 0) {
        child_words_add_flag(words, "--threads", "%u", share->threads);
    }
    if (share->sharers > 1) {
        child_words_add_flag(words, "--gpu-memory-utilization", "%.6g", share->utilization);
    }
    if (share->cache_bytes > 0 && !weft_option_is_given(set, "kv-cache-memory-bytes") &&
        !weft_option_is_given(set, "num-gpu-blocks-override")) {
        child_words_add_flag(words, "--kv-cache-memory-bytes", "%zu", share->cache_bytes);
    }
}

char **child_words_end(const child_words_t *words)
{
    return words->is_failed ? NULL : (char **)words->list;
}
