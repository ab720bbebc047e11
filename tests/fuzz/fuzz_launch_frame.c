/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_launch_frame: what an agent and its launcher send each other, frame after frame. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/job/launch_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool is_true)
{
    if (!is_true) {
        abort();
    }
}

static void read_payload(const launch_frame_t *frame)
{
    launch_start_t start;
    launch_ready_t ready;
    launch_exit_t end;
    uint32_t value;
    const char *text = launch_frame_text(frame);
    require(text == NULL || strlen(text) + 1 == frame->length);
    if (launch_frame_u32(frame, &value) == WEFT_OK) {
        require(frame->length == 4);
    }
    if (launch_exit_decode(frame, &end) == WEFT_OK) {
        require(end.code <= 255 && end.signal < 128);
    }
    if (launch_ready_decode(frame, &ready) == WEFT_OK) {
        require(strlen(ready.version) + strlen(ready.own) + strlen(ready.launcher) < frame->length);
    }
    if (launch_start_decode(frame, &start) == WEFT_OK) {
        require(start.argc > 0 && start.argv[start.argc] == NULL);
        require(start.environment[start.n_environment] == NULL);
        launch_start_fini(&start);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weft_diag_t diag = {0};
    weft_status_t status = WEFT_OK;
    while (status == WEFT_OK) {
        launch_frame_t frame;
        size_t used = 0;
        status = launch_frame_decode(data, size, &diag, &frame, &used);
        if (status == WEFT_OK) {
            require(used == LAUNCH_FRAME_HEADER + (size_t)frame.length && used <= size);
            read_payload(&frame);
            data += used;
            size -= used;
        }
    }
    require(status == WEFT_PENDING || diag.text[0] != '\0');
    return 0;
}
