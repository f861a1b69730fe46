"""The copy nodes on the real server: what is typed arrives, and what is found is told three ways."""

import json
from io import BytesIO
from types import SimpleNamespace

import example_workflows as examples
import pytest
import websocket
from PIL import Image

from ovis_core.lettering.quotes import quoted_texts

NODES = ("OvisCopy", "OvisStyle", "OvisLayout", "OvisPromptCheck")
FIELDS = ("headline", "subtitle", "body", "call_to_action", "price", "footer")
NASTY = {
    "headline": 'URL "https://ovis.ai/sale" // tail',
    "subtitle": "“双11 // 狂欢”",
    "body": "two\nlines /* c */ C:\\new\\(x\\) \\n\t{0}",
    "call_to_action": "{a|b} {{c}}",
    "price": '"$9.99"',
    "footer": "<|im_end|> embedding:x 🎉 龘 ％s %s",
}
TEXT = 3  # the kind of ComfyUI's binary messages
ENDS = ("execution_success", "execution_error")
SCENE, STYLE = "a {red|blue} wall // not a comment", "bold \\(serif\\) /* x */"


def copy_node(language: str = "English", **fields) -> dict:
    inputs = dict.fromkeys(FIELDS, "") | {"scene": "", "style": "", "language": language} | fields
    return {"class_type": "OvisCopy", "inputs": inputs}


def shown(source: str, output: int = 0) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": [source, output]}}


def saved(prefix: str) -> dict:
    """A small picture that is saved with its graph, named after the prompt's length."""
    empty = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    return {
        "image": {"class_type": "EmptyImage", "inputs": empty},
        "file": {"class_type": "SaveImage", "inputs": {"images": ["image", 0], "filename_prefix": prefix}},
    }


def check_nasty(outputs: dict) -> None:
    prompt, texts, texts_json = (outputs[key]["text"][0] for key in ("prompt", "texts", "json"))
    assert quoted_texts(prompt) == list(NASTY.values())
    assert prompt.startswith(("Lettering: " + STYLE, "文字样式：" + STYLE))
    assert prompt.endswith(SCENE)
    assert texts == "\n".join(NASTY.values())
    assert json.loads(texts_json) == list(NASTY.values())


def nasty_graph(language: str, prefix: str = "") -> dict:
    """`prefix`: of the ids, as the editor writes those of nodes inside a subgraph."""
    return {
        f"{prefix}copy": copy_node(language, **NASTY, scene=SCENE, style=STYLE),
        **{name: shown(f"{prefix}copy", i) for i, name in enumerate(("prompt", "texts", "json"))},
    }


@pytest.mark.parametrize(("language", "prefix"), [("English", ""), ("Chinese", "12:"), ("English", "12:3:")])
def test_every_character_arrives_from_the_api_and_out_of_subgraphs(server, language, prefix):
    check_nasty(server.run(nasty_graph(language, prefix)))


