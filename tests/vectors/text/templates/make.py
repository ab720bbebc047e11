# SPDX-License-Identifier: Apache-2.0
"""Renders the templates of this folder with transformers: python make.py > cases.json

Needs: pip install transformers==5.19.0 jinja2==3.1.6
"""
import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = pathlib.Path(__file__).parent
BOS, EOS = "<s>", "</s>"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a town: \"now\" & later. Größe <b>",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "enum": ["Köln", "東京"]},
                "days": {"type": "integer", "minimum": 1, "default": 1.5},
            },
            "required": ["town"],
        },
    },
}
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}},
}
SYSTEM = {"role": "system", "content": "  You are terse.  "}
USER = {"role": "user", "content": "How is the weather in Köln? "}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function",
         "function": {"name": "get_weather", "arguments": {"town": "Köln", "days": 3, "exact": True, "unit": None}}}
    ],
}
TWO_CALLS = {
    "role": "assistant",
    "content": "Both:",
    "tool_calls": [CALL["tool_calls"][0], {"id": "123456789", "type": "function",
                   "function": {"name": "add", "arguments": {"x": [1, 2.5], "y": {"z": "'"}}}}],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "{\"sky\": \"grey\"}"}
THOUGHT = {"role": "assistant", "content": "<think>\nIt rains.\n</think>\n\nTake an umbrella."}
MORE = {"role": "user", "content": "And tomorrow?"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]}

CHATS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, THOUGHT, MORE],
    "call": [SYSTEM, USER, CALL, RESULT],
    "two calls": [USER, TWO_CALLS, RESULT, RESULT],
    "after a call": [USER, CALL, RESULT, THOUGHT, MORE],
    "wrong order": [USER, USER],
    "assistant last": [USER, THOUGHT],
}
EXTRA = {
    "int": 3, "big": 9007199254740993, "float": 0.1, "whole": 2.0, "tiny": 1e-7, "huge": 1e22,
    "yes": True, "nothing": None, "text": "it's \"so\"\n\t\\", "list": [1, "a", [None, False]],
    "dict": {"b": 1, "a": {"é": "ü"}}, "empty": [{}, []],
}


def cases():
    for name in ("chatml_tools", "header_ids", "inst"):
        for chat, messages in CHATS.items():
            for tools in (None, [WEATHER, ADD]):
                yield name, f"{chat}, {'tools' if tools else 'no tools'}", {
                    "messages": messages, "tools": tools, "add_generation_prompt": True}
    yield "chatml_tools", "thinking off", {
        "messages": [USER], "add_generation_prompt": True, "enable_thinking": False}
    yield "chatml_tools", "continued", {"messages": [USER, {"role": "assistant", "content": " Well, it "}],
                                       "continue_final_message": True}
    yield "header_ids", "continued", {"messages": [USER, {"role": "assistant", "content": " Well, it "}],
                                     "continue_final_message": True}
    yield "header_ids", "builtin tools", {"messages": [USER, {"role": "assistant", "tool_calls": [{
        "function": {"name": "search", "arguments": {"q": "x", "n": "2"}}}]}],
        "builtin_tools": ["search", "code_interpreter"]}
    yield "header_ids", "tools without a user", {"messages": [SYSTEM], "tools": [ADD]}
    yield "python_values", "values", {"messages": [USER, CALL, RESULT], "extra": EXTRA}
    yield "bare", "parts", {"messages": [PARTS, THOUGHT], "add_generation_prompt": True}
    yield "bare", "continued parts", {"messages": [PARTS, {"role": "assistant", "content": [
        {"type": "text", "text": "three"}]}], "continue_final_message": True}


def render(name, request):
    arguments = dict(request)
    messages = arguments.pop("messages")
    template = (FOLDER / f"{name}.jinja").read_text()
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=template, bos_token=BOS, eos_token=EOS, **arguments)
    return rendered[0]


def main():
    out = []
    for name, about, request in cases():
        case = {"template": name, "about": about, "request": request}
        try:
            case["rendered"] = render(name, request)
        except Exception as error:
            case["error"] = str(error)
        out.append(case)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in out)
    print(f'{{"bos": "{BOS}", "eos": "{EOS}", "cases": [\n{lines}\n]}}')


main()
