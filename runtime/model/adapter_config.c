/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/mapped_file.h"
#include "runtime/files/json_input.h"
#include "runtime/model/adapter_priv.h"

enum { MAX_CONFIG_BYTES = 1 << 20 };

static void refuse_unless(json_reader_t *reader, bool is_fine, const char *key, const char *reason)
{
    if (!is_fine) {
        json_reader_refuse(reader, WEFT_ERR_UNSUPPORTED, key, reason);
    }
}

static bool is_empty_object(const json_t *value)
{
    return value == NULL || (json_is_object(value) && json_object_size(value) == 0);
}

/* Whether a parameter is adapted whose name ends so. */
static bool is_targeted(const json_t *parameters, const char *end)
{
    size_t i;
    const json_t *entry;
    json_array_foreach(parameters, i, entry)
    {
        const size_t length = json_string_length(entry);
        const size_t wanted = strlen(end);
        if (length >= wanted && strcmp(json_string_value(entry) + length - wanted, end) == 0) {
            return true;
        }
    }
    return false;
}

static void read_fields(json_reader_t *reader, adapter_config_t *config)
{
    const json_t *parameters = json_reader_get(reader, "target_parameters");
    const bool is_gate_up_alone =
        is_targeted(parameters, "gate_up_proj") && !is_targeted(parameters, "down_proj");
    config->outer = is_gate_up_alone ? ADAPTER_EXPERT_GATE : ADAPTER_EXPERT_DOWN;
    const char *kind = json_reader_string(reader, "peft_type", "LORA");
    const char *bias = json_reader_string(reader, "bias", "none");
    config->alpha = json_reader_need_f64(reader, "lora_alpha");
    config->is_rank_stabilized = json_reader_bool(reader, "use_rslora", false);
    refuse_unless(reader, strcmp(kind, "LORA") == 0, "peft_type", "only LORA is possible");
    refuse_unless(reader, strcmp(bias, "none") == 0, "bias", "only none is possible");
    refuse_unless(reader, !json_reader_bool(reader, "use_dora", false), "use_dora",
                  "only false is possible");
    refuse_unless(reader, !json_reader_bool(reader, "fan_in_fan_out", false), "fan_in_fan_out",
                  "only false is possible");
    refuse_unless(reader, is_empty_object(json_reader_get(reader, "alpha_pattern")),
                  "alpha_pattern", "one lora_alpha for all is possible");
    refuse_unless(reader, json_reader_get(reader, "modules_to_save") == NULL, "modules_to_save",
                  "whole modules are not replaced");
}

weft_status_t adapter_file_name(const char *folder, const char *name, weft_diag_t *diag,
                                char out[ADAPTER_MAX_PATH])
{
    const int length = snprintf(out, ADAPTER_MAX_PATH, "%s/%s", folder, name);
    return length < ADAPTER_MAX_PATH
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_TOO_LARGE, "%s: the path is too long", folder);
}

weft_status_t adapter_config_read(const char *folder, weft_diag_t *diag,
                                  adapter_config_t *config_out)
{
    char path[ADAPTER_MAX_PATH];
    json_t *root = NULL;
    weft_mapped_file_t file = {0};
    weft_status_t status = adapter_file_name(folder, "adapter_config.json", diag, path);
    if (status >= 0) {
        status = weft_mapped_file_open(path, diag, &file);
        if (status < 0) {
            weft_diag_prefix(diag, "%s is no folder of an adapter", folder);
        }
    }
    if (status >= 0) {
        status = json_input_parse(file.data, file.length, MAX_CONFIG_BYTES, 0, path, diag, &root);
    }
    if (status >= 0) {
        json_reader_t reader = {.object = root, .name = path, .diag = diag};
        read_fields(&reader, config_out);
        status = reader.status;
    }
    json_decref(root);
    weft_mapped_file_close(&file);
    return status;
}