def test_every_character_arrives_through_a_subgraphs_input(server):
    graph = nasty_graph("English", "12:")
    for field, text in NASTY.items():
        graph[f"typed {field}"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": text}}
        graph["12:copy"]["inputs"][field] = [f"typed {field}", 0]
    check_nasty(server.run(graph))


def test_every_character_comes_back_from_a_saved_picture(server):
    graph = {**nasty_graph("Chinese"), **saved("copy")}
    widgets = [*NASTY.values(), SCENE, STYLE, "Chinese"]
    workflow = {"nodes": [{"id": 1, "type": "OvisCopy", "widgets_values": widgets}]}
    extra = {"extra_pnginfo": {"workflow": workflow}}
    entry = server.process.wait(server.process.queue(graph, extra_data=extra))
    picture = Image.open(BytesIO(server.process.view(entry["outputs"]["file"]["images"][0])))
    assert json.loads(picture.text["workflow"]) == workflow
    reloaded = json.loads(picture.text["prompt"])
    assert reloaded == graph
    check_nasty(server.run(reloaded))


def test_no_text_is_open_to_the_editors_syntax(server):
    for node in NODES:
        schema = server.get("/object_info")[node]["input"]
        fields = [*schema["required"].values(), *schema.get("optional", {}).values()]
        strings = [options for kind, options, *_ in fields if kind == "STRING"]
        assert len(strings) == {"OvisCopy": 8, "OvisLayout": 2}.get(node, 1)
        assert not any(options.get("dynamicPrompts") for options in strings)


def test_copy_makes_a_picture(server):
    graph = server.graph()
    graph["copy"] = copy_node(headline="双11", price="$9.99")
    encoder = next(node for node in graph.values() if node["class_type"] == "OvisImageTextEncode")
    encoder["inputs"]["text"] = ["copy", 0]
    assert server.image(server.run(graph)).size == (128, 192)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "every field is empty; fill in a headline or a scene"),
        ({"headline": '"”」』»'}, "the headline holds quotation marks of every kind"),
        ({"headline": "A", "style": "“gold", "scene": "B”"}, "have no partner and would swallow the texts"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(server, fields, message):
    error = server.fail({"copy": copy_node(**fields), "prompt": shown("copy")})
    assert error["exception_type"] == "ValueError"
    assert message in error["exception_message"]
    assert "\n" not in error["exception_message"].strip()


def checking(server, text: str, clip: bool = True, **how) -> dict:
    """Runs the check -> its outputs by name, and what the history holds."""
    inputs = {"text": text, "steps": 50, "cfg": 5.0, "fix": False, "language": "English", **how}
    graph = {"check": {"class_type": "OvisPromptCheck", "inputs": inputs}}
    if clip:
        loader = {**server.graph()["1"]}
        graph["loader"] = loader
        inputs["clip"] = ["loader", 1]
    names = ("text", "report", "json", "tokens")
    outputs = server.run(graph | {name: shown("check", i) for i, name in enumerate(names)})
    found = {name: outputs[name]["text"][0] for name in names}
    assert outputs["check"]["text"] == [found["report"]]
    return found | {"details": json.loads(found["json"])}


def test_a_clean_prompt(server, tokenizer):
    prompt = 'a red sign "OPEN"'
    found = checking(server, prompt)
    tokens = len(tokenizer(prompt).ids)
    assert found["report"] == (f"{tokens} of 284 tokens (39 of them the template's); nothing to complain of")
    assert (found["text"], found["tokens"]) == (prompt, str(tokens))
    assert found["details"]["texts"] == ["OPEN"]


def test_too_long_a_prompt_is_told_and_goes_on(server, tokenizer):
    prompt = '"A" ' + "hello " * 300 + "the end"
    found = checking(server, prompt, language="Chinese")
    tokens = found["details"]["tokens"]
    assert tokens["lost"] == tokenizer(prompt).num_lost
    assert tokens["lost_text"].endswith("the end")
    assert found["report"].splitlines()[1].startswith("错误 (第 1 行第 ")
    assert found["text"] == prompt


def test_fixing(server):
    found = checking(server, 'a “SALE" (big:1.3) at "$9" <|im_end|>', fix=True)
    assert found["text"] == "a “SALE” big at “$9”  "
    assert found["report"].splitlines()[0].endswith("4 fixed; nothing to complain of")
    codes = {entry["code"] for entry in found["details"]["fixed"]}
    assert codes == {"mixed_quotes", "weight", "merged_symbol", "control_token"}


def test_the_summary_is_shown_on_the_node(server):
    socket = websocket.create_connection(f"ws://{server.process.address}/ws?clientId=copywriting", timeout=60)
    inputs = {"text": 'a "A', "steps": 8, "cfg": 5.0, "fix": False, "language": "English"}
    graph = {"check": {"class_type": "OvisPromptCheck", "inputs": inputs}}
    server.process.wait(server.process.queue(graph, client_id="copywriting"))
    texts = []
    while not any(isinstance(message := socket.recv(), str) and kind in message for kind in ENDS):
        if isinstance(message, bytes) and int.from_bytes(message[:4], "big") == TEXT:
            texts.append(message[8:].decode())
    socket.close()
    assert texts == ["checktokens not counted: connect a CLIP; 1 warning; 1 note"]


def test_without_a_clip_and_with_bad_settings(server):
    found = checking(server, '"A"', clip=False, steps=8, cfg=9.0)
    assert (found["tokens"], found["details"]["tokens"]) == ("0", None)
    assert [entry["code"] for entry in found["details"]["findings"]] == ["high_guidance", "few_steps"]


def test_comfyuis_own_clip_gives_the_same_count(pack, comfyui, tokenizer):
    """Of type ovis, with the tokenizer that CLIPLoader gives it; the network is not asked."""
    import comfy.sd
    import comfy.text_encoders.ovis

    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer = comfy.text_encoders.ovis.OvisTokenizer()
    clip.tokenizer_options = {}
    check_prompt = pack("nodes.adapters.words.lettering").check_prompt
    ours = SimpleNamespace(
        tokenizer=SimpleNamespace(prompt_tokenizer=tokenizer, decode=tokenizer.tokenizer.decode)
    )
    for text in ("", 'a sign "OPEN 24H"', "海报“双11” " * 60, '"A" ' + "hello " * 300, "“龘” 🫠 <|im_end|>"):
        line, outputs = check_prompt(text, clip, 50, 5.0, False, "English")
        assert outputs[3] == len(tokenizer(text).ids) + tokenizer(text).num_lost
        assert (line, outputs) == check_prompt(text, ours, 50, 5.0, False, "English")


def test_another_models_clip_is_one_sentence(pack, comfyui):
    import comfy.sd
    import comfy.sd1_clip

    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer = comfy.sd1_clip.SD1Tokenizer()
    clip.tokenizer_options = {}
    with pytest.raises(ValueError, match="does not put prompts into Ovis-Image's template"):
        pack("nodes.adapters.words.lettering").check_prompt("a", clip, 50, 5.0, False, "English")


def test_a_linked_language_that_is_not_offered_is_one_sentence(pack):
    adapter = pack("nodes.adapters.words.lettering")
    for call in (
        lambda: adapter.check_prompt("a", None, 50, 5.0, False, "en"),
        lambda: adapter.write_copy({"headline": "A"}, "", "", "en"),
        lambda: adapter.describe_style("neon", "en", ""),
    ):
        with pytest.raises(ValueError, match="the language is 'en'; choose one of English, Chinese"):
            call()


def style_graph(style: str, language: str = "English", colour: str = "") -> dict:
    inputs = {"style": style, "language": language, "colour": colour}
    return {"style": {"class_type": "OvisStyle", "inputs": inputs}, "shown": shown("style")}


def test_a_style_in_both_languages(server):
    english = server.run(style_graph("neon", "English", "{pink}"))["shown"]["text"][0]
    chinese = server.run(style_graph("neon", "Chinese", "粉色"))["shown"]["text"][0]
    assert english.startswith("glowing neon")
    assert english.endswith(", in {pink}")
    assert chinese.startswith("发光的霓虹灯")
    assert chinese.endswith("，颜色为粉色")


def test_chinese_names_of_all_styles(server):
    options = server.get("/object_info/OvisStyle")["OvisStyle"]["input"]["required"]["style"][1]["options"]
    names = server.get("/i18n")["zh"]["nodeDefs"]["OvisStyle"]["inputs"]["style"]["options"]
    assert set(names) == set(options)


def test_own_styles_are_listed_used_and_read_anew(server):
    path = server.base / "user" / "default" / "ovis_image" / "lettering_styles.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for text in ("in wet sand", "in dry sand"):
            path.write_text(json.dumps({"沙画": {"en": text, "zh": "湿沙"}}), "utf-8")
            assert server.run(style_graph("沙画"))["shown"]["text"][0] == text
        path.write_text('{"沙画": 5}', "utf-8")
        error = server.fail(style_graph("neon"))
        assert error["exception_type"] == "ValueError"
        assert "the style '沙画' in" in error["exception_message"]
    finally:
        path.unlink()
    assert server.run(style_graph("neon"))["shown"]["text"][0].startswith("glowing")


def box(x, y, w, h, text="", desc="", palette=()) -> dict:
    kind = "text" if text else "obj"
    meta = {"type": kind, "text": text, "desc": desc, "palette": list(palette)}
    return {"x": x, "y": y, "width": w, "height": h, "metadata": meta}


def test_the_prompt_while_typing_is_the_nodes(server, tokenizer):
    node = copy_node(**NASTY, scene=SCENE, style=STYLE)
    graph = {"copy": node, "shown": shown("copy", 0)}
    status, answer = server.post("/ovis_image/copy", node["inputs"])
    assert status == 200
    assert [answer["prompt"]] == server.run(graph)["shown"]["text"]
    assert answer["tokens"] == tokenizer(answer["prompt"]).report


@pytest.mark.parametrize(
    "body", [{"headline": 5}, ["SALE"], {"headline": "SALE", "language": "x"}, "x" * 300_000]
)
def test_other_fields_while_typing_are_one_sentence(server, body):
    status, answer = server.post("/ovis_image/copy", body)
    assert status == 400
    assert list(answer) == ["error"]


def layout_graph(boxes: list, language: str) -> dict:
    drawn = {"width": 1024, "height": 1024, "editor_state": {"__value__": boxes}}
    inputs = {"elements": ["boxes", 2], "scene": "the sea", "style": "", "language": language}
    return {
        "boxes": {"class_type": "CreateBoundingBoxes", "inputs": drawn},
        "layout": {"class_type": "OvisLayout", "inputs": inputs},
        **{name: shown("layout", i) for i, name in enumerate(("prompt", "texts", "json"))},
    }


def test_layout_of_stock_boxes(server):
    boxes = [box(100, 900, 800, 40, "$9 // {a|b}"), box(40, 40, 900, 300, "夏日", "", ["#ff0000"])]
    outputs = server.run(layout_graph([*boxes, box(700, 500, 200, 200, desc="a boat")], "English"))
    assert outputs["texts"]["text"] == ["夏日\n$9 // {a|b}"]
    assert outputs["prompt"]["text"] == [
        'Text from top to bottom: "夏日" in red very large letters at the top centre, across the full width, '
        "“$9 // {a|b}” in small letters at the bottom centre, a boat at the middle right. Scene: the sea"
    ]
    chinese = server.run(layout_graph(boxes, "Chinese"))["prompt"]["text"][0]
    assert chinese.startswith("画面文字从上到下：画面上方中央，横贯整个画面是特大字“夏日”，红色，")


def test_layout_without_texts_is_one_sentence(server):
    error = server.fail(layout_graph([box(0, 0, 100, 100, desc="a boat")], "English"))
    assert error["exception_type"] == "ValueError"
    assert error["exception_message"].strip() == (
        "no box has a text; set a box's type to text and type what it is to say"
    )


def rewrite_graph(answer: dict) -> dict:
    """The shipped graph up to the checked prompt, with `answer` for the text generation."""
    graph = examples.api_graph("rewrite_prompt")
    (generation,) = (number for number, node in graph.items() if node["class_type"] == "TextGenerate")
    shown = [number for number, node in graph.items() if node["class_type"] == "PreviewAny"]
    kept = {*shown, "2", "5", "6"}
    return {number: node for number, node in graph.items() if number in kept} | {generation: answer}


def test_a_rewritten_prompt_keeps_what_is_in_quotes_to_the_byte(server):
    original = examples.api_graph("rewrite_prompt")["2"]["inputs"]["value"]
    texts = quoted_texts(original)
    assert texts == ["70 % OFF", "SUMMER BEATS"]
    good = 'Sunlit paper, "SUMMER BEATS" in ink\nunder a broad “70 % OFF”.'
    for answer, used in (("<think>\nhm\n</think>\n\n" + good, good), (good.replace(" %", "%"), original)):
        node = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": answer}}
        outputs = server.run(rewrite_graph(node))
        prompt, report = (outputs[number]["text"][0] for number in ("14", "15"))
        assert prompt == used
        assert sorted(quoted_texts(prompt)) == sorted(texts)
        assert ("the original is used" in report) == (used == original)
    graph = rewrite_graph(node)
    graph["6"]["inputs"]["otherwise"] = "error"
    assert "lost “70 % OFF” and added “70% OFF”" in server.fail(graph)["exception_message"]


def test_generate_text_is_told_that_our_text_encoder_does_not(server):
    graph = rewrite_graph(next(iter(server.graph().values())))
    number = next(n for n, node in graph.items() if node["class_type"] == "OvisImageLoader")
    generation = examples.api_graph("rewrite_prompt")[number]
    generation["inputs"].update(clip=["loader", 1], prompt=["2", 0])
    graph |= {"loader": graph[number], number: generation}
    assert "connect the CLIP of a language model" in server.fail(graph)["exception_message"]
