/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors that a checkpoint keeps in another form than kernels compute with: found, and read. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/compiler.h"
#include "runtime/model/model_source_priv.h"

#define BLOCK 32 /* columns of a scale of K_F8_32 and K_MXFP4 */

static weft_status_t refuse(const model_source_t *source, const model_tensor_t *tensor,
                            weft_diag_t *diag, const char *reason)
{
    return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: tensor %s: %s", source->path, tensor->name,
                     reason);
}

const model_tensor_t *model_source_beside(const model_source_t *source, const char *name,
                                          const char *old_end, const char *end)
{
    char other[192];
    const size_t cut = strlen(old_end);
    const size_t length = strlen(name);
    if (length < cut || strcmp(name + length - cut, old_end) != 0) {
        return NULL;
    }
    snprintf(other, sizeof(other), "%.*s%s", (int)(length - cut), name, end);
    return model_source_named(source, other);
}

/* ---- FP8 ----------------------------------------------------------------------------------- */

static uint64_t tiles(uint64_t extent, uint32_t tile)
{
    return tile == 0 ? 0 : (extent + tile - 1) / tile;
}

/* One scale for all, one a row, or one a tile of the size that config.json says. */
static bool take_scales(const model_config_t *config, const model_tensor_t *scales,
                        model_tensor_t *tensor)
{
    const uint64_t count = scales->rows * scales->columns;
    if (count == 1) {
        tensor->tile_rows = UINT32_MAX;
        tensor->tile_columns = UINT32_MAX;
    } else if (count == tensor->rows && (scales->columns == 1 || scales->rows == 1)) {
        tensor->tile_rows = 1;
        tensor->tile_columns = UINT32_MAX;
    } else if (config->f8_tile_rows > 0 && config->f8_tile_columns > 0 &&
               scales->rows == tiles(tensor->rows, config->f8_tile_rows) &&
               scales->columns == tiles(tensor->columns, config->f8_tile_columns) &&
               config->f8_tile_columns % BLOCK == 0) {
        tensor->tile_rows = config->f8_tile_rows;
        tensor->tile_columns = config->f8_tile_columns;
    } else {
        return false;
    }
    tensor->scales = scales->data;
    tensor->scales_dtype = scales->dtype;
    tensor->scales_name = scales->name;
    return k_dtype_info(scales->dtype)->block_elements == 1 && scales->dtype < K_U8;
}

static weft_status_t find_scales(const model_source_t *source, weft_diag_t *diag,
                                 model_tensor_t *tensor)
{
    static const char *const ends[] = {".weight_scale_inv", ".weight_scale"};
    const model_tensor_t *scales = NULL;
    for (size_t i = 0; scales == NULL && i < WEFT_ARRAY_LEN(ends); i++) {
        scales = model_source_beside(source, tensor->name, ".weight", ends[i]);
    }
    if (scales == NULL) {
        return refuse(source, tensor, diag, "is E4M3, and has no scale beside it");
    }
    if (!take_scales(&source->config, scales, tensor)) {
        return refuse(source, tensor, diag, "its scales are of another shape or type");
    }
    return WEFT_OK;
}

static weft_status_t find_f8(const model_source_t *source, weft_diag_t *diag,
                             model_tensor_t *tensor)
{
    if (tensor->columns % BLOCK != 0) {
        return refuse(source, tensor, diag, "E4M3 columns that are no multiple of 32");
    }
    tensor->form = MODEL_FORM_F8;
    tensor->dtype = K_F8_32;
    tensor->stride = tensor->columns;
    return find_scales(source, diag, tensor);
}

static float scale_of(const model_tensor_t *tensor, uint64_t row, uint64_t column)
{
    float scale;
    const uint64_t across = tiles(tensor->stride, tensor->tile_columns);
    const uint64_t at = row / tensor->tile_rows * across + column / tensor->tile_columns;
    const size_t bytes = k_dtype_info(tensor->scales_dtype)->block_bytes;
    k_dequantize(tensor->scales_dtype, (const char *)tensor->scales + at * bytes, &scale, 1);
    return scale;
}

