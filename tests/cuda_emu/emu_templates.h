/* SPDX-License-Identifier: Apache-2.0 */
/* emu_templates: filled in with the emulator. */
#pragma once
