// SPDX-License-Identifier: Apache-2.0
//! What text.h calls the types of the Rust side. A type that is not here cannot cross.

use quote::ToTokens;
use syn::ItemEnum;

use crate::Result;

static TYPES: &[(&str, &str)] = &[
    ("bool", "bool"),
    ("c_char", "char"),
    ("c_int", "int"),
    ("c_void", "void"),
    ("f32", "float"),
    ("i8", "int8_t"),
    ("i32", "int32_t"),
    ("u32", "uint32_t"),
    ("usize", "size_t"),
    ("Bytes", "text_bytes_t"),
    ("DeltaFn", "text_delta_fn"),
    ("DeltaKind", "text_delta_kind_t"),
    ("Diag", "weft_diag_t"),
    ("Factory", "text_grammar_factory_t"),
    ("GgufVocabC", "text_gguf_vocab_t"),
    ("Grammar", "text_grammar_t"),
    ("GrammarKind", "text_grammar_kind_t"),
    ("GrammarKindC", "text_grammar_kind_t"),
    ("GrammarOptions", "text_grammar_options_t"),
    ("Ids", "text_ids_t"),
    ("Matcher", "text_matcher_t"),
    ("Output", "text_output_t"),
    ("Status", "weft_status_t"),
    ("StatusC", "weft_status_t"),
    ("Stops", "text_stops_t"),
    ("Stream", "text_stream_t"),
    ("StreamConfigC", "text_stream_config_t"),
    ("Template", "text_template_t"),
    ("Tokenizer", "text_tokenizer_t"),
];

pub fn c_name(rust: &str) -> Option<&'static str> {
    TYPES.iter().find(|row| row.0 == rust).map(|row| row.1)
}

/// Rust has all values of the enum; of weft_status_t it has those it answers with.
pub fn is_whole(rust: &str) -> bool {
    rust != "Status"
}

/// The enum's constants as C writes them, with their values.
pub fn enumerators(e: &ItemEnum) -> Result<Vec<(String, i64)>> {
    let mut next = 0;
    let mut list = Vec::new();
    for variant in &e.variants {
        if let Some((_, value)) = &variant.discriminant {
            let text = value.to_token_stream().to_string().replace(' ', "");
            next = text.parse().map_err(|_| format!("enum {}: value {text}", e.ident))?;
        }
        list.push((constant(&e.ident.to_string(), &variant.ident.to_string())?, next));
        next += 1;
    }
    Ok(list)
}

fn constant(rust: &str, variant: &str) -> Result<String> {
    let prefix = match (rust, variant) {
        ("Status", "Ok") => "WEFT",
        ("Status", _) => "WEFT_ERR",
        ("DeltaKind", _) => "TEXT_DELTA",
        ("GrammarKind", _) => "TEXT_GRAMMAR",
        _ => return Err(format!("enum {rust}: no prefix of its constants known")),
    };
    let mut name = prefix.to_string();
    for letter in variant.chars() {
        if letter.is_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    Ok(name)
}