static void read_f8(const model_tensor_t *tensor, uint64_t row, uint8_t *out)
{
    const uint64_t file_row = tensor->first_row + row;
    const uint8_t *from =
        (const uint8_t *)tensor->data + file_row * tensor->stride + tensor->first_column;
    for (uint64_t c = 0; c < tensor->columns; c += BLOCK) {
        const float scale = scale_of(tensor, file_row, tensor->first_column + c);
        memcpy(out, &scale, sizeof(scale));
        memcpy(out + sizeof(scale), from + c, BLOCK);
        out += sizeof(scale) + BLOCK;
    }
}

static void read_f8_wide(const model_tensor_t *tensor, uint64_t row, uint8_t *out)
{
    const uint8_t *data = tensor->data;
    for (uint64_t c = 0; c < tensor->columns; c++) {
        float value;
        const uint64_t file_row = tensor->start + (tensor->step == 1 ? c : row);
        const uint64_t column = tensor->step == 1 ? row : c;
        k_dequantize(K_F8, &data[file_row * tensor->stride + column], &value, 1);
        value *= scale_of(tensor, file_row, column);
        memcpy(out + c * sizeof(value), &value, sizeof(value));
    }
}

/* ---- GPT-OSS ------------------------------------------------------------------------------- */

/*
 * Its experts' matrices are stacked in one tensor, gate and up in turns: rows of them where they
 * are MXFP4 ("_blocks", "_scales"), columns where they are plain.
 */
static bool is_expert(model_tensor_id_t id)
{
    return id == MODEL_TENSOR_EXPERT_GATE || id == MODEL_TENSOR_EXPERT_UP ||
           id == MODEL_TENSOR_EXPERT_DOWN;
}

static bool takes_turns(model_tensor_id_t id)
{
    return id == MODEL_TENSOR_EXPERT_GATE || id == MODEL_TENSOR_EXPERT_UP ||
           id == MODEL_TENSOR_EXPERT_GATE_BIAS || id == MODEL_TENSOR_EXPERT_UP_BIAS;
}

static void take_turns(model_tensor_id_t id, model_tensor_t *tensor)
{
    tensor->step = takes_turns(id) ? 2 : 1;
    tensor->start = id == MODEL_TENSOR_EXPERT_UP || id == MODEL_TENSOR_EXPERT_UP_BIAS ? 1 : 0;
}

static weft_status_t find_columns(const model_source_t *source, model_tensor_key_t key,
                                  weft_diag_t *diag, model_tensor_t *tensor)
{
    const uint32_t experts = source->config.experts.count;
    if (tensor->rows % experts != 0 || tensor->columns % tensor->step != 0 ||
        k_dtype_info(tensor->dtype)->block_elements != 1) {
        return refuse(source, tensor, diag, "does not divide over the experts");
    }
    const uint64_t columns = tensor->rows / experts;
    tensor->bytes /= experts;
    tensor->data = (const char *)tensor->data + tensor->bytes * key.expert;
    tensor->stride = tensor->columns;
    tensor->rows = tensor->columns / tensor->step;
    tensor->columns = columns;
    tensor->form = MODEL_FORM_COLUMNS;
    return WEFT_OK;
}

static weft_status_t find_mxfp4(const model_source_t *source, const model_tensor_t *blocks,
                                model_tensor_key_t key, weft_diag_t *diag, model_tensor_t *tensor)
{
    const uint32_t experts = source->config.experts.count;
    const model_tensor_t *scales = model_source_beside(source, blocks->name, "_blocks", "_scales");
    *tensor = *blocks;
    take_turns(key.id, tensor);
    if (scales == NULL) {
        return refuse(source, tensor, diag, "has no scales beside it");
    }
    /* blocks [experts, rows, columns / 32, 16], scales [experts, rows, columns / 32] */
    const uint64_t across = scales->columns;
    const uint64_t rows = scales->rows / experts;
    if (blocks->dtype != K_U8 || scales->dtype != K_U8 || blocks->columns != BLOCK / 2 ||
        across == 0 || scales->rows % experts != 0 || rows % tensor->step != 0 ||
        blocks->rows != scales->rows * across) {
        return refuse(source, tensor, diag, "and its scales do not fit together");
    }
    tensor->data = (const char *)blocks->data + rows * across * (BLOCK / 2) * key.expert;
    tensor->scales = (const char *)scales->data + rows * across * key.expert;
    tensor->scales_name = scales->name;
    tensor->scales_dtype = K_U8;
    tensor->stride = across;
    tensor->bytes = rows * across * (BLOCK / 2);
    tensor->rows = rows / tensor->step;
    tensor->columns = across * BLOCK;
    tensor->dtype = K_MXFP4;
    tensor->form = MODEL_FORM_MXFP4;
    return WEFT_OK;
}

