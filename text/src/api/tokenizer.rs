// SPDX-License-Identifier: Apache-2.0
//! text.h: tokenizer.

use std::ffi::c_char;
use std::ptr;
use std::sync::Arc;

use crate::border::{self, guard, guard_or, Bytes, Diag, Ids};
use crate::error::{fail, Result, Status};
use crate::tokenizer::{GgufToken, GgufVocab, Tokenizer as Inner};

pub struct Tokenizer(pub Arc<Inner>);

/// What a file that is silent on a yes-or-no key gives.
const UNSAID: i8 = -1;

#[repr(C)]
pub struct GgufVocabC {
    pub model: *const c_char,
    pub pre: *const c_char,
    pub tokens: *const *const c_char,
    pub token_lengths: *const usize,
    pub scores: *const f32,
    pub types: *const i32,
    pub n_tokens: usize,
    pub merges: *const *const c_char,
    pub merge_lengths: *const usize,
    pub n_merges: usize,
    pub bos: i32,
    pub eos: i32,
    pub unknown: i32,
    pub add_bos: i8,
    pub add_eos: i8,
    pub add_space_prefix: i8,
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_from_json(
    json: *const c_char,
    json_length: usize,
    config_json: *const c_char,
    config_length: usize,
    max_id: u32,
    diag: *mut Diag,
    tokenizer_out: *mut *mut Tokenizer,
) -> Status {
    guard(diag, || {
        let config = border::bytes(config_json, config_length);
        let config = (!config_json.is_null()).then_some(config);
        let inner = Inner::from_json(border::bytes(json, json_length), config, max_id)?;
        border::give(Tokenizer(Arc::new(inner)), tokenizer_out);
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_from_gguf(
    vocab: &GgufVocabC,
    diag: *mut Diag,
    tokenizer_out: *mut *mut Tokenizer,
) -> Status {
    guard(diag, || {
        let inner = Inner::from_gguf(&gguf_vocab(vocab)?)?;
        border::give(Tokenizer(Arc::new(inner)), tokenizer_out);
        Ok(())
    })
}

unsafe fn gguf_vocab<'a>(vocab: &'a GgufVocabC) -> Result<GgufVocab<'a>> {
    let texts = strings(vocab.tokens, vocab.token_lengths, vocab.n_tokens);
    let scores = optional(vocab.scores, vocab.n_tokens);
    let types = optional(vocab.types, vocab.n_tokens);
    let tokens = texts.into_iter().enumerate().map(|(id, text)| GgufToken {
        text,
        score: scores.get(id).copied().unwrap_or(0.0),
        kind: types.get(id).copied().unwrap_or(1),
    });
    let pre = border::c_text(vocab.pre, "tokenizer.ggml.pre")?;
    Ok(GgufVocab {
        model: border::c_text(vocab.model, "tokenizer.ggml.model")?,
        pre: (!vocab.pre.is_null()).then_some(pre),
        tokens: tokens.collect(),
        merges: strings(vocab.merges, vocab.merge_lengths, vocab.n_merges),
        bos: vocab.bos,
        eos: vocab.eos,
        unknown: vocab.unknown,
        add_bos: said(vocab.add_bos),
        add_eos: said(vocab.add_eos),
        add_space_prefix: said(vocab.add_space_prefix),
    })
}

unsafe fn strings<'a>(
    data: *const *const c_char,
    lengths: *const usize,
    count: usize,
) -> Vec<&'a [u8]> {
    let data = border::items(data, count).iter();
    data.zip(border::items(lengths, count))
        .map(|(&text, &length)| border::bytes(text, length))
        .collect()
}

unsafe fn optional<'a, T>(data: *const T, count: usize) -> &'a [T] {
    if data.is_null() {
        &[]
    } else {
        border::items(data, count)
    }
}

fn said(value: i8) -> Option<bool> {
    (value != UNSAID).then_some(value != 0)
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_destroy(tokenizer: *mut Tokenizer) {
    border::destroy(tokenizer);
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_describe(tokenizer: &Tokenizer) -> *const c_char {
    tokenizer.0.about.as_ptr()
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_size(tokenizer: &Tokenizer) -> u32 {
    tokenizer.0.pieces().len() as u32
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_extent(tokenizer: &Tokenizer) -> usize {
    tokenizer.0.extent.unwrap_or(usize::MAX)
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_bos(tokenizer: &Tokenizer) -> i32 {
    tokenizer.0.bos
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_eos(tokenizer: &Tokenizer) -> i32 {
    tokenizer.0.eos
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_is_special(tokenizer: &Tokenizer, id: i32) -> bool {
    tokenizer.0.pieces().is_special(id)
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_find(tokenizer: &Tokenizer, token: *const c_char) -> i32 {
    guard_or(-1, || match border::c_text(token, "token") {
        Ok(token) => tokenizer.0.find(token),
        Err(_) => -1,
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_encode(
    tokenizer: &Tokenizer,
    text: *const c_char,
    length: usize,
    add_special: bool,
    parse_special: bool,
    diag: *mut Diag,
    ids_out: *mut Ids,
) -> Status {
    guard(diag, || {
        let text = border::text(text, length, "text")?;
        let ids = tokenizer.0.encode(text, add_special, parse_special)?;
        ids_out.write(Ids::give(ids));
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_decode(
    tokenizer: &Tokenizer,
    ids: *const i32,
    n: usize,
    skip_special: bool,
    diag: *mut Diag,
    text_out: *mut Bytes,
) -> Status {
    guard(diag, || {
        let text = tokenizer.0.decode(border::items(ids, n), skip_special)?;
        text_out.write(Bytes::give(text.into_bytes()));
        Ok(())
    })
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_token_bytes(
    tokenizer: &Tokenizer,
    id: i32,
    bytes_out: *mut Bytes,
) -> Status {
    give_token(tokenizer.0.pieces().bytes(id), id, bytes_out)
}

/// # Safety
/// As text.h says.
#[no_mangle]
pub unsafe extern "C" fn text_tokenizer_token_string(
    tokenizer: &Tokenizer,
    id: i32,
    text_out: *mut Bytes,
) -> Status {
    let written = tokenizer.0.pieces().written(id).map(String::from_utf8_lossy);
    give_token(written.as_deref().map(str::as_bytes), id, text_out)
}

unsafe fn give_token(token: Option<&[u8]>, id: i32, out: *mut Bytes) -> Status {
    guard(ptr::null_mut(), || match token {
        Some(bytes) => {
            out.write(Bytes::give(bytes.to_vec()));
            Ok(())
        }
        None => fail!(Invalid, "token id {id}: the vocabulary has no such token"),
    })
}
