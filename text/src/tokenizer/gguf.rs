// SPDX-License-Identifier: Apache-2.0
//! A vocabulary as GGUF files keep it.
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer>

use std::collections::HashMap;
use std::ffi::CString;

use tokenizers::models::bpe::{BpeBuilder, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as HfTokenizer};

use super::extent;
use super::hf::HfModel;
use super::pieces::{byte_level, fallback_byte, First, Pieces};
use super::pre::{self, PreKind};
use super::special::SpecialTokens;
use super::spm::SpmModel;
use super::{Model, Tokenizer};
use crate::error::{fail, Result};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

pub struct GgufToken<'a> {
    pub text: &'a [u8],
    pub score: f32,
    pub kind: i32,
}

pub struct GgufVocab<'a> {
    pub model: &'a str,
    pub pre: Option<&'a str>,
    pub tokens: Vec<GgufToken<'a>>,
    pub merges: Vec<&'a [u8]>,
    pub bos: i32,
    pub eos: i32,
    pub unknown: i32,
    /// None: the file does not say.
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
}

pub fn load(vocab: &GgufVocab) -> Result<Tokenizer> {
    check(vocab)?;
    match vocab.model {
        "gpt2" => load_bpe(vocab),
        "llama" => load_spm(vocab),
        other => fail!(Unsupported, "tokenizer.ggml.model {other:?} (known: \"gpt2\", \"llama\")"),
    }
}

fn check(vocab: &GgufVocab) -> Result<()> {
    let count = vocab.tokens.len();
    if count == 0 {
        return fail!(Malformed, "tokenizer.ggml.tokens is empty");
    }
    let bytes: usize = vocab.tokens.iter().map(|token| token.text.len()).sum();
    if count > i32::MAX as usize || bytes > u32::MAX as usize / 2 {
        return fail!(TooLarge, "tokenizer.ggml.tokens has {count} tokens of {bytes} bytes");
    }
    for (name, id) in [("bos", vocab.bos), ("eos", vocab.eos), ("unknown", vocab.unknown)] {
        if id < -1 || id >= count as i32 {
            return fail!(
                Malformed,
                "tokenizer.ggml.{name}_token_id is {id}, the vocabulary has {count} tokens"
            );
        }
    }
    Ok(())
}

fn kind_of(token: &GgufToken) -> Kind {
    match token.kind {
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => Kind::Normal,
    }
}

fn is_special(kind: Kind) -> bool {
    matches!(kind, Kind::Control | Kind::Unknown)
}

fn frame(vocab: &GgufVocab, add_bos: bool) -> (Vec<i32>, Vec<i32>) {
    let before = vocab.add_bos.unwrap_or(add_bos) && vocab.bos >= 0;
    let after = vocab.add_eos.unwrap_or(false) && vocab.eos >= 0;
    (Vec::from_iter(before.then_some(vocab.bos)), Vec::from_iter(after.then_some(vocab.eos)))
}

fn load_bpe(vocab: &GgufVocab) -> Result<Tokenizer> {
    let (pre_kind, note) = pre::find(vocab.pre);
    let mut ids = Vocab::default();
    let mut added = Vec::new();
    let mut pieces = Pieces::new(First::Same);
    for (id, token) in vocab.tokens.iter().enumerate() {
        let kind = kind_of(token);
        let text = std::str::from_utf8(token.text).ok();
        let bytes = match (text, kind) {
            (Some(text), Kind::Normal | Kind::Unused) => byte_level(text),
            (Some(_), Kind::Byte) => fallback_byte(token.text).map_or(Vec::new(), |b| vec![b]),
            _ => token.text.to_vec(),
        };
        pieces.push(token.text, &bytes, is_special(kind));
        let Some(text) = text else {
            continue;
        };
        ids.insert(text.to_owned(), id as u32);
        if is_special(kind) || kind == Kind::UserDefined {
            added.push(AddedToken::from(text, is_special(kind)).normalized(false));
        }
    }
    let inner = bpe_model(vocab, ids, added, pre_kind)?;
    let (before, after) = frame(vocab, pre_kind.add_bos);
    let extent = extent::of_crate(&inner, &pieces);
    let about = format!("byte-level BPE ({note}), {} tokens", vocab.tokens.len());
    Ok(Tokenizer {
        model: Model::Hf(Box::new(HfModel::new(inner))),
        pieces,
        before,
        after,
        bos: vocab.bos,
        eos: vocab.eos,
        about: CString::new(about.replace('\0', "?")).unwrap_or_default(),
        extent,
    })
}

