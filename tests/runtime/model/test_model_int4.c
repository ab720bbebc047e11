/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints of packed 4-bit weights, read as those who write them pack them. */
#include "tests/support/int4_folder.h"
#include "tests/support/model_rig.h"
#include "tests/support/model_slices.h"
#include "tests/support/scratch_folder.h"

static void check_down(const model_source_t *source, const int4_matrix_t *m)
{
    static uint8_t rows[INT4_HIDDEN * INT4_FFN];
    static float values[INT4_HIDDEN * INT4_FFN];
    weft_diag_t diag = {0};
    model_tensor_t tensor;
    const model_tensor_key_t key = {.id = MODEL_TENSOR_FFN_DOWN};
    model_rig_check(model_source_require(source, key, INT4_HIDDEN, INT4_FFN, &diag, &tensor),
                    &diag);
    model_tensor_read(&tensor, 0, INT4_HIDDEN, rows);
    k_dequantize(tensor.dtype, rows, values, INT4_HIDDEN * INT4_FFN);
    for (uint32_t n = 0; n < INT4_HIDDEN; n++) {
        for (uint32_t k = 0; k < INT4_FFN; k++) {
            const int number = m->q[n * INT4_FFN + k] - m->zero[k / INT4_GROUP][n];
            const float expected = (float)number * k_f16_to_f32(m->scale[k / INT4_GROUP][n]);
            assert_true(values[n * INT4_FFN + k] == expected);
        }
    }
}

static void check_kind(bool is_awq)
{
    static int4_checkpoint_t c;
    char folder[256];
    weft_diag_t diag = {0};
    c = (int4_checkpoint_t){.is_awq = is_awq, .random = {test_seed(5)}};
    scratch_folder_make(folder, sizeof(folder));
    int4_folder_write(&c, folder);
    model_rig_t rig;
    model_rig_open(&rig, &(model_rig_config_t){.path = folder,
                                               .isa = "auto",
                                               .kv_dtype = K_F16,
                                               .block_tokens = 16,
                                               .n_blocks = 1,
                                               .limits = {1, 1, 16}});
    check_down(rig.source, &c.down);
    slices_t slices = {.source = rig.source, .random = &c.random};
    assert_slices(&slices, MODEL_FILE_HF);
    assert_int_equal(slices.n_of_form[MODEL_FORM_INT4], 7);
    model_rig_close(&rig);

    c.sorts_groups = true;
    int4_folder_write(&c, folder);
    model_source_t *source = NULL;
    const weft_status_t status = model_source_open(folder, &diag, &source);
    if (is_awq) { /* has no order */
        assert_status(status, WEFT_OK);
    } else {
        assert_status(status, WEFT_ERR_UNSUPPORTED);
        assert_non_null(strstr(diag.text, "desc_act"));
    }
    model_source_close(source);
    scratch_folder_remove(folder);
}

static void gptq_and_awq_numbers_are_found_where_their_writers_put_them(void **state)
{
    (void)state;
    check_kind(false);
    check_kind(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gptq_and_awq_numbers_are_found_where_their_writers_put_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
