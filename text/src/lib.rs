// SPDX-License-Identifier: Apache-2.0
//! Between text and token ids, behind text.h (which is the manual).

mod api;
mod border;
mod error;
mod grammar;
mod output;
mod stops;
mod stream;
mod template;
mod tokenizer;
