# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: answers are those of a model whose weights have the adapter's product added."""
import concurrent.futures
import json
import shutil
import threading
from pathlib import Path

import numpy
import pytest

from conftest import BINARY, Server, wait_for, web

TINY = Path(__file__).parents[1] / "vectors" / "tiny-models"
LAYERS, HIDDEN, WIDE, HEADS, KV, DIM = 3, 64, 128, 4, 2, 16
SHAPES = {  # out, in
    "self_attn.q_proj": (HEADS * DIM, HIDDEN), "self_attn.k_proj": (KV * DIM, HIDDEN),
    "self_attn.v_proj": (KV * DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * DIM),
    "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE)}
PROMPT = [1, 17, 220, 91, 5, 300, 44, 12, 77, 130, 9, 210, 31, 66, 8, 99, 140, 3, 25, 61]


def read_safetensors(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            data = raw[8 + size + begin:8 + size + end]
            words = (numpy.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4") \
                if entry["dtype"] == "BF16" else numpy.frombuffer(data, "<f4")
            tensors[name] = words.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def make_adapter(folder, seed, rank, alpha, modules=SHAPES, rslora=False, shapes=None):
    """A folder as PEFT writes it, and what it adds to each weight. shapes: of whole names."""
    draw = numpy.random.default_rng(seed)
    folder.mkdir()
    tensors, added = {}, {}
    if shapes is None:
        shapes = {f"model.layers.{layer}.{module}": SHAPES[module]
                  for layer in range(LAYERS) for module in modules}
    for name, (out, wide) in shapes.items():
        a = draw.normal(0, 0.05, (rank, wide)).astype("<f4")
        b = draw.normal(0, 0.05, (out, rank)).astype("<f4")
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
        scale = alpha / (rank ** 0.5 if rslora else rank)
        added[f"{name}.weight"] = scale * (b.astype("f8") @ a.astype("f8"))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rslora, "bias": "none",
         "target_modules": [module.split(".")[1] for module in modules]}))
    return added


def merge(folder, added, base="llama"):
    shutil.copytree(TINY / base, folder)
    tensors = read_safetensors(folder / "model.safetensors")
    write_safetensors(folder / "model.safetensors",
                      {name: tensor + added.get(name, 0) for name, tensor in tensors.items()})


