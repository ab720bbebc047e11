// SPDX-License-Identifier: Apache-2.0
//! Finds stop strings in a text that comes in pieces (Aho & Corasick 1975). Because it reads byte
//! by byte, the answer does not depend on where the pieces end: the match that ends first wins, and
//! of those that end together the longest.

use std::collections::{BTreeMap, VecDeque};

use crate::error::{fail, Result};

/// Every byte may become a node of the table; all stop strings together may have this many.
pub const MAX_STOP_BYTES: usize = 1 << 16;

const ROOT: usize = 0;

#[derive(Default)]
struct Node {
    next: BTreeMap<u8, usize>,
    /// The longest other stop prefix that the text here ends with.
    fallback: usize,
    depth: usize,
    /// (index, length) of the longest stop string that ends here.
    stop: Option<(usize, usize)>,
}

/// The table of all stop strings: up to 200 bytes for each of theirs, so it is shared by all texts
/// that end with the same ones.
pub struct Stops {
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    pub index: usize,
    pub length: usize,
}

impl Stops {
    pub fn new(stops: &[&str]) -> Result<Self> {
        let bytes: usize = stops.iter().map(|stop| stop.len()).sum();
        if bytes > MAX_STOP_BYTES {
            return fail!(
                TooLarge,
                "stop strings: {bytes} bytes, at most {MAX_STOP_BYTES} are taken"
            );
        }
        if stops.iter().any(|stop| stop.is_empty()) {
            return fail!(Invalid, "a stop string is empty");
        }
        Ok(Self::build(stops))
    }

    fn build(stops: &[&str]) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, stop) in stops.iter().enumerate() {
            let mut at = ROOT;
            for (depth, &byte) in stop.as_bytes().iter().enumerate() {
                let fresh = nodes.len();
                at = *nodes[at].next.entry(byte).or_insert(fresh);
                if at == fresh {
                    nodes.push(Node { depth: depth + 1, ..Node::default() });
                }
            }
            nodes[at].stop.get_or_insert((index, stop.len()));
        }
        let mut stops = Stops { nodes };
        stops.link();
        stops
    }

    fn link(&mut self) {
        let mut queue: VecDeque<usize> = self.nodes[ROOT].next.values().copied().collect();
        while let Some(at) = queue.pop_front() {
            for (byte, child) in self.nodes[at].next.clone() {
                let fallback = self.step(self.nodes[at].fallback, byte);
                self.nodes[child].fallback = fallback;
                if self.nodes[child].stop.is_none() {
                    self.nodes[child].stop = self.nodes[fallback].stop;
                }
                queue.push_back(child);
            }
        }
    }

    fn step(&self, mut at: usize, byte: u8) -> usize {
        loop {
            match self.nodes[at].next.get(&byte) {
                Some(&next) => return next,
                None if at == ROOT => return ROOT,
                None => at = self.nodes[at].fallback,
            }
        }
    }
}

/// How far one text has been read.
#[derive(Clone, Copy, Default)]
pub struct StopState(usize);

impl StopState {
    /// Reads a byte; says which stop string ends with it.
    pub fn read(&mut self, stops: &Stops, byte: u8) -> Option<Found> {
        self.0 = stops.step(self.0, byte);
        stops.nodes[self.0].stop.map(|(index, length)| Found { index, length })
    }

    /// How many of the last bytes may be the beginning of a stop string.
    pub fn held(&self, stops: &Stops) -> usize {
        stops.nodes[self.0].depth
    }
}
