// SPDX-License-Identifier: Apache-2.0
//! Finds special tokens written in a text, the longest first.

use std::collections::HashMap;

/// Tokens by their text; control ones only count when special tokens are parsed.
#[derive(Default)]
pub struct SpecialTokens {
    by_text: HashMap<Vec<u8>, (i32, bool)>,
    /// Lengths of the tokens that begin with each byte, longest first.
    lengths: HashMap<u8, Vec<usize>>,
}

impl SpecialTokens {
    pub fn add(&mut self, text: &[u8], id: i32, is_control: bool) {
        let Some(&first) = text.first() else {
            return;
        };
        self.by_text.insert(text.to_vec(), (id, is_control));
        let lengths = self.lengths.entry(first).or_default();
        if let Err(place) = lengths.binary_search_by(|length| text.len().cmp(length)) {
            lengths.insert(place, text.len());
        }
    }

    /// Calls take with Ok(text) for plain parts and Err(id) for tokens, in order.
    pub fn split<'t>(
        &self,
        text: &'t str,
        parse_control: bool,
        mut take: impl FnMut(Result<&'t str, i32>),
    ) {
        let mut plain_begin = 0;
        let mut at = 0;
        while at < text.len() {
            match self.at(&text.as_bytes()[at..], parse_control) {
                Some((id, length)) if text.is_char_boundary(at + length) => {
                    if plain_begin < at {
                        take(Ok(&text[plain_begin..at]));
                    }
                    take(Err(id));
                    at += length;
                    plain_begin = at;
                }
                _ => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        if plain_begin < text.len() {
            take(Ok(&text[plain_begin..]));
        }
    }

    fn at(&self, rest: &[u8], parse_control: bool) -> Option<(i32, usize)> {
        self.lengths.get(rest.first()?)?.iter().find_map(|&length| {
            let &(id, is_control) = self.by_text.get(rest.get(..length)?)?;
            (parse_control || !is_control).then_some((id, length))
        })
    }
}
