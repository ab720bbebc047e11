// SPDX-License-Identifier: Apache-2.0
//! What each token says, as bytes, and what is different at the beginning of a text.

use crate::error::{fail, Result};

const EXISTS: u8 = 1;
const SPECIAL: u8 = 2;

/// How the first token of a text differs from the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum First {
    #[default]
    Same,
    /// The text loses up to `count` characters `content` at its beginning.
    Strip { content: char, count: usize },
    /// The first token loses every one of its word marks.
    NoMarks { mark: char },
    /// Tokens after the first are separated by a space, which their bytes begin with.
    NoSeparator,
}

/// Where decoding stands: at the beginning of a text or inside.
pub struct Begin {
    first_token: bool,
    stripped: usize,
}

impl Begin {
    pub fn whole() -> Self {
        Begin { first_token: true, stripped: 0 }
    }

    /// The ids continue a text, so that no rule for the beginning holds.
    pub fn continued() -> Self {
        Begin { first_token: false, stripped: usize::MAX }
    }
}

/// Both texts of every token, in two arenas.
#[derive(Default)]
pub struct Pieces {
    bytes: Vec<u8>,
    written: Vec<u8>,
    rows: Vec<Row>,
    first: First,
}

#[derive(Clone, Copy, Default)]
struct Row {
    bytes_end: u32,
    written_end: u32,
    flags: u8,
}

impl Pieces {
    pub fn new(first: First) -> Self {
        Pieces { first, ..Pieces::default() }
    }

    /// Adds the token of the next id.
    pub fn push(&mut self, written: &[u8], bytes: &[u8], is_special: bool) {
        self.written.extend_from_slice(written);
        self.bytes.extend_from_slice(bytes);
        self.end_row(EXISTS | if is_special { SPECIAL } else { 0 });
    }

    /// No token has the next id.
    pub fn push_hole(&mut self) {
        self.end_row(0);
    }

    fn end_row(&mut self, flags: u8) {
        self.rows.push(Row {
            bytes_end: self.bytes.len() as u32,
            written_end: self.written.len() as u32,
            flags,
        });
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_special(&self, id: i32) -> bool {
        self.row(id).is_some_and(|(_, row)| row.flags & SPECIAL != 0)
    }

    pub fn bytes(&self, id: i32) -> Option<&[u8]> {
        let (begin, row) = self.row(id)?;
        Some(&self.bytes[begin.bytes_end as usize..row.bytes_end as usize])
    }

    /// The token as the vocabulary writes it.
    pub fn written(&self, id: i32) -> Option<&[u8]> {
        let (begin, row) = self.row(id)?;
        Some(&self.written[begin.written_end as usize..row.written_end as usize])
    }

    fn row(&self, id: i32) -> Option<(Row, Row)> {
        let index = usize::try_from(id).ok()?;
        let row = *self.rows.get(index).filter(|row| row.flags & EXISTS != 0)?;
        let begin = if index == 0 { Row::default() } else { self.rows[index - 1] };
        Some((begin, row))
    }

    /// Appends what id says at this place of a text.
    pub fn append(
        &self,
        id: i32,
        skip_special: bool,
        begin: &mut Begin,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(bytes) = self.bytes(id) else {
            return fail!(Invalid, "token id {id}: the vocabulary has no such token");
        };
        if skip_special && self.is_special(id) {
            return Ok(());
        }
        let is_first = std::mem::take(&mut begin.first_token);
        match self.first {
            First::Strip { content, count } if begin.stripped < count => {
                out.extend_from_slice(strip(bytes, content, count, begin));
            }
            First::NoMarks { mark } if is_first => {
                let written = String::from_utf8_lossy(self.written(id).unwrap_or_default());
                out.extend(written.replace(mark, "").bytes());
            }
            First::NoSeparator if is_first => {
                out.extend_from_slice(bytes.strip_prefix(b" ").unwrap_or(bytes));
            }
            _ => out.extend_from_slice(bytes),
        }
        Ok(())
    }
}

fn strip<'a>(mut bytes: &'a [u8], content: char, count: usize, begin: &mut Begin) -> &'a [u8] {
    let mut buffer = [0; 4];
    let content = content.encode_utf8(&mut buffer).as_bytes();
    while begin.stripped < count {
        match bytes.strip_prefix(content) {
            Some(rest) => bytes = rest,
            None if bytes.is_empty() => return bytes,
            None => break,
        }
        begin.stripped += 1;
    }
    if !bytes.is_empty() {
        begin.stripped = usize::MAX;
    }
    bytes
}

/// GPT-2's printable stand-ins: the byte that a character of a byte-level vocabulary means.
/// <https://github.com/openai/gpt-2/blob/master/src/encoder.py>, bytes_to_unicode.
pub fn byte_of(character: char) -> Option<u8> {
    match character as u32 {
        c @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(c as u8),
        c @ 0x100..=0x120 => Some((c - 0x100) as u8),
        c @ 0x121..=0x142 => Some((c - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The bytes of a byte-level token; a token with other characters stands for itself.
pub fn byte_level(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte of a fallback token "<0xE2>".
pub fn fallback_byte(token: &[u8]) -> Option<u8> {
    let hex = token.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if hex.len() != 2 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}
