// SPDX-License-Identifier: Apache-2.0
//! Grammars that an answer has to follow, as masks over token ids, on llguidance.

mod gbnf;
mod source;

use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, StopReason};
use llguidance::{Matcher as LlgMatcher, ParserFactory};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use crate::error::{fail, Error, Result, Status};
use crate::tokenizer::{Pieces, Tokenizer};

/// The crate's mark of bytes that no text can hold: a special token.
const SPECIAL: u8 = 0xff;
/// Compiling recurses as deeply as the grammar nests.
const COMPILE_STACK_BYTES: usize = 64 << 20;
const MAX_VOCAB: u32 = 16 << 20;

/// text_grammar_kind_t.
#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
pub enum GrammarKind {
    JsonSchema,
    JsonObject,
    Regex,
    Choice,
    Lark,
}

/// How schemas of JSON are read.
#[derive(Default)]
pub struct Options<'a> {
    /// No blanks between the parts.
    pub is_compact: bool,
    /// Objects that list their properties have no others.
    pub is_closed: bool,
    /// Regex of the blanks.
    pub whitespace: Option<&'a str>,
}

/// A tokenizer prepared for masks: by the first grammar, since a tree of all tokens takes a tenth of a
/// second and most servers are never asked for one.
pub struct Factory {
    tokenizer: Arc<Tokenizer>,
    shape: Arc<Shape>,
    parsers: OnceLock<Result<ParserFactory>>,
}

struct Shape {
    vocab: u32,
    eos: Vec<u32>,
}

impl Shape {
    /// Stands for all end tokens inside the crate: the first id above the vocabulary.
    fn end(&self) -> u32 {
        self.vocab
    }
}

impl Factory {
    pub fn new(tokenizer: Arc<Tokenizer>, vocab: u32, eos: &[i32]) -> Result<Self> {
        if vocab == 0 || vocab > MAX_VOCAB {
            return fail!(Invalid, "grammar: a mask of {vocab} tokens");
        }
        let eos = eos
            .iter()
            .map(|&id| match u32::try_from(id).ok().filter(|&id| id < vocab) {
                Some(id) => Ok(id),
                None => fail!(Invalid, "grammar: end token {id} of {vocab}"),
            })
            .collect::<Result<Vec<u32>>>()?;
        let shape = Arc::new(Shape { vocab, eos });
        Ok(Factory { tokenizer, shape, parsers: OnceLock::new() })
    }

    fn parsers(&self) -> Result<&ParserFactory> {
        let parsers = self.parsers.get_or_init(|| parsers_of(&self.tokenizer, &self.shape));
        parsers.as_ref().map_err(Error::clone)
    }

    pub fn compile(&self, kind: GrammarKind, source: &str, options: &Options) -> Result<Grammar> {
        let parsers = self.parsers()?;
        let compile = || match parsers.create_parser(source::read(kind, source, options)?) {
            Ok(parser) => with_a_beginning(LlgMatcher::new(Ok(parser))),
            Err(e) => Err(refusal(&e.to_string())),
        };
        let start = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES);
        let prototype = std::thread::scope(|scope| match start.spawn_scoped(scope, compile) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(refusal("it cannot be compiled"))),
            Err(e) => fail!(NoMemory, "grammar: no thread to compile on: {e}"),
        })?;
        match prototype.get_error() {
            Some(line) => Err(refusal(&line)),
            None => Ok(Grammar { prototype, shape: self.shape.clone() }),
        }
    }
}

fn parsers_of(tokenizer: &Tokenizer, shape: &Shape) -> Result<ParserFactory> {
    let words = words(tokenizer.pieces(), shape);
    let trie = TokTrie::from(&TokRxInfo::new(shape.vocab + 1, shape.end()), &words);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    match ParserFactory::new(&environment, InferenceCapabilities::default(), &slices) {
        Ok(mut parsers) => {
            parsers.quiet();
            *parsers.limits_mut() = limits();
            Ok(parsers)
        }
        Err(e) => fail!(Internal, "grammar: {e}"),
    }
}

/// Low enough that no grammar takes gigabytes or a minute, high enough for published schemas.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        max_lexer_states: 50_000,
        max_grammar_size: 500_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Some grammars compile and yet allow no answer at all, or break the limits at the first token.
