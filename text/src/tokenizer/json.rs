// SPDX-License-Identifier: Apache-2.0
//! tokenizer.json and tokenizer_config.json.

use std::collections::BTreeMap;
use std::ffi::CString;

use serde::Deserialize;
use serde_json::{json, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Decoder, DecoderWrapper, Tokenizer as HfTokenizer};

use super::extent;
use super::hf::HfModel;
use super::pieces::{byte_level, fallback_byte, First, Pieces};
use super::{Model, Tokenizer};
use crate::error::{fail, Result};

/// A table of every id is made; ids cannot make it larger than this many rows.
const MAX_IDS: u32 = 16 << 20;

pub fn load(json: &[u8], config: Option<&[u8]>, max_id: u32) -> Result<Tokenizer> {
    let config = match config {
        Some(bytes) => Config::parse(bytes).map_err(|e| e.within("tokenizer_config.json"))?,
        None => Config::default(),
    };
    let inner = parse(json).map_err(|e| e.within("tokenizer.json"))?;
    build(inner, json, &config, max_id).map_err(|e| e.within("tokenizer.json"))
}

fn parse(json: &[u8]) -> Result<HfTokenizer> {
    match HfTokenizer::from_bytes(json) {
        Ok(mut inner) => {
            inner.with_padding(None);
            match inner.with_truncation(None) {
                Ok(_) => Ok(inner),
                Err(e) => fail!(Malformed, "{e}"),
            }
        }
        Err(e) => fail!(Malformed, "{}", explain(json).unwrap_or_else(|| e.to_string())),
    }
}

/// The crate says only that no variant fits; the model itself knows what is wrong with it.
fn explain(json: &[u8]) -> Option<String> {
    const KNOWN: [&str; 4] = ["BPE", "Unigram", "WordLevel", "WordPiece"];
    let file: Value = match serde_json::from_slice(json) {
        Ok(file) => file,
        Err(e) => return Some(e.to_string()),
    };
    let Some(model) = file.get("model") else {
        return Some("no \"model\"".into());
    };
    let kind = model.get("type").and_then(Value::as_str)?;
    if !KNOWN.contains(&kind) {
        return Some(format!("model type {kind:?} is not one of {}", KNOWN.join(", ")));
    }
    if model.get("vocab").is_none() {
        return Some("the model has no \"vocab\"".into());
    }
    let error = serde_json::from_value::<ModelWrapper>(model.clone()).err()?;
    Some(format!("model {kind}: {error}"))
}

fn build(mut inner: HfTokenizer, json: &[u8], config: &Config, max_id: u32) -> Result<Tokenizer> {
    config.add_missing_tokens(&mut inner)?;
    let vocab = by_id(&inner, max_id)?;
    let shell: Shell = match serde_json::from_slice(json) {
        Ok(shell) => shell,
        Err(e) => return fail!(Malformed, "{e}"),
    };
    let pieces = decode_table(&inner, &vocab, shell.decoder.as_ref())?;
    let about = format!("tokenizer.json, {} tokens", vocab.len());
    let bos = config.id_of(&inner, &config.bos_token);
    let eos = config.id_of(&inner, &config.eos_token);
    let (before, after) = around(&inner, config, bos, eos)?;
    let extent = extent::of_crate(&inner, &pieces);
    Ok(Tokenizer {
        model: Model::Hf(Box::new(HfModel::new(inner))),
        pieces,
        before,
        after,
        bos,
        eos,
        about: CString::new(about).unwrap_or_default(),
        extent,
    })
}

/// The parts of tokenizer.json that the crate keeps to itself.
#[derive(Deserialize)]
struct Shell {
    #[serde(default)]
    decoder: Option<Value>,
}

fn by_id(inner: &HfTokenizer, max_id: u32) -> Result<BTreeMap<u32, String>> {
    let mut vocab = BTreeMap::new();
    for (token, id) in inner.get_vocab(true) {
        if id >= max_id.min(MAX_IDS) {
            return fail!(
                Malformed,
                "token {:?} has id {id}, the model has {max_id} rows",
                shorten(&token)
            );
        }
        vocab.insert(id, token);
    }
    if vocab.is_empty() {
        return fail!(Malformed, "the vocabulary is empty");
    }
    Ok(vocab)
}