fn bpe_model(
    vocab: &GgufVocab,
    ids: Vocab,
    added: Vec<AddedToken>,
    pre_kind: &PreKind,
) -> Result<HfTokenizer> {
    let merges = parse_merges(&vocab.merges)?;
    let builder = BpeBuilder::new().vocab_and_merges(ids, merges);
    let model = match builder.ignore_merges(pre_kind.ignore_merges).build() {
        Ok(model) => model,
        Err(e) => return fail!(Malformed, "tokenizer.ggml.merges: {e}"),
    };
    let mut inner = HfTokenizer::new(model);
    inner.with_pre_tokenizer(Some(pre_tokenizer(pre_kind)?));
    match inner.add_tokens(added) {
        Ok(_) => Ok(inner),
        Err(e) => fail!(Malformed, "tokenizer.ggml.tokens: {e}"),
    }
}

/// "left right"; the left part may itself be a space.
fn parse_merges(lines: &[&[u8]]) -> Result<Merges> {
    let mut merges = Merges::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        let pair = std::str::from_utf8(line).ok().and_then(|line| {
            let first = line.chars().next()?.len_utf8();
            let space = first + line[first..].find(' ')?;
            Some((line[..space].to_owned(), line[space + 1..].to_owned()))
        });
        match pair {
            Some((left, right)) if !right.is_empty() => merges.push((left, right)),
            _ => return fail!(Malformed, "tokenizer.ggml.merges: entry {index} is not a pair"),
        }
    }
    Ok(merges)
}

fn pre_tokenizer(kind: &PreKind) -> Result<Sequence> {
    let mut steps = Vec::new();
    for regex in kind.regexes {
        let pattern = SplitPattern::Regex((*regex).to_owned());
        match Split::new(pattern, SplitDelimiterBehavior::Isolated, false) {
            Ok(split) => steps.push(PreTokenizerWrapper::Split(split)),
            Err(e) => return fail!(Internal, "pre-tokenizer {}: {e}", kind.names[0]),
        }
    }
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    Ok(Sequence::new(steps))
}

fn load_spm(vocab: &GgufVocab) -> Result<Tokenizer> {
    let add_space_prefix = vocab.add_space_prefix.unwrap_or(true);
    let mut pieces = Pieces::new(match add_space_prefix {
        true => First::Strip { content: ' ', count: 1 },
        false => First::Same,
    });
    let mut ids = HashMap::with_capacity(vocab.tokens.len());
    let mut reserved = HashMap::new();
    let mut special = SpecialTokens::default();
    let mut byte_ids = Box::new([-1; 256]);
    for (id, token) in vocab.tokens.iter().enumerate() {
        let kind = kind_of(token);
        let byte = fallback_byte(token.text).filter(|_| kind == Kind::Byte);
        let bytes = match (byte, kind) {
            (Some(byte), _) => vec![byte],
            (None, Kind::Normal | Kind::Unused) => unmark(token.text),
            _ => token.text.to_vec(),
        };
        pieces.push(token.text, &bytes, is_special(kind));
        match is_special(kind) || kind == Kind::Byte {
            true => reserved.insert(token.text.to_vec(), id as i32),
            false => ids.insert(token.text.to_vec(), id as i32),
        };
        if let Some(byte) = byte {
            byte_ids[byte as usize] = id as i32;
        }
        if is_special(kind) || kind == Kind::UserDefined {
            special.add(token.text, id as i32, is_special(kind));
        }
    }
    let (before, after) = frame(vocab, true);
    let knows_all = vocab.unknown >= 0 || byte_ids.iter().all(|&id| id >= 0);
    let extent = knows_all.then(|| extent::longest_any(&pieces));
    Ok(Tokenizer {
        model: Model::Spm(SpmModel {
            ids,
            reserved,
            scores: vocab.tokens.iter().map(|token| token.score).collect(),
            byte_ids,
            unknown: vocab.unknown,
            add_space_prefix,
            special,
        }),
        pieces,
        before,
        after,
        bos: vocab.bos,
        eos: vocab.eos,
        about: CString::new(format!("SentencePiece BPE, {} tokens", vocab.tokens.len()))
            .unwrap_or_default(),
        extent,
    })
}

/// The word mark "▁" says a space.
fn unmark(token: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(token).replace('\u{2581}', " ").into_bytes()
}
