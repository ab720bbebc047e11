// SPDX-License-Identifier: Apache-2.0
//! The functions of text.h, one file for each of its sections.

mod grammar;
mod output;
mod stream;
mod template;
mod tokenizer;
