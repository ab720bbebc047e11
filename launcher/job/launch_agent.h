/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_agent: runs the ranks of one host for a launcher elsewhere, as told by frames (launch_frame.h) on
 * its standard input, and tells of them on its standard output.
 *
 * Every host of a job has one, also the launcher's own. It lives as long as its input is open: when the
 * launcher, or the ssh between, is gone, it kills all that it started, whatever sessions that is in, and ends.
 *
 * Threads  none
 */
#pragma once

#include "base/diag.h"
#include "base/status.h"

/* Until its launcher says END, or is gone. Changes this process's descriptors 0 and 1 and its signals. */
weft_status_t launch_agent_run(weft_diag_t *diag);
