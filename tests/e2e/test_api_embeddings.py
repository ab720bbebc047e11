# SPDX-License-Identifier: Apache-2.0
"""POST /v1/embeddings, as the openai client asks for them, from a tiny model."""
import json
import math
import shutil
import struct

import openai
import pytest

from conftest import BINARY, VECTORS, Server

MODEL = VECTORS.parent / "tiny-models" / "qwen3"


def start(model, *flags):
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    return Server([BINARY, "serve", str(model), "--port", "0", "--host", "127.0.0.1", *flags])


def as_embedding_checkpoint(folder):
    """The same model as embedding models are published: modules beside it, names without "model."."""
    shutil.copytree(MODEL, folder)
    raw = (MODEL / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    names = {name: name.removeprefix("model.") for name in header if name != "lm_head.weight"}
    text = json.dumps({new: header[old] for old, new in names.items()}).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + raw[8 + size:])
    (folder / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling",
         "type": "sentence_transformers.models.Pooling"}]))
    (folder / "1_Pooling").mkdir()
    return folder


def write_pooling(folder, **modes):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))


@pytest.fixture(scope="module")
def embedder():
    running = start(MODEL, "--runner", "pooling").wait_until_listening()
    yield running
    running.stop()


def embed(embedder, **request):
    return embedder.openai().embeddings.create(model=str(MODEL), **request)


def length(vector):
    return math.sqrt(sum(x * x for x in vector))


def test_texts_and_ids_become_vectors_of_length_one(embedder):
    answer = embed(embedder, input=["some words", "others"], encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1]
    assert all(len(item.embedding) == 64 for item in answer.data)
    assert all(abs(length(item.embedding) - 1) < 1e-5 for item in answer.data)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    assert embed(embedder, input="some words", encoding_format="float").data[0].embedding == \
        answer.data[0].embedding
    ids = embedder.http().post("/tokenize", json={"prompt": "some words"}).json()["tokens"]
    assert embed(embedder, input=[ids], encoding_format="float").data[0].embedding == \
        answer.data[0].embedding


def test_embeddings_have_no_first_token(embedder):
    embed(embedder, input="some words")
    assert embedder.gauge("vllm:time_to_first_token_seconds_count") == 0
    assert embedder.gauge("vllm:request_queue_time_seconds_count") > 0


def test_base64_says_the_same(embedder):
    plain = embed(embedder, input="some words", encoding_format="float").data[0].embedding
    packed = embed(embedder, input="some words").data[0].embedding  # the client asks for base64
    assert packed == pytest.approx(plain, abs=1e-7)


def test_fewer_dimensions_are_the_first_ones_scaled(embedder):
    whole = embed(embedder, input="some words", encoding_format="float").data[0].embedding
    part = embed(embedder, input="some words", encoding_format="float", dimensions=16)
    expected = [x / length(whole[:16]) for x in whole[:16]]
    assert part.data[0].embedding == pytest.approx(expected, abs=1e-6)
    raw = embed(embedder, input="some words", encoding_format="float",
                extra_body={"use_activation": False}).data[0].embedding
    assert [x / length(raw) for x in raw] == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("field, value", [
    ("encoding_format", "bytes"), ("dimensions", 65), ("dimensions", 0), ("stream", True),
    ("input", 7), ("input", None), ("input", []), ("embed_dtype", "float16"),
    ("messages", [{"role": "user", "content": "x"}])])
def test_what_cannot_be_done_is_refused_by_name(embedder, field, value):
    answer = embedder.http().post("/v1/embeddings", json={"input": "x", field: value})
    assert answer.status_code == 400, answer.text
    assert field.split("_")[0] in answer.text or "prompt" in answer.text


def test_each_kind_of_model_has_its_routes(embedder, http):
    with pytest.raises(openai.NotFoundError, match="--runner generate"):
        embedder.openai().completions.create(model=str(MODEL), prompt="x")
    assert http.post("/v1/embeddings", json={"input": "x"}).status_code == 404


def test_a_checkpoint_for_embeddings_is_known_by_what_lies_beside_it(embedder, tmp_path):
    folder = as_embedding_checkpoint(tmp_path / "embedding")
    write_pooling(folder, pooling_mode_lasttoken=True)
    running = start(folder).wait_until_listening()
    answer = running.openai().embeddings.create(model=str(folder), input="some words")
    assert answer.data[0].embedding == embed(embedder, input="some words").data[0].embedding
    running.stop()


def test_another_pooling_is_refused(tmp_path):
    folder = as_embedding_checkpoint(tmp_path / "embedding")
    write_pooling(folder, pooling_mode_mean_tokens=True)
    running = start(folder)
    assert running.wait() == 2
    assert "pooling" in "".join(running.lines)
