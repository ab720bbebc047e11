/* SPDX-License-Identifier: Apache-2.0 */
/* model_slices: a part of a tensor reads as that part of the whole does, in whatever form it lies. */
#pragma once

#include <string.h>

#include "runtime/model/model_source.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

/* Some rows of a tensor, in rows of its dtype; to be freed. */
static inline uint8_t *read_rows(const model_tensor_t *tensor, size_t *row_bytes_out)
{
    assert_status(k_dtype_row_bytes(tensor->dtype, tensor->columns, row_bytes_out), WEFT_OK);
    uint8_t *rows = test_malloc(tensor->rows * *row_bytes_out);
    model_tensor_read(tensor, 0, tensor->rows, rows);
    return rows;
}

/* Rows and columns [first, first + n) of the whole, cut once more from a wider cut. */
static inline void assert_slice_is_part(const model_tensor_t *whole, test_random_t *random)
{
    const k_dtype_info_t *info = k_dtype_info(whole->dtype);
    const uint32_t blocks = (uint32_t)(whole->columns / info->block_elements);
    const uint32_t first_row = test_random_below(random, (uint32_t)whole->rows);
    const uint32_t rows = test_random_between(random, 1, (uint32_t)whole->rows - first_row);
    const uint32_t first = test_random_below(random, blocks);
    const uint32_t n = test_random_between(random, 1, blocks - first);
    const uint32_t skip_rows = first_row / 2;
    const uint32_t skip = first / 2;
    model_tensor_t part = *whole;
    model_tensor_take_rows(&part, skip_rows, whole->rows - skip_rows);
    model_tensor_take_columns(&part, (uint64_t)skip * info->block_elements,
                              (uint64_t)(blocks - skip) * info->block_elements);
    model_tensor_take_rows(&part, first_row - skip_rows, rows);
    model_tensor_take_columns(&part, (uint64_t)(first - skip) * info->block_elements,
                              (uint64_t)n * info->block_elements);
    size_t whole_bytes;
    size_t part_bytes;
    uint8_t *all = read_rows(whole, &whole_bytes);
    uint8_t *some = read_rows(&part, &part_bytes);
    for (uint32_t r = 0; r < rows; r++) {
        const uint8_t *expected =
            all + (first_row + r) * whole_bytes + (size_t)first * info->block_bytes;
        if (memcmp(some + r * part_bytes, expected, part_bytes) != 0) {
            print_error("%s: rows %u + %u, blocks %u + %u\n", whole->name, first_row, rows, first,
                        n);
            fail();
        }
    }
    test_free(all);
    test_free(some);
}

typedef struct slices {
    const model_source_t *source;
    test_random_t *random;
    uint32_t n_of_form[MODEL_FORM_COLUMNS + 1];
} slices_t;

static inline weft_status_t assert_slices_of_tensor(void *context, const model_tensor_want_t *want)
{
    slices_t *slices = context;
    model_tensor_t tensor;
    assert_status(model_source_find(slices->source, want->key, NULL, &tensor), WEFT_OK);
    slices->n_of_form[tensor.form]++;
    for (uint32_t i = 0; tensor.form != MODEL_FORM_F8_WIDE && i < 4; i++) {
        assert_slice_is_part(&tensor, slices->random);
    }
    return WEFT_OK;
}

/* Every tensor of the model. n_of_form counts what was seen. */
static inline void assert_slices(slices_t *slices, model_file_kind_t kind)
{
    assert_status(model_tensors_visit(model_source_config(slices->source), kind,
                                      assert_slices_of_tensor, slices),
                  WEFT_OK);
}
