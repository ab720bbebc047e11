/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_kv_hash: `weft kv hash`: block names as the engine and vLLM make them, to compare fleets. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/json_writer.h"
#include "base/option.h"
#include "base/utf8.h"
#include "cli/cli_input.h"
#include "cli/commands.h"
#include "kvstore/hash/kv_hash.h"

#define SEED_VARIABLE "PYTHONHASHSEED"

typedef struct kv_hash_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/kv_hash.def"
#undef OPTION
} kv_hash_options_t;

const weft_option_t kv_hash_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(kv_hash_options_t, __VA_ARGS__)
#include "cli/kv_hash.def"
#undef OPTION
};
const size_t kv_hash_option_count = WEFT_ARRAY_LEN(kv_hash_option_rows);

typedef struct chain {
    const kv_hash_options_t *options;
    kv_hash_algo_t algo;
    kv_hasher_t *hasher;
    kv_extra_t *extra;
    int32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;
} chain_t;

/* ---- input ---- */

static weft_status_t check(const kv_hash_options_t *options, const weft_option_set_t *set,
                           weft_diag_t *diag)
{
    if (options->block_size == 0 || options->block_size > KV_HASH_MAX_TOKENS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--block-size %u: 1 to %d are possible",
                         options->block_size, KV_HASH_MAX_TOKENS);
    }
    if ((options->tokens[0] != '\0') == (options->tokens_file[0] != '\0')) {
        return weft_diag(diag, WEFT_ERR_INVALID, "give one of --tokens and --tokens-file");
    }
    if (options->salt[0] == '\0' && weft_option_is_given(set, "salt")) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--salt is empty");
    }
    if (!weft_utf8_valid(options->salt, strlen(options->salt)) ||
        !weft_utf8_valid(options->lora, strlen(options->lora))) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--salt and --lora must be UTF-8");
    }
    return WEFT_OK;
}

