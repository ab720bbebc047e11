/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sound models with bytes changed and ends cut off: opened or refused with a line, never a crash,
 * nothing leaked, and never more memory than a small file deserves.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/mapped_file.h"
#include "runtime/model/model_source.h"
#include "tests/support/random.h"
#include "tests/support/sanitizer.h"

#define TINY      WEFT_TEST_VECTORS "/tiny-models/"
#define ROUNDS    20000
#define MAX_BYTES (500 * 1000 * 1000)

typedef struct workshop {
    char folder[32];
    char file[64];            /* rewritten every round */
    weft_mapped_file_t model; /* the sound one */
    size_t header_bytes;      /* most changes go here */
    uint8_t *copy;            /* [model.length] */
} workshop_t;

static void workshop_open(workshop_t *shop, const char *model, const char *name,
                          size_t header_bytes)
{
    weft_diag_t diag = {0};
    snprintf(shop->folder, sizeof(shop->folder), "/tmp/weft-mutate-XXXXXX");
    assert_non_null(mkdtemp(shop->folder));
    snprintf(shop->file, sizeof(shop->file), "%s/%s", shop->folder, name);
    shop->model = (weft_mapped_file_t){0};
    assert_int_equal(weft_mapped_file_open(model, &diag, &shop->model), WEFT_OK);
    assert_true(shop->model.length >= header_bytes);
    shop->header_bytes = header_bytes;
    shop->copy = test_malloc(shop->model.length);
}

static void workshop_close(workshop_t *shop)
{
    test_free(shop->copy);
    weft_mapped_file_close(&shop->model);
    unlink(shop->file);
    assert_int_equal(rmdir(shop->folder), 0);
}

/* One to four bytes changed: a bit, any value, or an extreme; sometimes the end cut off. */
static size_t mutate(workshop_t *shop, test_random_t *random)
{
    static const uint8_t extremes[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    size_t length = shop->model.length;
    memcpy(shop->copy, shop->model.data, length);
    for (uint32_t n = test_random_between(random, 1, 4); n > 0; n--) {
        const bool is_in_header = test_random_below(random, 16) != 0;
        const size_t range = is_in_header ? shop->header_bytes : length;
        uint8_t *byte = &shop->copy[test_random_below(random, (uint32_t)range)];
        switch (test_random_below(random, 3)) {
        case 0:
            *byte ^= (uint8_t)(1u << test_random_below(random, 8));
            break;
        case 1:
            *byte = (uint8_t)test_random_u64(random);
            break;
        default:
            *byte = extremes[test_random_below(random, sizeof(extremes))];
        }
    }
    if (test_random_below(random, 8) == 0) {
        const bool is_in_header = test_random_below(random, 2) != 0;
        length = test_random_below(random, (uint32_t)(is_in_header ? shop->header_bytes : length));
    }
    return length;
}

static void write_copy(const workshop_t *shop, size_t length)
{
    FILE *file = fopen(shop->file, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(shop->copy, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* Reads what a model hands out: bytes outside of the mapping would be a fault here. */
static uint64_t read_everything(const model_source_t *source)
{
    uint64_t sum = 0;
    size_t length;
    const char *text = model_source_chat_template(source, &length);
    for (size_t i = 0; i < length; i++) {
        sum += (uint8_t)text[i];
    }
    for (size_t i = 0; i < model_source_tensor_count(source); i++) {
        const model_tensor_t tensor = model_source_tensor_at(source, i);
        for (size_t at = 0; at < tensor.bytes; at += 64) {
            sum += ((const uint8_t *)tensor.data)[at];
        }
    }
    return sum;
}

/* true: it opened, tokenizer and all. */
static bool open_once(const char *path, uint64_t seed)
{
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    text_tokenizer_t *tokenizer = NULL;
    weft_status_t status = model_source_open(path, &diag, &source);
    if (status == WEFT_OK) {
        read_everything(source);
        status = model_source_tokenizer(source, &diag, &tokenizer);
    }
    text_tokenizer_destroy(tokenizer);
    model_source_close(source);
    if (status == WEFT_ERR_NO_MEMORY || status == WEFT_ERR_INTERNAL ||
        (status != WEFT_OK && diag.text[0] == '\0')) {
        fail_msg("WEFT_TEST_SEED=%llu WEFT_TEST_ROUNDS=1: status %d, \"%s\"",
                 (unsigned long long)seed, status, diag.text);
    }
    return status == WEFT_OK;
}

static void run_campaign(workshop_t *shop, const char *path)
{
    uint64_t seed = test_seed(20261123);
    const size_t before = weft_alloc_live_bytes();
    uint32_t n_opened = 0;
    for (uint32_t round = test_rounds(ROUNDS); round > 0; round--, seed++) {
        test_random_t random = {seed};
        write_copy(shop, mutate(shop, &random));
        n_opened += open_once(path, seed);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    print_message("%u of the changed files still opened\n", n_opened);
}

static void changed_gguf_files_never_crash_nor_leak(void **state)
{
    (void)state;
    workshop_t shop;
    workshop_open(&shop, TINY "qwen2-gguf-q8_0/model.gguf", "model.gguf", 12000);
    run_campaign(&shop, shop.file);
    workshop_close(&shop);
}

static void changed_safetensors_files_never_crash_nor_leak(void **state)
{
    (void)state;
    static const char *const beside[] = {"config.json", "tokenizer.json"};
    char path[128];
    workshop_t shop;
    workshop_open(&shop, TINY "llama/model.safetensors", "model.safetensors", 2500);
    for (size_t i = 0; i < 2; i++) {
        char target[1024];
        snprintf(target, sizeof(target), TINY "llama/%s", beside[i]);
        snprintf(path, sizeof(path), "%s/%s", shop.folder, beside[i]);
        assert_int_equal(symlink(target, path), 0);
    }
    run_campaign(&shop, shop.folder);
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s", shop.folder, beside[i]);
        unlink(path);
    }
    workshop_close(&shop);
}

static void changed_configs_never_crash_nor_leak(void **state)
{
    (void)state;
    workshop_t shop;
    workshop_open(&shop, TINY "llama-rope-yarn/config.json", "config.json", 600);
    uint64_t seed = test_seed(20261123);
    const size_t before = weft_alloc_live_bytes();
    for (uint32_t round = test_rounds(ROUNDS); round > 0; round--, seed++) {
        test_random_t random = {seed};
        weft_diag_t diag = {0};
        model_config_t config;
        const size_t length = mutate(&shop, &random);
        const weft_status_t status =
            model_config_from_json((const char *)shop.copy, length, NULL, 0, &diag, &config);
        assert_true(status == WEFT_OK || diag.text[0] != '\0');
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    write_copy(&shop, 1);
    workshop_close(&shop);
}

int main(void)
{
#if !TEST_IS_SANITIZED
    const struct rlimit limit = {MAX_BYTES, MAX_BYTES};
    setrlimit(RLIMIT_AS, &limit);
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changed_gguf_files_never_crash_nor_leak),
        cmocka_unit_test(changed_safetensors_files_never_crash_nor_leak),
        cmocka_unit_test(changed_configs_never_crash_nor_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