/* Nibbles in order, to those of K_MXFP4: elements i and i + 16 share a byte. */
static void read_mxfp4(const model_tensor_t *tensor, uint64_t row, uint8_t *out)
{
    const uint64_t file_row = tensor->start + (tensor->first_row + row) * tensor->step;
    const uint64_t at = file_row * tensor->stride + tensor->first_column / BLOCK;
    const uint8_t *scales = (const uint8_t *)tensor->scales + at;
    const uint8_t *from = (const uint8_t *)tensor->data + at * (BLOCK / 2);
    for (uint64_t b = 0; b < tensor->columns / BLOCK;
         b++, from += BLOCK / 2, out += 1 + BLOCK / 2) {
        out[0] = scales[b];
        for (uint32_t i = 0; i < BLOCK / 2; i++) {
            const uint8_t low = from[i / 2] >> (i % 2 * 4) & 15;
            const uint8_t high = from[BLOCK / 4 + i / 2] >> (i % 2 * 4) & 15;
            out[1 + i] = (uint8_t)(low | high << 4);
        }
    }
}

static weft_status_t find_gpt_oss(const model_source_t *source, model_tensor_key_t key,
                                  weft_diag_t *diag, model_tensor_t *tensor)
{
    take_turns(key.id, tensor);
    if (is_expert(key.id)) {
        return find_columns(source, key, diag, tensor);
    }
    if (tensor->step == 2) { /* a bias [experts, 2 · intermediate] */
        tensor->stride = tensor->columns;
        tensor->columns /= 2;
        tensor->form = MODEL_FORM_STEPS;
    }
    return WEFT_OK;
}

/* ---- DeepSeek ------------------------------------------------------------------------------ */

/*
 * kv_b_proj has for each head the rows that make keys of latents, then those that make values. Keys
 * are never made: their rows, on their side, bring queries to the latents.
 */
static weft_status_t find_head(const model_source_t *source, model_tensor_key_t key,
                               weft_diag_t *diag, model_tensor_t *tensor)
{
    const model_mla_t *mla = &source->config.mla;
    const uint64_t rows = (uint64_t)mla->plain + mla->value;
    const bool is_key = key.id == MODEL_TENSOR_MLA_K_B;
    if (tensor->rows != rows * source->config.heads || tensor->columns != mla->kv_latent ||
        k_dtype_info(tensor->dtype)->block_elements != 1) {
        return refuse(source, tensor, diag, "is not a matrix of plain numbers for every head");
    }
    const size_t row_bytes = tensor->bytes / tensor->rows;
    const uint64_t first = rows * key.expert + (is_key ? 0 : mla->plain);
    if (tensor->dtype == K_F8) {
        const weft_status_t status = find_scales(source, diag, tensor);
        tensor->form = MODEL_FORM_F8_WIDE;
        tensor->dtype = K_F32;
        tensor->stride = mla->kv_latent;
        tensor->start = (uint32_t)first;
        tensor->step = is_key ? 1 : 0;
        tensor->rows = is_key ? mla->kv_latent : mla->value;
        tensor->columns = is_key ? mla->plain : mla->kv_latent;
        return status;
    }
    tensor->data = (const char *)tensor->data + first * row_bytes;
    tensor->rows = is_key ? mla->kv_latent : mla->value;
    tensor->columns = is_key ? mla->plain : mla->kv_latent;
    tensor->bytes = tensor->rows * tensor->columns * k_dtype_info(tensor->dtype)->block_bytes;
    tensor->form = is_key ? MODEL_FORM_COLUMNS : MODEL_FORM_ROWS;
    tensor->stride = mla->kv_latent;
    tensor->step = 1;
    return WEFT_OK;
}