fn shorten(token: &str) -> String {
    token.chars().take(40).collect()
}

/// What the post-processor puts around a text, then what tokenizer_config.json says instead.
fn around(
    inner: &HfTokenizer,
    config: &Config,
    bos: i32,
    eos: i32,
) -> Result<(Vec<i32>, Vec<i32>)> {
    // A mark that is one token: the ids before and after it are the frame.
    let framed = match inner.encode("a", true) {
        Ok(encoding) => encoding,
        Err(e) => return fail!(Malformed, "post-processor: {e}"),
    };
    let mask = framed.get_special_tokens_mask();
    let ids: Vec<i32> = framed.get_ids().iter().map(|&id| id as i32).collect();
    let before = mask.iter().take_while(|&&special| special == 1).count();
    let after = mask[before..].iter().rev().take_while(|&&special| special == 1).count();
    let mut frame = (ids[..before].to_vec(), ids[ids.len() - after..].to_vec());
    match config.add_bos_token {
        Some(true) if bos >= 0 && frame.0.is_empty() => frame.0.push(bos),
        Some(false) => frame.0.retain(|&id| id != bos),
        _ => {}
    }
    match config.add_eos_token {
        Some(true) if eos >= 0 && frame.1.is_empty() => frame.1.push(eos),
        Some(false) => frame.1.retain(|&id| id != eos),
        _ => {}
    }
    Ok(frame)
}

fn decode_table(
    inner: &HfTokenizer,
    vocab: &BTreeMap<u32, String>,
    decoder: Option<&Value>,
) -> Result<Pieces> {
    let rule = Rule::from_decoder(decoder)?;
    let added = inner.get_added_tokens_decoder();
    let mut pieces = Pieces::new(rule.first.clone());
    for (&id, token) in vocab {
        while pieces.len() < id as usize {
            pieces.push_hole();
        }
        let is_special = added.get(&id).is_some_and(|token| token.special);
        // An added token may have been through the normalizer; the decoder undoes that.
        let normal = inner.id_to_token(id).unwrap_or_else(|| token.clone());
        let stands_for_itself = rule.is_byte_level && added.contains_key(&id) && normal == *token;
        let bytes = match stands_for_itself {
            true => token.as_bytes().to_vec(),
            false => rule.bytes(&normal)?,
        };
        pieces.push(token.as_bytes(), &bytes, is_special);
    }
    Ok(pieces)
}

/// A decoder taken apart: what it does to each token, and what to the beginning of the text.
#[derive(Default)]
struct Rule {
    steps: Vec<Step>,
    first: First,
    is_byte_level: bool,
    is_fused: bool,
}

enum Step {
    Crate(DecoderWrapper),
    ByteLevel,
    ByteFallback,
    Marks(char),
    WordPiece(DecoderWrapper),
    Separator,
}

impl Rule {
    fn from_decoder(decoder: Option<&Value>) -> Result<Rule> {
        let mut rule = Rule::default();
        match decoder {
            None | Some(Value::Null) => {
                rule.steps.push(Step::Separator);
                rule.first = First::NoSeparator;
            }
            Some(decoder) => rule.add(decoder)?,
        }
        Ok(rule)
    }

