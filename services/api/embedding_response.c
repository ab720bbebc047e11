/* SPDX-License-Identifier: Apache-2.0 */
/* Answers of POST /v1/embeddings. */
#include <assert.h>
#include <math.h>
#include <openssl/evp.h>

#include "services/api/response_common.h"

/* The first `dimensions` numbers, of length 1 unless told otherwise. */
static void shape(const generation_t *generation, const float *hidden, float *out)
{
    double sum = 0;
    for (uint32_t i = 0; i < generation->dimensions; i++) {
        sum += (double)hidden[i] * (double)hidden[i];
    }
    const double scale = generation->normalizes && sum > 0 ? 1 / sqrt(sum) : 1;
    for (uint32_t i = 0; i < generation->dimensions; i++) {
        out[i] = (float)((double)hidden[i] * scale);
    }
}

/* Little-endian float32s, as OpenAI's clients ask for them. */
static void write_base64(const generation_t *generation, const float *values, weft_json_t *json)
{
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "floats are sent as they are");
    const size_t bytes = generation->dimensions * sizeof(*values);
    char *text = weft_arena_alloc(generation->arena, (bytes + 2) / 3 * 4 + 1);

    if (text == NULL) {
        json->out->is_failed = true;
        return;
    }
    const int length =
        EVP_EncodeBlock((unsigned char *)text, (const unsigned char *)values, (int)bytes);
    weft_json_text(json, text, (size_t)length);
}

static void write_numbers(const float *values, uint32_t n, weft_json_t *json)
{
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        weft_json_f64(json, (double)values[i]);
    }
    weft_json_end_array(json);
}

static void write_embedding(const generation_t *generation, uint32_t index, weft_json_t *json)
{
    const float *hidden = engine_request_embedding(generation->prompts[index].request);
    float *values = weft_arena_calloc(generation->arena, generation->dimensions, sizeof(*values));

    weft_json_begin_object(json);
    weft_json_put_u64(json, "index", index);
    weft_json_put_string(json, "object", "embedding");
    weft_json_key(json, "embedding");
    if (values == NULL || hidden == NULL) {
        json->out->is_failed = true;
        weft_json_null(json);
    } else {
        shape(generation, hidden, values);
        if (generation->is_base64) {
            write_base64(generation, values, json);
        } else {
            write_numbers(values, generation->dimensions, json);
        }
    }
    weft_json_end_object(json);
}

static void write_answer(const generation_t *generation, weft_json_t *json)
{
    weft_json_begin_object(json);
    response_common_head(generation, "list", json);
    weft_json_key(json, "data");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < generation->n_prompts; i++) {
        write_embedding(generation, i, json);
    }
    weft_json_end_array(json);
    response_common_usage(generation, json);
    weft_json_end_object(json);
}

const generation_format_t embedding_format = {.id_prefix = "embd-", .write_answer = write_answer};
