// SPDX-License-Identifier: Apache-2.0
//! Block tags that transformers adds to Jinja.

/// `{% generation %}` marks the assistant's words for training; here its body is just printed.
pub fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let tag = &rest[begin + 2..];
        let Some(end) = tag.find("%}") else {
            break;
        };
        out.push_str(&rest[..begin + 2]);
        let inside = &tag[..end];
        let word = inside.trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&inside.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&inside.replacen("endgeneration", "endif", 1)),
            _ => {
                rest = tag;
                continue;
            }
        }
        rest = &tag[end..];
    }
    out + rest
}
