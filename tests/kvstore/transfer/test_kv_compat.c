/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_compat.h"

#include "tests/support/nixl_vectors.h"

static void check_hash(const json_t *test)
{
    char hash[KV_COMPAT_HASH_BYTES];
    const json_t *in = json_object_get(test, "inputs");
    const kv_vllm_identity_t identity = {.attn_backend_name = nixl_text(in, "attn"),
                                         .cache_dtype = nixl_text(in, "cache"),
                                         .dtype = nixl_text(in, "dtype"),
                                         .model = nixl_text(in, "model"),
                                         .vllm_version = "0.32.0",
                                         .transfer_mode = nixl_text(in, "mode"),
                                         .head_size = nixl_number(in, "hd"),
                                         .nixl_connector_version = 14,
                                         .num_hidden_layers = nixl_number(in, "nl"),
                                         .num_kv_heads = nixl_number(in, "kvh"),
                                         .is_hma_enabled =
                                             json_is_true(json_object_get(in, "hma"))};
    assert_status(kv_compat_vllm_hash(&identity, hash), WEFT_OK);
    assert_string_equal(hash, nixl_text(test, "sha256_hex"));
}

static void hashes_are_vllms(void **state)
{
    (void)state;
    nixl_for_each("compat_hash", check_hash);
}

/* Python: json.dumps("A\"\\\x7f\n é€😀") and hashlib.sha256 of the whole. */
static void names_are_escaped_as_python_does(void **state)
{
    char hash[KV_COMPAT_HASH_BYTES];
    const kv_vllm_identity_t identity = {.attn_backend_name = "a",
                                         .cache_dtype = "auto",
                                         .dtype = "d",
                                         .model =
                                             "A\"\\\x7f\n \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
                                         .vllm_version = "v"};
    (void)state;
    assert_status(kv_compat_vllm_hash(&identity, hash), WEFT_OK);
    assert_string_equal(hash, "0f4bfe3d0be8cef464db847b133a7353b9119f4a0e35a78159fb451e72285777");
}

/* ---- weft's own ------------------------------------------------------------------------------ */

static const uint8_t fingerprint[2][32] = {{1}, {2}};

static kv_weft_meta_t meta_of(void)
{
    return (kv_weft_meta_t){.version = KV_WEFT_META_VERSION,
                            .fingerprint = {(const char *)fingerprint[0], 32},
                            .model = kv_wire_text("org/m"),
                            .dtype = kv_wire_text("bf16"),
                            .total_layers = 4,
                            .total_heads = 8,
                            .head_dim = 64,
                            .layers = 4,
                            .heads = 8,
                            .tp_size = 1,
                            .pp_size = 1};
}

static void assert_names(const kv_weft_meta_t *theirs, const char *what)
{
    const kv_weft_meta_t ours = meta_of();
    weft_diag_t diag = {0};
    char hash[2][KV_COMPAT_HASH_BYTES];
    assert_status(kv_compat_check(&ours, theirs, &diag), WEFT_ERR_INVALID);
    if (strstr(diag.text, what) == NULL) {
        fail_msg("\"%s\" does not say %s", diag.text, what);
    }
    assert_status(kv_compat_weft_hash(&ours, hash[0]), WEFT_OK);
    assert_status(kv_compat_weft_hash(theirs, hash[1]), WEFT_OK);
    assert_string_not_equal(hash[0], hash[1]);
}

static void a_difference_has_a_name_and_another_hash(void **state)
{
    (void)state;
    kv_weft_meta_t theirs = meta_of();
    theirs.version++;
    assert_names(&theirs, "wire version: 2 there, 1 here");
    theirs = meta_of();
    theirs.fingerprint.data = (const char *)fingerprint[1];
    assert_names(&theirs, "other weights");
    theirs.model = kv_wire_text("org/other");
    assert_names(&theirs, "model: org/other there, org/m here");
    theirs = meta_of();
    theirs.total_layers = 5;
    assert_names(&theirs, "layers: 5 there, 4 here");
    theirs = meta_of();
    theirs.total_heads = 2;
    assert_names(&theirs, "KV heads: 2 there");
    theirs = meta_of();
    theirs.head_dim = 128;
    assert_names(&theirs, "head size: 128 there");
}

static void ranks_and_elements_need_not_be_equal(void **state)
{
    const kv_weft_meta_t ours = meta_of();
    kv_weft_meta_t theirs = meta_of();
    char hash[2][KV_COMPAT_HASH_BYTES];
    (void)state;
    theirs.tp_size = 2;
    theirs.tp_rank = 1;
    theirs.heads = 4;
    theirs.lease_addr = 64;
    theirs.dtype = kv_wire_text("f32");
    assert_status(kv_compat_check(&ours, &theirs, NULL), WEFT_OK);
    assert_status(kv_compat_weft_hash(&ours, hash[0]), WEFT_OK);
    assert_status(kv_compat_weft_hash(&theirs, hash[1]), WEFT_OK);
    assert_string_equal(hash[0], hash[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes_are_vllms),
        cmocka_unit_test(names_are_escaped_as_python_does),
        cmocka_unit_test(a_difference_has_a_name_and_another_hash),
        cmocka_unit_test(ranks_and_elements_need_not_be_equal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
