// SPDX-License-Identifier: Apache-2.0
//! SentencePiece BPE from scores: of all neighbours that together are a token, those with the best
//! score are merged first. Kudo & Richardson 2018; the order of ties is llama.cpp's (leftmost).

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::special::SpecialTokens;

const MARK: &str = "\u{2581}";

pub struct SpmModel {
    /// What text may become: control, unknown and byte tokens are never made by merging.
    pub ids: HashMap<Vec<u8>, i32>,
    pub reserved: HashMap<Vec<u8>, i32>,
    pub scores: Vec<f32>,
    /// The token of each byte, -1 where the vocabulary has none.
    pub byte_ids: Box<[i32; 256]>,
    pub unknown: i32,
    pub add_space_prefix: bool,
    pub special: SpecialTokens,
}

/// A run of bytes of the text; empty once it was merged into its left neighbour.
struct Symbol {
    begin: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

#[derive(PartialEq)]
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Eq for Merge {}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl SpmModel {
    pub fn find(&self, token: &[u8]) -> i32 {
        self.ids.get(token).or_else(|| self.reserved.get(token)).copied().unwrap_or(-1)
    }

    pub fn encode(&self, text: &str, parse_special: bool, ids: &mut Vec<i32>) {
        // A word mark is put before the text and before what follows a special token.
        let mut is_begin = true;
        self.special.split(text, parse_special, |part| match part {
            Ok(plain) => {
                let prefix = if self.add_space_prefix && is_begin { MARK } else { "" };
                self.encode_plain(&(prefix.to_owned() + &plain.replace(' ', MARK)), ids);
                is_begin = false;
            }
            Err(id) => {
                ids.push(id);
                is_begin = true;
            }
        });
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<i32>) {
        let mut symbols = split_characters(text);
        let mut queue = BinaryHeap::new();
        for left in 1..symbols.len() {
            self.propose(text, &symbols, Some(left - 1), Some(left), &mut queue);
        }
        while let Some(merge) = queue.pop() {
            let (left, right) = (&symbols[merge.left], &symbols[merge.right]);
            let is_stale = left.begin == left.end
                || right.begin == right.end
                || right.end - left.begin != merge.length;
            if is_stale {
                continue;
            }
            let (end, next) = (right.end, right.next);
            symbols[merge.right].begin = end;
            symbols[merge.left].end = end;
            symbols[merge.left].next = next;
            if let Some(next) = next {
                symbols[next].previous = Some(merge.left);
            }
            let previous = symbols[merge.left].previous;
            self.propose(text, &symbols, previous, Some(merge.left), &mut queue);
            self.propose(text, &symbols, Some(merge.left), next, &mut queue);
        }
        let mut at = if symbols.is_empty() { None } else { Some(0) };
        while let Some(index) = at {
            let symbol = &symbols[index];
            self.push_symbol(&text.as_bytes()[symbol.begin..symbol.end], ids);
            at = symbol.next;
        }
    }

    fn propose(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        queue: &mut BinaryHeap<Merge>,
    ) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let joined = &text.as_bytes()[symbols[left].begin..symbols[right].end];
        if let Some(&id) = self.ids.get(joined) {
            let score = self.scores[id as usize];
            queue.push(Merge { score, left, right, length: joined.len() });
        }
    }

    /// Merged symbols are tokens; a single character may be none, then its bytes are.
    fn push_symbol(&self, symbol: &[u8], ids: &mut Vec<i32>) {
        if let Some(&id) = self.ids.get(symbol) {
            ids.push(id);
            return;
        }
        for &byte in symbol {
            match self.byte_ids[byte as usize] {
                -1 if self.unknown < 0 => {}
                -1 => return ids.push(self.unknown),
                id => ids.push(id),
            }
        }
    }
}

fn split_characters(text: &str) -> Vec<Symbol> {
    let count = text.chars().count();
    text.char_indices()
        .enumerate()
        .map(|(index, (begin, character))| Symbol {
            begin,
            end: begin + character.len_utf8(),
            previous: index.checked_sub(1),
            next: Some(index + 1).filter(|&next| next < count),
        })
        .collect()
}