    fn add(&mut self, decoder: &Value) -> Result<()> {
        let kind = decoder.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "Sequence" => {
                let parts = decoder.get("decoders").and_then(Value::as_array);
                for part in parts.into_iter().flatten() {
                    self.add(part)?;
                }
            }
            "Fuse" => self.is_fused = true,
            "Strip" if self.is_fused => self.strip_text(decoder)?,
            "Replace" | "Strip" => self.steps.push(Step::Crate(crate_decoder(decoder)?)),
            "ByteFallback" => self.steps.push(Step::ByteFallback),
            "ByteLevel" => {
                self.is_byte_level = true;
                self.steps.push(Step::ByteLevel);
            }
            "Metaspace" => self.marks(decoder)?,
            "WordPiece" => {
                self.first = First::NoSeparator;
                self.steps.push(Step::WordPiece(crate_decoder(decoder)?));
            }
            _ => {
                return fail!(
                    Unsupported,
                    "decoder {kind:?} (known: ByteFallback, ByteLevel, Fuse, Metaspace, Replace, \
                     Sequence, Strip, WordPiece)"
                )
            }
        }
        Ok(())
    }

    fn strip_text(&mut self, decoder: &Value) -> Result<()> {
        let DecoderWrapper::Strip(strip) = crate_decoder(decoder)? else {
            return fail!(Malformed, "decoder Strip");
        };
        if strip.stop > 0 {
            return fail!(Unsupported, "decoder Strip at the end of the text");
        }
        self.first = First::Strip { content: strip.content, count: strip.start };
        Ok(())
    }

    fn marks(&mut self, decoder: &Value) -> Result<()> {
        let DecoderWrapper::Metaspace(metaspace) = crate_decoder(decoder)? else {
            return fail!(Malformed, "decoder Metaspace");
        };
        let mark = metaspace.get_replacement();
        let scheme = serde_json::to_value(metaspace.get_prepend_scheme()).unwrap_or_default();
        if scheme != json!("never") {
            self.first = First::NoMarks { mark };
        }
        self.steps.push(Step::Marks(mark));
        Ok(())
    }

    fn bytes(&self, token: &str) -> Result<Vec<u8>> {
        let mut text = token.to_owned();
        for step in &self.steps {
            match step {
                Step::ByteLevel => return Ok(byte_level(&text)),
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(text.as_bytes()) {
                        return Ok(vec![byte]);
                    }
                }
                Step::Marks(mark) => text = text.replace(*mark, " "),
                Step::Separator => text.insert(0, ' '),
                Step::Crate(decoder) => text = run(decoder, vec![text])?,
                // Only the first token has no separator: put one before.
                Step::WordPiece(decoder) => text = run(decoder, vec![String::new(), text])?,
            }
        }
        Ok(text.into_bytes())
    }
}

fn crate_decoder(decoder: &Value) -> Result<DecoderWrapper> {
    match serde_json::from_value(decoder.clone()) {
        Ok(decoder) => Ok(decoder),
        Err(e) => fail!(Malformed, "decoder: {e}"),
    }
}

fn run(decoder: &DecoderWrapper, tokens: Vec<String>) -> Result<String> {
    match decoder.decode_chain(tokens) {
        Ok(texts) => Ok(texts.concat()),
        Err(e) => fail!(Malformed, "decoder: {e}"),
    }
}

/// tokenizer_config.json, as far as it matters here.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    bos_token: Option<TokenText>,
    #[serde(default)]
    eos_token: Option<TokenText>,
    #[serde(default)]
    add_bos_token: Option<bool>,
    #[serde(default)]
    add_eos_token: Option<bool>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, ConfigToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Object { content: String },
}

#[derive(Deserialize)]
struct ConfigToken {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl Config {
    fn parse(bytes: &[u8]) -> Result<Config> {
        match serde_json::from_slice(bytes) {
            Ok(config) => Ok(config),
            Err(e) => fail!(Malformed, "{e}"),
        }
    }

    fn id_of(&self, inner: &HfTokenizer, token: &Option<TokenText>) -> i32 {
        let content = match token {
            Some(TokenText::Plain(content) | TokenText::Object { content }) => content,
            None => return -1,
        };
        inner.token_to_id(content).map_or(-1, |id| id as i32)
    }

    /// Tokens that only tokenizer_config.json knows. The crate numbers them itself, upwards.
    fn add_missing_tokens(&self, inner: &mut HfTokenizer) -> Result<()> {
        let mut missing = BTreeMap::new();
        for (id, token) in &self.added_tokens_decoder {
            if inner.token_to_id(&token.content).is_none() {
                match id.parse::<u32>() {
                    Ok(id) => missing.insert(id, token),
                    Err(_) => return fail!(Malformed, "added token id {id:?} is not a number"),
                };
            }
        }
        for (id, token) in missing {
            let added = AddedToken::from(token.content.clone(), token.special)
                .single_word(token.single_word)
                .lstrip(token.lstrip)
                .rstrip(token.rstrip)
                .normalized(token.normalized);
            let is_added = inner.add_tokens([added]).is_ok();
            if !is_added || inner.token_to_id(&token.content) != Some(id) {
                return fail!(
                    Malformed,
                    "token {:?} of tokenizer_config.json cannot have id {id} here",
                    shorten(&token.content)
                );
            }
        }
        Ok(())
    }
}
