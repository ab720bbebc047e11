# SPDX-License-Identifier: Apache-2.0
"""Trains small tokenizers of every kind and records what their libraries do with some texts.

python make.py TEXT_FILE    Needs: pip install tokenizers==0.23.3 sentencepiece==0.2.3
"""
import io
import json
import pathlib
import sys

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(__file__).parent
TEXTS = [
    "", " ", "  ", "Hello world", " Hello  world ", "the tide turned, and the boats went out.",
    "naïve café – 東京 🙂👩‍👩‍👧 100%", "tabs\tand\nlines\r\n\n end", "x = y[1] != {2: '3'};", "1234567890 3.14",
    "<s>not special", "the <s> middle</s>", "aaaaaaaaaaaaaaaaaaaa", "▁ mark", "<0x41>", "e\u0301 ﬁ Ⅷ", "\u0000\u0001\ufffd",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def write(name, value):
    (FOLDER / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def make_sentencepiece(corpus):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, model_type="bpe", vocab_size=700, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
        character_coverage=0.99, user_defined_symbols=["there"], minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = []
    for id in range(sp.get_piece_size()):
        kinds.append(2 if sp.is_unknown(id) else 3 if sp.is_control(id) else 6 if sp.is_byte(id) else 1)
    kinds[sp.piece_to_id("there")] = 4
    cases = [{"text": t, "ids": sp.encode(t), "decoded": sp.decode(sp.encode(t))} for t in TEXTS if "\0" not in t]
    write("sentencepiece.json", {
        "tokens": [sp.id_to_piece(i) for i in range(sp.get_piece_size())],
        "scores": [sp.get_score(i) for i in range(sp.get_piece_size())],
        "types": kinds, "bos": sp.bos_id(), "eos": sp.eos_id(), "unknown": sp.unk_id(), "cases": cases})


def record(name, tokenizer):
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": ids, "ids_plain": plain, "decoded": tokenizer.decode(ids),
                      "decoded_all": tokenizer.decode(ids, skip_special_tokens=False)})
    tokenizer.save(str(FOLDER / f"{name}.tokenizer.json"), pretty=False)
    write(f"{name}.json", {"cases": cases})


def frame(tokenizer, *tokens):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A" + "".join(" " + t for t in tokens),
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ["<s>", *tokens]])


def make_prepend(corpus):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + [f"<0x{b:02X}>" for b in range(256)])
    tokenizer.train_from_iterator(corpus, trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = file["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    frame(tokenizer)
    record("prepend", tokenizer)


def make_metaspace(corpus):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(corpus, trainer)
    frame(tokenizer, "</s>")
    record("metaspace", tokenizer)


def make_wordpiece(corpus):
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL))
    frame(tokenizer, "</s>")
    record("wordpiece", tokenizer)


def make_split(corpus):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    from tokenizers import Regex
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, trainer)
    frame(tokenizer)
    record("split", tokenizer)


def main():
    corpus = pathlib.Path(sys.argv[1]).read_text().splitlines() + TEXTS[3:10]
    for make in (make_sentencepiece, make_prepend, make_metaspace, make_wordpiece, make_split):
        make(corpus)


main()
