// SPDX-License-Identifier: Apache-2.0
//! How much text one token can stand for, so that a text too long for a context is known to be
//! before it is tokenized. A bound exists where every byte of a text ends up in some token: unknown
//! runs that become one token, blanks that are dropped and marks that are stripped have none.

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::{Model, Tokenizer as HfTokenizer};

use super::pieces::{byte_of, Pieces};

/// An unknown character is one token.
const MAX_CHARACTER_BYTES: usize = 4;

/// None: a token may stand for any length of text.
pub fn of_crate(inner: &HfTokenizer, pieces: &Pieces) -> Option<usize> {
    let pre_tokenizer = serde_json::to_value(inner.get_pre_tokenizer()).ok()?;
    let normalizer = serde_json::to_value(inner.get_normalizer()).ok()?;
    let strips = |token: &tokenizers::AddedToken| token.lstrip || token.rstrip;
    let is_byte_level = has_byte_level(&pre_tokenizer);
    let is_whole = keeps_all(&pre_tokenizer)
        && knows_all(inner, is_byte_level)
        && !inner.get_added_tokens_decoder().values().any(strips);
    let longest = if is_byte_level { longest_bytes(pieces) } else { longest_any(pieces) };
    is_whole.then_some(shrinkage(&normalizer)? * longest)
}

pub fn longest_bytes(pieces: &Pieces) -> usize {
    longest(pieces, |id| pieces.bytes(id).map_or(0, <[u8]>::len))
}

/// A mark that stands for a blank may be written in the text as itself, which is longer.
pub fn longest_any(pieces: &Pieces) -> usize {
    let written = longest(pieces, |id| pieces.written(id).map_or(0, <[u8]>::len));
    longest_bytes(pieces).max(written).max(MAX_CHARACTER_BYTES)
}

fn longest(pieces: &Pieces, length: impl Fn(i32) -> usize) -> usize {
    (0..pieces.len() as i32).map(length).max().unwrap_or(0).max(1)
}

/// Bytes of a text that may become one byte of the normalized one.
fn shrinkage(normalizer: &Value) -> Option<usize> {
    match normalizer.get("type").and_then(Value::as_str) {
        None => Some(1),
        Some("Prepend" | "ByteLevel") => Some(1),
        // Over all of Unicode 15 at most 3.5: U+1FD3's parts, written as their longest equivalents.
        Some("NFC") => Some(4),
        Some("Replace") => {
            let pattern = normalizer.get("pattern")?.get("String")?.as_str()?.len();
            let content = normalizer.get("content")?.as_str()?.len();
            (content > 0).then(|| pattern.div_ceil(content).max(1))
        }
        Some("Sequence") => {
            let parts = normalizer.get("normalizers")?.as_array()?;
            parts.iter().try_fold(1, |product, part| Some(product * shrinkage(part)?))
        }
        Some(_) => None,
    }
}

fn parts(pre_tokenizer: &Value) -> &[Value] {
    match pre_tokenizer.get("pretokenizers").and_then(Value::as_array) {
        Some(parts) => parts,
        None => std::slice::from_ref(pre_tokenizer),
    }
}

fn kind(pre_tokenizer: &Value) -> &str {
    pre_tokenizer.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn has_byte_level(pre_tokenizer: &Value) -> bool {
    parts(pre_tokenizer).iter().any(|part| kind(part) == "ByteLevel")
}

fn keeps_all(pre_tokenizer: &Value) -> bool {
    parts(pre_tokenizer).iter().all(|part| match kind(part) {
        "" => part.is_null(),
        "ByteLevel" | "Metaspace" | "Digits" => true,
        "Split" | "Punctuation" => part.get("behavior").is_some_and(|how| how != "Removed"),
        _ => false,
    })
}

/// Whether no run of characters becomes one unknown token, or none.
fn knows_all(inner: &HfTokenizer, is_byte_level: bool) -> bool {
    let ModelWrapper::BPE(model) = inner.get_model() else {
        return false;
    };
    let has = |token: String| model.token_to_id(&token).is_some();
    let is_character = |c: &char| byte_of(*c).is_some();
    if is_byte_level {
        return ('\0'..='\u{143}').filter(is_character).all(|c| has(c.to_string()));
    }
    let has_bytes = || (0..=255).all(|byte: u8| has(format!("<0x{byte:02X}>")));
    (model.byte_fallback && has_bytes()) || (model.unk_token.is_some() && !model.fuse_unk)
}
