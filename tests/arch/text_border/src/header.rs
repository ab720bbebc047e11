// SPDX-License-Identifier: Apache-2.0
//! What text.h has: its functions with the names of their arguments, and the types it gives a body.

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;

pub struct Header {
    functions: BTreeMap<String, Vec<String>>,
    types: BTreeSet<String>,
}

impl Header {
    pub fn new(text: &str) -> Self {
        let code = without_comments(text);
        let functions = code.split(';').filter_map(|declaration| {
            let (before, after) = declaration.split_once('(')?;
            let name = last_word(before);
            let arguments = after.trim_end().strip_suffix(')')?;
            name.starts_with("text_").then(|| (name, arguments.split(',').map(last_word).collect()))
        });
        let types = code.split("typedef ").skip(1).filter_map(|declaration| {
            let (before, _) = declaration.split_once(';')?;
            let (before, _) = before.split_once('{')?;
            Some(format!("{}_t", last_word(before)))
        });
        Header { functions: functions.collect(), types: types.collect() }
    }

    /// Rust has a function of this name, and so must the header, once.
    pub fn see(&mut self, name: &str, arguments: &[String]) -> Result<()> {
        let Some(theirs) = self.functions.remove(name) else {
            return Err(format!("{name} is not in text.h"));
        };
        match theirs == arguments {
            true => Ok(()),
            false => Err(format!(
                "{name}({}): text.h says ({})",
                arguments.join(", "),
                theirs.join(", ")
            )),
        }
    }

    pub fn see_type(&mut self, name: &str) {
        self.types.remove(name);
    }

    pub fn all_seen(&self) -> Result<()> {
        match self.functions.keys().chain(&self.types).next() {
            Some(name) => Err(format!("{name} is in text.h only")),
            None => Ok(()),
        }
    }
}

fn without_comments(text: &str) -> String {
    let mut pieces = text.split("/*");
    let mut code = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        code.push_str(piece.split_once("*/").map_or("", |(_, after)| after));
    }
    code
}

fn last_word(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.rsplit(|c| !is_word(c)).find(|word| !word.is_empty()).unwrap_or_default().to_string()
}
