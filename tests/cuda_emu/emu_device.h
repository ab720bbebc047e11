/* SPDX-License-Identifier: Apache-2.0 */
/* emu_device: filled in with the emulator. */
#pragma once