/* Salt and adapter, NAME=PATH. */
static weft_status_t make_extra(const kv_hash_options_t *options, weft_diag_t *diag,
                                kv_extra_t **extra_out)
{
    const char *salt = options->salt[0] == '\0' ? NULL : options->salt;
    const char *path = strchr(options->lora, '=');
    char *name = NULL;
    if (options->lora[0] != '\0') {
        if (path == NULL || path == options->lora || path[1] == '\0') {
            return weft_diag(diag, WEFT_ERR_INVALID, "--lora \"%s\": not NAME=PATH", options->lora);
        }
        name = weft_strndup(options->lora, (size_t)(path - options->lora), "kv_hash.lora");
        if (name == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
    }
    const weft_status_t status =
        kv_extra_create(salt, name, name == NULL ? NULL : path + 1, extra_out);
    weft_free(name);
    return status == WEFT_ERR_TOO_LARGE
               ? weft_diag(diag, status, "--salt and --lora are longer than %d bytes",
                           KV_EXTRA_MAX_BYTES)
               : status;
}

static weft_status_t read_tokens(const kv_hash_options_t *options, weft_diag_t *diag,
                                 chain_t *chain)
{
    const int64_t limit = INT64_C(1) << 31;
    if (options->tokens_file[0] == '\0') {
        return cli_parse_ids(options->tokens, "--tokens", limit, diag, &chain->tokens,
                             &chain->n_tokens);
    }
    weft_buffer_t text = {0};
    weft_status_t status = cli_read_file(options->tokens_file, &text, diag);
    if (status >= 0) {
        weft_buffer_append(&text, "", 1);
        status = text.is_failed ? WEFT_ERR_NO_MEMORY
                                : cli_parse_ids(text.data, options->tokens_file, limit, diag,
                                                &chain->tokens, &chain->n_tokens);
    }
    weft_buffer_free(&text);
    return status;
}

static void chain_fini(chain_t *chain)
{
    kv_hasher_destroy(chain->hasher);
    kv_extra_release(chain->extra);
    weft_free(chain->tokens);
}

static weft_status_t chain_init(chain_t *chain, const kv_hash_options_t *options, weft_diag_t *diag)
{
    *chain = (chain_t){.options = options};
    weft_status_t status = kv_hash_algo_parse(options->algo, diag, &chain->algo);
    if (status >= 0) {
        status = kv_hasher_create(chain->algo, getenv(SEED_VARIABLE), &chain->hasher);
        if (status == WEFT_ERR_TOO_LARGE) {
            weft_diag(diag, status, SEED_VARIABLE " is longer than %d bytes", KV_EXTRA_MAX_BYTES);
        }
    }
    if (status >= 0) {
        status = make_extra(options, diag, &chain->extra);
    }
    if (status >= 0) {
        status = read_tokens(options, diag, chain);
    }
    return status;
}

/* ---- output ---- */

static const char *hex_of(const chain_t *chain, const kv_hash_t *hash, char *text)
{
    for (uint32_t i = 0; i < kv_hash_algo_bytes(chain->algo); i++) {
        snprintf(text + (size_t)2 * i, 3, "%02x", hash->bytes[i]);
    }
    return text;
}

/* The name of the block behind *hash (NULL: of the first one) replaces it. */
static void next_hash(const chain_t *chain, uint32_t block, kv_hash_t *hash)
{
    const uint32_t size = chain->options->block_size;
    kv_hasher_block(chain->hasher, block == 0 ? NULL : hash, chain->tokens + (size_t)block * size,
                    size, chain->extra, hash);
}

static void write_text(const chain_t *chain, weft_buffer_t *out)
{
    const uint32_t size = chain->options->block_size;
    const char *seed = getenv(SEED_VARIABLE);
    char hex[2 * KV_HASH_BYTES + 1];
    kv_hash_t hash;
    weft_buffer_printf(out, "algorithm  %s, " SEED_VARIABLE " %s%s\n", chain->options->algo,
                       seed == NULL ? "unset" : "= ", seed == NULL ? "" : seed);
    weft_buffer_printf(out, "none hash  %s\n", hex_of(chain, kv_hasher_root(chain->hasher), hex));
    for (uint32_t i = 0; i < chain->n_tokens / size; i++) {
        next_hash(chain, i, &hash);
        weft_buffer_printf(out, "block %-4u %s %" PRIu64 "\n", i, hex_of(chain, &hash, hex),
                           kv_hash_u64(&hash, chain->algo));
    }
    weft_buffer_printf(out, "unhashed   %u of %u tokens\n", chain->n_tokens % size,
                       chain->n_tokens);
}

/* The integer as text: most readers of JSON keep 53 or 63 bits of a number. */
static void write_json_hash(weft_json_t *json, const chain_t *chain, const kv_hash_t *hash)
{
    char text[2 * KV_HASH_BYTES + 1];
    weft_json_begin_object(json);
    weft_json_put_string(json, "hash", hex_of(chain, hash, text));
    snprintf(text, sizeof(text), "%" PRIu64, kv_hash_u64(hash, chain->algo));
    weft_json_put_string(json, "event_u64", text);
    weft_json_end_object(json);
}

static void write_json(const chain_t *chain, weft_buffer_t *out)
{
    const uint32_t size = chain->options->block_size;
    char hex[2 * KV_HASH_BYTES + 1];
    kv_hash_t hash;
    weft_json_t json;
    weft_json_init(&json, out);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "algo", chain->options->algo);
    weft_json_put_string(&json, "pythonhashseed", getenv(SEED_VARIABLE));
    weft_json_put_string(&json, "none_hash", hex_of(chain, kv_hasher_root(chain->hasher), hex));
    weft_json_put_u64(&json, "block_size", size);
    weft_json_key(&json, "blocks");
    weft_json_begin_array(&json);
    for (uint32_t i = 0; i < chain->n_tokens / size; i++) {
        next_hash(chain, i, &hash);
        write_json_hash(&json, chain, &hash);
    }
    weft_json_end_array(&json);
    weft_json_put_u64(&json, "unhashed_tail_tokens", chain->n_tokens % size);
    weft_json_end_object(&json);
    weft_buffer_puts(out, "\n");
}

static weft_status_t print(const kv_hash_options_t *options, weft_diag_t *diag)
{
    chain_t chain;
    weft_buffer_t out = {0};
    weft_status_t status = chain_init(&chain, options, diag);
    if (status >= 0) {
        (options->json ? write_json : write_text)(&chain, &out);
        status = out.is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    if (status >= 0 &&
        (fwrite(out.data, 1, out.length, stdout) != out.length || fflush(stdout) != 0)) {
        status = weft_diag(diag, WEFT_ERR_IO, "standard output: %s", strerror(errno));
    }
    weft_buffer_free(&out);
    chain_fini(&chain);
    return status;
}

int cmd_kv_hash(int argc, char **argv)
{
    kv_hash_options_t options;
    const weft_option_group_t group = {.title = "hash",
                                       .rows = kv_hash_option_rows,
                                       .n_rows = kv_hash_option_count,
                                       .config = &options};
    const weft_option_spec_t spec = {
        .usage = "weft kv hash (--tokens 1,2,3 | --tokens-file F) [options]",
        .about = "Prints the names of the KV blocks of a list of token ids, as vLLM with the same "
                 "algorithm and PYTHONHASHSEED makes them: digests, the integers that events "
                 "carry, and how many tokens at the end fill no block.",
        .groups = &group,
        .n_groups = 1,
    };
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status >= 0) {
        status = check(&options, set, &diag);
    }
    if (status >= 0) {
        status = print(&options, &diag);
    }
    weft_option_set_destroy(set);
    return status < 0 ? cli_fail(status, &diag) : CLI_EXIT_OK;
}
