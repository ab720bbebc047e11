// SPDX-License-Identifier: Apache-2.0
//! Encoding with the tokenizers crate.

use tokenizers::{
    AddedVocabulary, Model, OffsetReferential, OffsetType, PreTokenizer, Tokenizer as HfTokenizer,
};

use crate::error::{fail, Result};

pub struct HfModel {
    pub inner: HfTokenizer,
    /// The added tokens again, with special ones left as plain text.
    plain: AddedVocabulary,
}

impl HfModel {
    pub fn new(inner: HfTokenizer) -> Self {
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        HfModel { inner, plain }
    }

    pub fn find(&self, token: &str) -> i32 {
        self.inner.token_to_id(token).and_then(|id| i32::try_from(id).ok()).unwrap_or(-1)
    }

    /// The steps of the crate's own encode, without its truncation, padding and offsets.
    pub fn encode(&self, text: &str, parse_special: bool, ids: &mut Vec<i32>) -> Result<()> {
        let added = if parse_special { self.inner.get_added_vocabulary() } else { &self.plain };
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        let model = self.inner.get_model();
        let split = match self.inner.get_pre_tokenizer() {
            Some(pre_tokenizer) => pre_tokenizer.pre_tokenize(&mut pieces),
            None => Ok(()),
        };
        if let Err(e) = split.and_then(|()| pieces.tokenize(|s| model.tokenize(s.get()))) {
            return fail!(Invalid, "text cannot be tokenized: {e}");
        }
        for (_, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            ids.extend(tokens.iter().flatten().map(|token| token.id as i32));
        }
        Ok(())
    }
}