/* ---- any ----------------------------------------------------------------------------------- */

weft_status_t model_source_find_form(const model_source_t *source, model_tensor_key_t key,
                                     const char *name, weft_diag_t *diag,
                                     model_tensor_t *tensor_out)
{
    char blocks_name[192];
    const model_tensor_t *found = model_source_named(source, name);
    weft_status_t status = WEFT_OK;
    if (found != NULL) {
        *tensor_out = *found;
        const bool is_gpt_oss = strcmp(source->config.family, "gpt_oss") == 0;
        if (key.id == MODEL_TENSOR_MLA_K_B || key.id == MODEL_TENSOR_MLA_V_B) {
            status = find_head(source, key, diag, tensor_out);
        } else if (found->dtype == K_F8) {
            status = find_f8(source, diag, tensor_out);
        } else if (is_gpt_oss) {
            status = find_gpt_oss(source, key, diag, tensor_out);
        }
    } else {
        status = model_source_find_int4(source, name, diag, tensor_out);
        snprintf(blocks_name, sizeof(blocks_name), "%s_blocks", name);
        found = model_source_named(source, blocks_name);
        if (status == WEFT_ERR_NOT_FOUND && found != NULL && is_expert(key.id)) {
            status = find_mxfp4(source, found, key, diag, tensor_out);
        } else if (status == WEFT_ERR_NOT_FOUND) {
            return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: tensor %s: missing", source->path,
                             name);
        }
    }
    if (status >= 0 && (tensor_out->dtype == K_U8 || tensor_out->dtype == K_I32)) {
        status = weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                           "%s: tensor %s: integers of type %s are not weights", source->path, name,
                           k_dtype_info(tensor_out->dtype)->safetensors);
    }
    return status;
}

static void read_elements(const model_tensor_t *tensor, uint64_t row, uint8_t *out)
{
    const size_t bytes = k_dtype_info(tensor->dtype)->block_bytes;
    const char *data = tensor->data;
    for (uint64_t c = 0; c < tensor->columns; c++) {
        const uint64_t at = tensor->form == MODEL_FORM_COLUMNS
                                ? c * tensor->stride + tensor->start + row * tensor->step
                                : row * tensor->stride + tensor->start + c * tensor->step;
        memcpy(out + c * bytes, data + at * bytes, bytes);
    }
}

static void read_slice(const model_tensor_t *tensor, uint64_t row, size_t row_bytes, uint8_t *out)
{
    const k_dtype_info_t *info = k_dtype_info(tensor->dtype);
    const uint64_t stride_bytes = tensor->stride / info->block_elements * info->block_bytes;
    memcpy(out, (const char *)tensor->data + row * stride_bytes, row_bytes);
}

void model_tensor_read(const model_tensor_t *tensor, uint64_t first, uint64_t n, void *rows_out)
{
    size_t row_bytes = 0;
    const weft_status_t status = k_dtype_row_bytes(tensor->dtype, tensor->columns, &row_bytes);
    assert(status >= 0);
    (void)status;
    uint8_t *out = rows_out;
    if (tensor->form == MODEL_FORM_ROWS) {
        memcpy(out, (const char *)tensor->data + first * row_bytes, n * row_bytes);
        return;
    }
    if (tensor->form == MODEL_FORM_INT4) {
        model_source_read_int4(tensor, first, n, out);
        return;
    }
    for (uint64_t row = first; row < first + n; row++, out += row_bytes) {
        if (tensor->form == MODEL_FORM_SLICE) {
            read_slice(tensor, row, row_bytes, out);
        } else if (tensor->form == MODEL_FORM_F8) {
            read_f8(tensor, row, out);
        } else if (tensor->form == MODEL_FORM_F8_WIDE) {
            read_f8_wide(tensor, row, out);
        } else if (tensor->form == MODEL_FORM_MXFP4) {
            read_mxfp4(tensor, row, out);
        } else {
            read_elements(tensor, row, out);
        }
    }
}