def serve(model, *flags, env=None):
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    return Server([BINARY, "serve", str(model), "--port", "0", "--host", "127.0.0.1",
                   "--served-model-name", "base", "--cpu-isa", "ref", "--kv-cache-dtype", "f32",
                   "--max-num-seqs", "8", *flags], env)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of two adapters, and of the models that they make."""
    home = tmp_path_factory.mktemp("lora")
    merge(home / "merged-a", make_adapter(home / "a", 1, 8, 16))
    merge(home / "merged-b", make_adapter(home / "b", 2, 3, 4, rslora=True, modules=[
        "self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"]))
    return home


@pytest.fixture(scope="module")
def servers(made):
    flags = ("--enable-lora", "--max-loras", "2", "--lora-modules", f"a={made}/a",
             json.dumps({"name": "b", "path": f"{made}/b"}))
    updating = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    all_servers = {"lora": serve(TINY / "llama", *flags, env=updating),
                   "gguf": serve(TINY / "llama-gguf-f32" / "model.gguf", *flags),
                   "base": serve(TINY / "llama"),
                   "a": serve(made / "merged-a"), "b": serve(made / "merged-b")}
    for server in all_servers.values():
        server.wait_until_listening()
    yield all_servers
    for server in all_servers.values():
        assert server.stop() == 0, "".join(server.lines[-20:])


def complete(server, model, prompt=PROMPT, **more):
    answer = web.post(f"{server.url}/v1/completions", json={
        "model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 2,
        "ignore_eos": True, "return_token_ids": True, **more})
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert answer.json()["model"] == model
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def assert_alike(one, other):
    assert one[0] == other[0]
    assert numpy.allclose(one[1], other[1], rtol=0, atol=2e-4)


@pytest.mark.parametrize("form", ["lora", "gguf"])
@pytest.mark.parametrize("name", ["base", "a", "b"])
def test_an_adapter_answers_as_the_model_it_makes(servers, form, name):
    assert_alike(complete(servers[form], name), complete(servers[name], "base"))


def test_adapters_differ_from_the_model(servers):
    answers = [complete(servers["lora"], name)[1] for name in ("base", "a", "b")]
    assert not numpy.allclose(answers[0], answers[1], atol=1e-2)
    assert not numpy.allclose(answers[0], answers[2], atol=1e-2)


def test_one_batch_takes_all_of_them(servers):
    alone = {name: complete(servers["lora"], name) for name in ("base", "a", "b")}
    names = ["a", "base", "b"] * 8
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        for name, answer in zip(names, pool.map(lambda n: complete(servers["lora"], n), names)):
            assert answer == alone[name]  # to the last bit


def test_blocks_are_not_shared_across_adapters(servers):
    prompt = [1, *range(40, 88)]
    expected = complete(servers["a"], "base", prompt)
    complete(servers["lora"], "base", prompt)  # its blocks are in the cache now
    assert_alike(complete(servers["lora"], "a", prompt), expected)
    assert_alike(complete(servers["lora"], "a", prompt), expected)  # from its own blocks


def test_adapters_are_listed_as_models(servers, made):
    models = web.get(f"{servers['lora'].url}/v1/models").json()["data"]
    assert [model["id"] for model in models][:3] == ["base", "a", "b"]
    assert models[1]["parent"] == "base" and models[1]["root"] == f"{made}/a"


def test_adapters_come_and_go(servers, made):
    server = servers["lora"]

    def post(verb, **body):
        return web.post(f"{server.url}/v1/{verb}_lora_adapter", json=body)

    assert post("load", lora_name="c", lora_path=f"{made}/a").status_code == 200
    assert_alike(complete(server, "c"), complete(servers["a"], "base"))
    again = post("load", lora_name="c", lora_path=f"{made}/b")
    assert again.status_code == 400 and "already" in again.json()["error"]["message"]
    assert post("load", lora_name="base", lora_path=f"{made}/b").status_code == 400
    inplace = post("load", lora_name="c", lora_path=f"{made}/b", load_inplace=True)
    assert inplace.status_code == 200
    assert post("unload", lora_name="c").status_code == 200
    assert post("unload", lora_name="c").status_code == 404
    missing = post("load", lora_name="d", lora_path=f"{made}/nowhere")
    assert missing.status_code == 404 and "nowhere" in missing.json()["error"]["message"]
    assert post("load", lora_name="d").status_code == 400
    gone = web.post(f"{server.url}/v1/completions", json={"model": "c", "prompt": "x"})
    assert gone.status_code == 404 and "does not exist" in gone.json()["error"]["message"]


@pytest.mark.parametrize("flags", [["-tp", "2"], ["-tp", "2", "-pp", "2"]], ids=" ".join)
def test_adapters_come_and_go_on_all_ranks(servers, made, flags):
    server = serve(TINY / "llama", "--enable-lora", *flags,
                   env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})
    server.wait_until_listening()

    def post(verb, **body):
        return web.post(f"{server.url}/v1/{verb}_lora_adapter", json=body)

    assert post("load", lora_name="c", lora_path=f"{made}/a").status_code == 200
    assert_alike(complete(server, "c"), complete(servers["a"], "base"))
    assert_alike(complete(server, "base"), complete(servers["base"], "base"))
    missing = post("load", lora_name="d", lora_path=f"{made}/nowhere")
    assert missing.status_code == 404 and "nowhere" in missing.json()["error"]["message"]
    inplace = post("load", lora_name="c", lora_path=f"{made}/b", load_inplace=True)
    assert inplace.status_code == 200
    assert_alike(complete(server, "c"), complete(servers["b"], "base"))
    assert post("unload", lora_name="c").status_code == 200
    assert server.stop() == 0, "".join(server.lines[-20:])


def test_what_runs_outlives_an_unload(servers, made):
    server = servers["lora"]
    body = {"lora_name": "e", "lora_path": f"{made}/a"}
    assert web.post(f"{server.url}/v1/load_lora_adapter", json=body).status_code == 200
    with web.stream("POST", f"{server.url}/v1/completions", json={
            "model": "e", "prompt": PROMPT, "max_tokens": 200, "temperature": 0,
            "ignore_eos": True, "stream": True, "return_token_ids": True}) as answer:
        lines = answer.iter_lines()
        events = [next(lines)]
        assert web.post(f"{server.url}/v1/unload_lora_adapter", json=body).status_code == 200
        events += list(lines)
    ids = [token for line in events if line.startswith("data: {")
           for choice in json.loads(line[6:])["choices"] for token in choice["token_ids"]]
    assert len(ids) == 200 and ids[:12] == complete(servers["a"], "base")[0]


def test_routes_of_loading_need_leave(servers):
    answer = web.post(f"{servers['gguf'].url}/v1/load_lora_adapter", json={})
    assert answer.status_code == 404


def test_metrics_say_which_adapters_run(servers):
    server = servers["lora"]
    line = [line for line in web.get(f"{server.url}/metrics").text.splitlines()
            if line.startswith("vllm:lora_requests_info{")]
    assert len(line) == 1
    assert 'max_lora="2",running_lora_adapters="",waiting_lora_adapters=""' in line[0]
    is_seen = threading.Event()

    def keep_busy():
        while not is_seen.is_set():
            complete(server, "b", max_tokens=200)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        busy = pool.submit(keep_busy)
        try:
            wait_for(lambda: 'running_lora_adapters="b"' in
                     web.get(f"{server.url}/metrics").text, what="a running adapter")
        finally:
            is_seen.set()
        busy.result()
    wait_for(lambda: 'running_lora_adapters=""' in web.get(f"{server.url}/metrics").text)


@pytest.mark.parametrize("change, said", [
    ({"bias": "all"}, "bias"), ({"use_dora": True}, "use_dora"), ({"lora_alpha": None}, "lora_alpha")])
def test_configs_that_cannot_be_had_are_named(made, tmp_path, change, said):
    shutil.copytree(made / "a", tmp_path / "x")
    config = json.loads((tmp_path / "x/adapter_config.json").read_text())
    (tmp_path / "x/adapter_config.json").write_text(json.dumps({**config, **change}))
    server = serve(TINY / "llama", "--enable-lora", "--lora-modules", f"x={tmp_path}/x")
    assert server.wait() != 0
    assert any("--lora-modules" in line and said in line for line in server.lines), server.lines


@pytest.mark.parametrize("name, shape, said", [
    ("base_model.model.lm_head.lora_A.weight", (4, HIDDEN), "lm_head"),
    ("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", (4, HIDDEN), "fewer layers"),
    ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", (4, HIDDEN + 1),
     f"its shape is [4, {HIDDEN + 1}], the model's [rank, {HIDDEN}]"),
    ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", (17, HIDDEN), "max-lora-rank"),
    ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", (4, HIDDEN), "one of two matrices")])
def test_tensors_that_do_not_fit_are_named(made, tmp_path, name, shape, said):
    (tmp_path / "x").mkdir()
    shutil.copy(made / "a/adapter_config.json", tmp_path / "x")
    write_safetensors(tmp_path / "x/adapter_model.safetensors", {name: numpy.zeros(shape)})
    server = serve(TINY / "llama", "--enable-lora", "--lora-modules", f"x={tmp_path}/x")
    assert server.wait() != 0
    assert any("--lora-modules" in line and said in line for line in server.lines), server.lines


def linears_of(base):
    """Shapes of what adapters may add to, by name: all matrices of layers."""
    return {name.removesuffix(".weight"): tensor.shape
            for name, tensor in read_safetensors(TINY / base / "model.safetensors").items()
            if name.startswith("model.layers.") and tensor.ndim == 2}


def assert_answers_as_merged(tmp_path, added, base, flags):
    """Adapter x of the folder answers as a model that has its products added, and unlike one without."""
    merge(tmp_path / "merged", added, base)
    lora = serve(TINY / base, "--enable-lora", "--lora-modules", f"x={tmp_path}/x", *flags)
    merged = serve(tmp_path / "merged")
    for server in (lora, merged):
        server.wait_until_listening()
    expected = complete(merged, "base")
    plain = complete(lora, "base")
    assert_alike(complete(lora, "x"), expected)
    assert not numpy.allclose(plain[1], expected[1], atol=1e-2)
    for server in (lora, merged):
        assert server.stop() == 0, "".join(server.lines[-20:])


@pytest.mark.parametrize("base, flags", [
    ("llama", ["-tp", "2"]), ("llama", ["-pp", "2"]), ("mistral", ["-tp", "2", "-pp", "2"]),
    ("mixtral", []), ("mixtral", ["-tp", "2"]), ("qwen3-moe", []), ("qwen3-moe", ["-tp", "2", "--enable-expert-parallel"]),
    ("gemma3", ["-tp", "2"]), ("phi3", []), ("phi3", ["-tp", "2"]), ("deepseek-v2", []), ("deepseek-v3", []), ("deepseek-v2", ["-tp", "2"]),
    ("deepseek-v3", ["-tp", "2", "-pp", "2"])], ids=lambda value: "".join(value) or "alone")
def test_every_kind_of_model_takes_adapters_whole_or_cut(tmp_path, base, flags):
    added = make_adapter(tmp_path / "x", 7, 8, 16, shapes=linears_of(base))
    assert_answers_as_merged(tmp_path, added, base, flags)


GATE_UP, DOWN = "gate_up_proj", "down_proj"


def make_experts_adapter(folder, seed, rank, alpha, parameters):
    """GPT-OSS's experts as PEFT's target_parameters adapt them: all of a layer in one pair of matrices."""
    draw = numpy.random.default_rng(seed)
    base = read_safetensors(TINY / "gpt-oss/model.safetensors")
    tensors, added = {}, {}
    for name in [name for name in base if name.endswith(tuple(parameters))]:
        experts, wide, out = base[name].shape
        a = draw.normal(0, 0.1, (rank * experts, wide)).astype("<f4")
        b = draw.normal(0, 0.1, (out, rank * experts)).astype("<f4")
        module, _, parameter = name.rpartition(".")
        inner = ".base_layer" if parameter == GATE_UP and len(parameters) > 1 else ""
        tensors[f"base_model.model.{module}{inner}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}{inner}.lora_B.weight"] = b
        added[name] = alpha / rank * numpy.einsum(
            "ore,eri->eio", b.reshape(out, rank, experts).astype("f8"), a.reshape(experts, rank, wide).astype("f8"))
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "target_modules": [],
         "target_parameters": [f"mlp.experts.{parameter}" for parameter in parameters]}))
    return added


@pytest.mark.parametrize("parameters, flags", [
    ([GATE_UP, DOWN], []), ([GATE_UP], []), ([DOWN], []), ([GATE_UP, DOWN], ["-tp", "2"]),
    ([GATE_UP, DOWN], ["-tp", "2", "--enable-expert-parallel"]), ([GATE_UP, DOWN], ["-pp", "2"])],
    ids=lambda value: " ".join(value) or "alone")
def test_experts_of_gpt_oss_are_adapted_together(tmp_path, parameters, flags):
    added = make_experts_adapter(tmp_path / "x", 7, 6, 12, parameters)
    assert_answers_as_merged(tmp_path, added, "gpt-oss", flags)


@pytest.mark.parametrize("name, shape, said", [
    ("experts.lora_A.weight", (6, 32), "shape"), ("experts.lora_A.weight", (8, 33), "shape"),
    ("experts.lora_A.weight", (4 * 17, 32), "max-lora-rank"), ("experts.lora_B.weight", (64, 8), "one of two matrices"),
    ("experts.base_layer.base_layer.lora_A.weight", (8, 64), "that the layer has")])
def test_experts_of_gpt_oss_that_do_not_fit_are_named(tmp_path, name, shape, said):
    make_experts_adapter(tmp_path / "x", 7, 2, 4, [DOWN])
    write_safetensors(tmp_path / "x/adapter_model.safetensors",
                      {f"base_model.model.model.layers.0.mlp.{name}": numpy.zeros(shape)})
    server = serve(TINY / "gpt-oss", "--enable-lora", "--lora-modules", f"x={tmp_path}/x")
    assert server.wait() != 0
    assert any("--lora-modules" in line and said in line for line in server.lines), server.lines


@pytest.mark.parametrize("base, name, shape", [
    ("mixtral", "block_sparse_moe.experts.4.w1", (64, HIDDEN)), ("mixtral", "mlp.up_proj", (64, HIDDEN)),
    ("llama", "mlp.experts.0.up_proj", (64, HIDDEN)), ("gpt-oss", "mlp.experts.0.up_proj", (64, HIDDEN)),
    ("deepseek-v2", "self_attn.q_a_proj", (32, HIDDEN)), ("deepseek-v3", "self_attn.q_proj", (128, HIDDEN))])
def test_what_a_layer_does_not_have_is_named(tmp_path, base, name, shape):
    make_adapter(tmp_path / "x", 7, 8, 16, shapes={f"model.layers.0.{name}": shape})
    server = serve(TINY / base, "--enable-lora", "--lora-modules", f"x={tmp_path}/x")
    assert server.wait() != 0
    assert any(name in line and "that the layer has" in line for line in server.lines), server.lines
