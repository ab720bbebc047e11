// SPDX-License-Identifier: Apache-2.0
//! Text to ids and back. Encoding is the tokenizers crate's or, for SentencePiece models from GGUF,
//! ours (spm.rs); decoding is a table of bytes, the same for all (pieces.rs).

mod extent;
mod gguf;
mod hf;
mod json;
mod pieces;
mod pre;
mod special;
mod spm;

use std::ffi::CString;

pub use gguf::{GgufToken, GgufVocab};
pub use pieces::{Begin, Pieces};

use crate::error::{fail, Result};

/// Texts above this are refused: the crates keep about a hundred bytes for each byte of input.
pub const MAX_TEXT_BYTES: usize = 16 << 20;

enum Model {
    Hf(Box<hf::HfModel>),
    Spm(spm::SpmModel),
}

pub struct Tokenizer {
    model: Model,
    pieces: Pieces,
    /// Ids put around a text when special tokens are asked for.
    before: Vec<i32>,
    after: Vec<i32>,
    pub bos: i32,
    pub eos: i32,
    pub about: CString,
    /// Bytes of text that one token may stand for; None: any number.
    pub extent: Option<usize>,
}

impl Tokenizer {
    pub fn from_json(json: &[u8], config: Option<&[u8]>, max_id: u32) -> Result<Self> {
        json::load(json, config, max_id)
    }

    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self> {
        gguf::load(vocab)
    }

    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// -1 when no token is written so.
    pub fn find(&self, token: &str) -> i32 {
        match &self.model {
            Model::Hf(model) => model.find(token),
            Model::Spm(model) => model.find(token.as_bytes()),
        }
    }

    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>> {
        if text.len() > MAX_TEXT_BYTES {
            return fail!(
                TooLarge,
                "text of {} bytes is longer than the {MAX_TEXT_BYTES} that are tokenized at once",
                text.len()
            );
        }
        let mut ids = Vec::new();
        if add_special {
            ids.extend_from_slice(&self.before);
        }
        match &self.model {
            Model::Hf(model) => model.encode(text, parse_special, &mut ids)?,
            Model::Spm(model) => model.encode(text, parse_special, &mut ids),
        }
        if add_special {
            ids.extend_from_slice(&self.after);
        }
        Ok(ids)
    }

    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<String> {
        let mut begin = Begin::whole();
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            self.pieces.append(id, skip_special, &mut begin, &mut bytes)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
