/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vllm:lora_requests_info. Its labels say what is the case and its value when: one series that changes
 * its labels, where the registry's would stay.
 */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "services/api/api_metrics_priv.h"

static void append_names(weft_buffer_t *out, engine_adapter_t *const *adapters, uint32_t n,
                         bool are_waiting)
{
    const char *comma = "";

    for (uint32_t i = 0; i < n; i++) {
        uint32_t running;
        uint32_t waiting;
        engine_adapter_count(adapters[i], &running, &waiting);
        if ((are_waiting ? waiting : running) > 0) {
            weft_buffer_puts(out, comma);
            api_metrics_append_label(out, engine_adapter_name(adapters[i]));
            comma = ",";
        }
    }
}

char *api_metrics_add_adapters(const api_metrics_t *metrics, engine_t *engine, char *text,
                               size_t *length)
{
    const weft_metric_t *row = &api_metric_rows[METRIC_lora_requests];
    engine_adapter_t *adapters[ENGINE_MAX_ADAPTERS];
    const uint32_t n = engine_list_adapters(engine, adapters);
    weft_buffer_t out = {0};

    weft_buffer_append(&out, text, *length);
    weft_free(text);
    weft_buffer_printf(&out, "# HELP %s %s\n# TYPE %s gauge\n", row->name, row->help, row->name);
    weft_buffer_printf(&out, "%s{max_lora=\"%u\",running_lora_adapters=\"", row->name,
                       metrics->max_loras);
    append_names(&out, adapters, n, false);
    weft_buffer_puts(&out, "\",waiting_lora_adapters=\"");
    append_names(&out, adapters, n, true);
    weft_buffer_printf(&out, "\"} %" PRIu64 "\n", weft_wallclock_ns() / WEFT_NS_PER_SECOND);
    for (uint32_t i = 0; i < n; i++) {
        engine_release_adapter(adapters[i]);
    }
    if (out.is_failed) {
        weft_buffer_free(&out);
        return NULL;
    }
    *length = out.length;
    return out.data;
}
