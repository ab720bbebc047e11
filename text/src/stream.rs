// SPDX-License-Identifier: Apache-2.0
//! Ids in one by one, whole characters out, up to a stop string.

use std::sync::Arc;

use crate::error::{fail, Result};
use crate::stops::{StopState, Stops};
use crate::tokenizer::{Begin, Tokenizer};

pub struct StreamConfig {
    pub skip_special: bool,
    pub include_stop: bool,
    pub starts_text: bool,
    pub stops: Arc<Stops>,
    pub min_tokens: u32,
}

pub struct Stream {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    include_stop: bool,
    min_tokens: u32,
    stops: Arc<Stops>,
    state: StopState,
    begin: Begin,
    tokens: u32,
    is_stopped: bool,
    /// Bytes that are not yet a character.
    partial: Vec<u8>,
    /// Text that is not yet shown: the last `state.held()` bytes of what was read.
    held: String,
    shown: String,
}

impl Stream {
    pub fn new(tokenizer: Arc<Tokenizer>, config: StreamConfig) -> Self {
        Stream {
            tokenizer,
            skip_special: config.skip_special,
            include_stop: config.include_stop,
            min_tokens: config.min_tokens,
            stops: config.stops,
            state: StopState::default(),
            begin: if config.starts_text { Begin::whole() } else { Begin::continued() },
            tokens: 0,
            is_stopped: false,
            partial: Vec::new(),
            held: String::new(),
            shown: String::new(),
        }
    }

    /// The text that may be shown now, and which stop string was found.
    pub fn push(&mut self, id: i32) -> Result<(&str, Option<usize>)> {
        if self.is_stopped {
            return fail!(Invalid, "the text has ended with a stop string");
        }
        let pieces = self.tokenizer.pieces();
        pieces.append(id, self.skip_special, &mut self.begin, &mut self.partial)?;
        self.tokens = self.tokens.saturating_add(1);
        let mut fresh = String::new();
        take_characters(&mut self.partial, &mut fresh);
        let stop = self.read(&fresh);
        Ok((&self.shown, stop))
    }

    /// What was held back.
    pub fn finish(&mut self) -> &str {
        self.shown = std::mem::take(&mut self.held);
        if !std::mem::take(&mut self.partial).is_empty() {
            self.shown.push(char::REPLACEMENT_CHARACTER);
        }
        self.is_stopped = true;
        &self.shown
    }

    fn read(&mut self, fresh: &str) -> Option<usize> {
        self.shown.clear();
        for (at, byte) in fresh.bytes().enumerate() {
            let found = self.state.read(&self.stops, byte);
            if let Some(found) = found.filter(|_| self.tokens > self.min_tokens) {
                self.shown.push_str(&self.held);
                self.shown.push_str(&fresh[..=at]);
                if !self.include_stop {
                    self.shown.truncate(self.shown.len() - found.length);
                }
                self.held.clear();
                self.partial.clear();
                self.is_stopped = true;
                return Some(found.index);
            }
        }
        self.held.push_str(fresh);
        let settled = self.held.len() - self.state.held(&self.stops);
        self.shown.push_str(&self.held[..settled]);
        self.held.drain(..settled);
        None
    }
}

/// Moves every character that is complete, and U+FFFD for each that cannot become one.
fn take_characters(bytes: &mut Vec<u8>, text: &mut String) {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(valid) => {
                text.push_str(valid);
                done = bytes.len();
                break;
            }
            Err(e) => {
                let valid = &bytes[done..done + e.valid_up_to()];
                text.push_str(&String::from_utf8_lossy(valid));
                done += e.valid_up_to();
                match e.error_len() {
                    Some(length) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        done += length;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..done);
}