fn with_a_beginning(prototype: LlgMatcher) -> Result<LlgMatcher> {
    let mut probe = prototype.deep_clone();
    match probe.compute_mask_or_eos() {
        Ok(_) => Ok(prototype),
        Err(_) if probe.stop_reason() == StopReason::NoExtensionBias => {
            Err(refusal("no answer fits it"))
        }
        Err(e) => Err(refusal(&e.to_string())),
    }
}

/// The crate's errors have several lines, some of which only point with a caret.
fn refusal(lines: &str) -> Error {
    let mut parts = lines.lines().map(str::trim).filter(|line| !line.trim_matches('^').is_empty());
    let first = parts.next().unwrap_or("unusable");
    let line = parts.fold(first.to_owned(), |line, part| line + " " + part);
    Error::new(Status::Invalid, format!("grammar: {line}"))
}

fn words(pieces: &Pieces, shape: &Shape) -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = (0..shape.vocab as i32)
        .map(|id| {
            let is_end = shape.eos.contains(&(id as u32));
            match pieces.bytes(id) {
                Some(bytes) if is_end || pieces.is_special(id) => special(bytes),
                Some(bytes) => bytes.to_vec(),
                None => Vec::new(),
            }
        })
        .collect();
    words.push(special(b"<end of answer>"));
    words
}

fn special(bytes: &[u8]) -> Vec<u8> {
    [&[SPECIAL], bytes].concat()
}

pub struct Grammar {
    prototype: LlgMatcher,
    shape: Arc<Shape>,
}

pub struct Matcher {
    inner: LlgMatcher,
    shape: Arc<Shape>,
    is_ended: bool,
}

impl Grammar {
    /// Nothing is shared with other matchers, so that no answer depends on them.
    pub fn matcher(&self) -> Matcher {
        Matcher { inner: self.prototype.deep_clone(), shape: self.shape.clone(), is_ended: false }
    }
}

impl Matcher {
    /// mask: bit id % 32 of word id / 32.
    pub fn mask(&mut self, mask: &mut [u32]) -> Result<()> {
        let words = (self.shape.vocab as usize).div_ceil(32);
        if mask.len() != words {
            return fail!(Invalid, "grammar: a mask of {} words, not {words}", mask.len());
        }
        mask.fill(0);
        if self.is_ended {
            self.allow_end(mask);
            return Ok(());
        }
        let allowed = self.inner.compute_mask_or_eos().map_err(|e| refusal(&e.to_string()))?;
        mask.copy_from_slice(&allowed.as_slice()[..words]);
        let end = self.shape.end();
        if let Some(word) = mask.get_mut(end as usize / 32) {
            *word &= !(1 << (end % 32));
        }
        if allowed.is_allowed(end) {
            self.allow_end(mask);
        }
        Ok(())
    }

    fn allow_end(&self, mask: &mut [u32]) {
        for &id in &self.shape.eos {
            mask[id as usize / 32] |= 1 << (id % 32);
        }
    }

    pub fn advance(&mut self, id: i32) -> Result<()> {
        let token = match u32::try_from(id).ok().filter(|&token| token < self.shape.vocab) {
            Some(token) if self.shape.eos.contains(&token) => self.shape.end(),
            Some(token) => token,
            None => return fail!(Invalid, "grammar: token id {id} of {}", self.shape.vocab),
        };
        let may_end = self.is_ended || self.inner.is_stopped();
        if may_end && token == self.shape.end() {
            self.is_ended = true;
            return Ok(());
        }
        if may_end || !self.take(token)? {
            return fail!(Invalid, "grammar: token id {id} is not allowed here");
        }
        self.is_ended = token == self.shape.end();
        Ok(())
    }

    fn take(&mut self, token: u32) -> Result<bool> {
        match self.inner.try_consume_tokens(&[token]) {
            Ok(taken) => Ok(taken == 1),
            Err(e) => Err(refusal(&e.to_string())),
        }
    }

    /// Nothing but an end token can follow.
    pub fn is_finished(&self) -> bool {
        self.is_ended || self.inner.is_stopped()
    }
}

/// A grammar is shared between threads; a matcher may move from one to another.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    fn moved<T: Send>() {}
    shared::<Factory>();
    shared::<Grammar>();
    moved::<Matcher>();
};
