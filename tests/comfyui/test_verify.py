"""The verification nodes on the real server, with the real reader, on pictures whose writing is known."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

JUDGING = {
    "threshold": 1.0,
    "case_sensitive": False,
    "width_sensitive": False,
    "count_extra": True,
}


def drawn(*lines: str, size=(480, 240)) -> Image.Image:
    image = Image.new("RGB", size, (250, 240, 220))
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((30, 30 + 90 * i), line, fill=(20, 30, 90), font=ImageFont.load_default(60))
    return image


def cut(image: Image.Image) -> Image.Image:
    """Takes a slice out of the first line, which the reader still completes."""
    ImageDraw.Draw(image).rectangle((0, 62, image.width, 66), fill=(250, 240, 220))
    return image


@pytest.fixture(scope="module")
def pictures(server):
    """Pictures in the server's input folder."""
    known = {
        "right": drawn("OPEN LATE", "Coffee"),
        "wrong": drawn("OPEN LATE", "Coftee"),
        "broken": cut(drawn("OPEN LATE", "Coffee")),
        "other": drawn("CLOSED", size=(320, 320)),
        "empty": Image.new("RGB", (64, 64), "white"),
        "thin": Image.new("RGB", (3000, 2), "white"),
        "pixel": Image.new("RGB", (1, 1), "white"),
    }
    for name, image in known.items():
        image.save(server.base / "input" / f"{name}.png")
    return known


def load(name: str) -> dict:
    return {"class_type": "LoadImage", "inputs": {"image": f"{name}.png"}}


def shown(source: str, output: int) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": [source, output]}}


def verify(server, name: str, texts: str, **how) -> dict:
    graph = {
        "image": load(name),
        "verify": {
            "class_type": "OvisTextVerify",
            "inputs": {"image": ["image", 0], "texts": texts, **JUDGING, **how},
        },
        "save": {"class_type": "PreviewImage", "inputs": {"images": ["verify", 0]}},
        **{name: shown("verify", i) for i, name in enumerate(("score", "passed", "report", "json"), 1)},
    }
    outputs = server.run(graph)
    found = {key: outputs[key]["text"][0] for key in ("score", "passed", "report", "json")}
    assert outputs["verify"]["text"] == [found["report"]]
    return {
        "score": float(found["score"]),
        "passed": found["passed"] == "True",
        "report": found["report"],
        "details": json.loads(found["json"]),
        "image": server.image(outputs, "save"),
    }


@pytest.mark.parametrize(
    ("name", "texts", "how", "score", "passed"),
    [
        ("right", "OPEN LATE\nCoffee", {}, 1, True),
        ("right", "Coffee\n\n  open late ", {}, 1, True),
        ("right", '["OPEN\\nLATE Coffee"]', {}, 1, True),
        ("right", "OPEN LATE", {}, 1 - 6 / 8, False),
        ("right", "OPEN LATE", {"count_extra": False}, 1, True),
        ("right", "OPEN LATE\ncoffee", {"case_sensitive": True}, 1 - 1 / 14, False),
        ("right", "ＯＰＥＮ LATE\nCoffee", {}, 1, True),
        ("right", "ＯＰＥＮ LATE\nCoffee", {"width_sensitive": True}, 1 - 4 / 14, False),
        ("wrong", "OPEN LATE\nCoffee", {}, 1 - 1 / 14, False),
        ("wrong", "OPEN LATE\nCoffee", {"threshold": 0.9}, 1 - 1 / 14, True),
        ("right", "OPEN LATE\nCoffee", {"min_legibility": 0.5}, 1, True),
        ("broken", "OPEN LATE\nCoffee", {}, 1, True),
        ("broken", "OPEN LATE\nCoffee", {"min_legibility": 0.5}, 1, False),
        ("empty", "OPEN", {}, 0, False),
        ("empty", "", {}, 1, True),
        ("right", "", {}, 0, False),
        ("thin", "OPEN", {}, 0, False),
        ("pixel", "OPEN", {}, 0, False),
    ],
)
def test_verify(server, pictures, name, texts, how, score, passed):
    found = verify(server, name, texts, **how)
    assert found["score"] == pytest.approx(score)
    assert found["passed"] is passed
    assert found["report"].startswith(f"{'passed' if passed else 'failed'}: score {score:.3f}")
    assert found["image"].size == pictures[name].size


def test_verify_tells_what_is_wrong_and_where(server, pictures):
    found = verify(server, "wrong", "OPEN LATE\nCoffee\nTea")
    assert '"Coffee" reads "Coftee" (region 2), 1 of 6 wrong' in found["report"]
    assert '"Tea" was not found, 3 of 3 wrong' in found["report"]
    (details,) = found["details"]
    assert [text["exact"] for text in details["texts"]] == [True, False, False]
    assert [text["similarity"] for text in details["texts"]] == pytest.approx([1, 5 / 6, 0])
    assert details["benchmarks"]["cvtg_2k_word_accuracy"] == 0.5
    (left, top), (right, bottom) = details["regions"][1]["box"][0], details["regions"][1]["box"][2]
    assert 0 < left < 60 < 150 < right < 400
    assert 100 < top < 170 < bottom < 220
    # The frame round the wrong word is red, that round the right one green; the rest is the picture.
    pixels, original = np.asarray(found["image"]).astype(int), np.asarray(pictures["wrong"]).astype(int)
    changed = np.argwhere((pixels != original).any(-1))
    assert 0 < len(changed) < 0.3 * pixels.shape[0] * pixels.shape[1]
    below = pixels[150:230]
    assert ((below[..., 0] > 200) & (below[..., 1] < 80)).any()
    assert not ((below[..., 1] > 130) & (below[..., 0] < 60)).any()


def test_best_of_ranks_pictures_of_any_size(server, pictures):
    names = ("other", "broken", "right")
    graph = {name: load(name) for name in names}
    graph |= {
        "list": {
            "class_type": "CreateList",
            "inputs": {f"inputs.input{i}": [name, 0] for i, name in enumerate(names)},
        },
        "best": {
            "class_type": "OvisTextBestOf",
            "inputs": {"images": ["list", 0], "texts": "OPEN LATE\nCoffee", **JUDGING},
        },
        "image": {"class_type": "PreviewImage", "inputs": {"images": ["best", 0]}},
        "ranked": {"class_type": "PreviewImage", "inputs": {"images": ["best", 2]}},
        "sheet": {"class_type": "PreviewImage", "inputs": {"images": ["best", 4]}},
        "number": shown("best", 1),
        "scores": shown("best", 3),
        "json": shown("best", 6),
    }
    outputs = server.run(graph)
    assert server.image(outputs, "image").tobytes() == pictures["right"].tobytes()
    assert outputs["number"]["text"] == ["3"]
    assert len(outputs["ranked"]["images"]) == 3
    scores = [float(text) for text in outputs["scores"]["text"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[:2] == [1, 1], "the more legible one is first"
    entries = json.loads(outputs["json"]["text"][0])
    assert [entry["picture"] for entry in entries] == [3, 2, 1]
    assert entries[0]["legibility"] > 0.5 > entries[1]["legibility"] > 0
    assert server.image(outputs, "sheet").width > 3 * 300
    assert outputs["best"]["text"][0].startswith("picture 3 is the best of 3, score 1.000")


def test_best_of_wants_one_list_of_texts(pack):
    best_of = pack("nodes.adapters.words.verify").best_of
    with pytest.raises(ValueError, match="2 different expected texts"):
        best_of([torch.zeros(1, 8, 8, 3)], ["a", "b"], **JUDGING)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(8, 8, 3), "has the shape"),
        (torch.zeros(0, 8, 8, 3), "has the shape"),
        (torch.zeros(1, 8, 8, 2), "has the shape"),
        (torch.full((1, 8, 8, 3), torch.nan), "NaN"),
    ],
)
def test_what_is_no_picture_is_refused(pack, image, message):
    with pytest.raises(ValueError, match=message):
        pack("nodes.adapters.words.verify").verify_images(image, "OPEN", **JUDGING)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_any_channels_are_read(pack, channels):
    grey = torch.from_numpy(np.array(drawn("OPEN LATE").convert("L"))).float()[None, ..., None] / 255
    image = grey.expand(1, 240, 480, channels).clone()
    found = pack("nodes.adapters.words.verify").verify_images(image, "OPEN LATE", **JUDGING)
    assert (found.annotated.shape, found.score, found.passed) == ((1, 240, 480, 3), 1, True)


def retry(server, texts: str, max_tries: int, **inputs) -> dict:
    """The shipped graph with Retry in place of sampler, decoder and image."""
    graph = {key: node for key, node in server.graph().items() if node["class_type"] != "SaveImage"}
    sampler = next(n for n in graph.values() if n["class_type"] == "OvisImageSampler")["inputs"]
    decoder = next(n for n in graph.values() if n["class_type"] == "OvisImageVAEDecode")["inputs"]
    retry = {**sampler, "vae": decoder["vae"], "texts": texts, **JUDGING, "max_tries": max_tries, **inputs}
    graph = {
        k: n for k, n in graph.items() if n["class_type"] not in ("OvisImageSampler", "OvisImageVAEDecode")
    }
    graph["retry"] = {"class_type": "OvisTextRetry", "inputs": retry}
    graph["image"] = {"class_type": "PreviewImage", "inputs": {"images": ["retry", 0]}}
    names = ("seed", "tries", "passed", "report", "json")
    return graph | {name: shown("retry", i) for i, name in enumerate(names, 1)}


@pytest.mark.parametrize(("threshold", "tries", "passed"), [(0.0, "1", "True"), (1.0, "3", "False")])
def test_retry_draws_until_the_text_is_right(server, threshold, tries, passed):
    outputs = server.run(retry(server, "OPEN LATE", 3, seed=7, threshold=threshold))
    assert outputs["tries"]["text"] == [tries]
    assert outputs["passed"]["text"] == [passed]
    found = json.loads(outputs["json"]["text"][0])
    assert [attempt["seed"] for attempt in found["tries"]] == [7, 8, 9][: int(tries)]
    assert outputs["seed"]["text"] == [str(found["seed"])]
    assert max(found["tries"], key=lambda attempt: attempt["score"])["score"] == found["verdict"]["score"]
    assert found["verdict"]["min_legibility"] == 0.0

    alone = server.graph(seed=found["seed"])
    assert server.image(outputs, "image").tobytes() == server.image(server.run(alone)).tobytes()


def test_retry_can_be_interrupted(server):
    graph = retry(server, "OPEN LATE", 64, seed=100, steps=40)
    queued = server.process.queue(graph)
    while not server.get("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(2)  # into one of the tries
    server.post("/interrupt", {})
    entry = server.process.wait(queued)
    assert entry["status"]["status_str"] == "error"
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]


@pytest.fixture
def steps(pack, monkeypatch):
    """Runs Retry's steps with scores given beforehand in place of reading -> outputs, told lines, seeds."""
    adapter = pack("nodes.adapters.words.verify")
    weakest = pack("ovis_core.evaluation.legibility").Weakest
    match = pack("ovis_core.evaluation.text_metrics").Match("x", "x", (0,), 0, 1, 1.0)
    from comfy_execution.caching import to_hashable

    def run(scores, max_tries, seed=0, legibilities=None):
        verdicts = [
            [adapter.Verdict(score, score >= 1, 1.0, [], [], [], {}) for score in batch] for batch in scores
        ]
        if legibilities:
            verdicts = [
                [replace(verdict, passed=False, matches=[match], weakest=(weakest("x", legibility),))]
                for (verdict,), legibility in zip(verdicts, legibilities, strict=True)
            ]
        monkeypatch.setattr(adapter, "verify_all", lambda arrays, texts, **how: verdicts.pop(0))
        inputs = {"texts": "x", **JUDGING, "max_tries": max_tries, "seed": seed}
        inputs |= {"model": ["1", 0], "vae": ["1", 2]}
        told, seeds, images, state, image, best = [], [], {}, None, None, None
        for number in range(100):
            found = adapter.retry("9", inputs, lambda *line: told.append(line), state, image, best)
            if isinstance(found, adapter.Found):
                return found, told, seeds
            nodes = found.graph.values()
            (step,) = (n["inputs"] for n in nodes if n["class_type"] == "OvisTextRetry")
            seeds += [n["inputs"]["seed"] for n in nodes if n["class_type"] == "OvisImageSampler"]
            assert step["vae"] == ["1", 2]
            image = torch.full((len(scores[number]), 8, 8, 3), number / 100)
            images[step["image"][0]] = image
            state = json.loads(json.dumps(step["state"]))
            assert to_hashable(state) == to_hashable(step["state"]), "ComfyUI cannot tell states apart"
            best = images.get(step.get("best", [None])[0])
            adapter.GraphBuilder.set_default_prefix(f"9.{number}", 0)
        raise AssertionError("it never ends")

    return run


@pytest.mark.parametrize(
    ("scores", "max_tries", "tries", "winner"),
    [
        ([[0.2], [1.0], [1.0]], 3, 2, 1),
        ([[0.2], [0.9], [0.5]], 3, 3, 1),
        ([[0.9], [0.9], [0.5]], 3, 3, 0),
        ([[1.0]], 1, 1, 0),
        ([[0.0]], 1, 1, 0),
        ([[0.1, 0.3], [0.2, 1.0]], 5, 2, 1),
    ],
)
def test_retry_stops_early_and_keeps_the_best(steps, scores, max_tries, tries, winner):
    found, told, seeds = steps(scores, max_tries, seed=40)
    assert seeds == [40 + i for i in range(tries)]
    assert (found.seed, found.num_tries) == (40 + winner, tries)
    assert found.passed == (max(max(batch) for batch in scores[:tries]) == 1)
    assert found.image.shape == (1, 8, 8, 3)
    assert found.image.mean().item() == pytest.approx(winner / 100)
    assert found.report.startswith(f"seed {40 + winner} of {tries} tries\n")
    assert json.loads(found.json)["num_tries"] == tries
    assert json.loads(found.json)["tries"][0] == {
        "seed": 40,
        "score": max(scores[0]),
        "passed": tries == 1 and found.passed,
        "legibility": 1.0,
    }
    assert [node for _, node in told] == ["9"] * tries
    assert told[0][0].startswith(f"try 1 of {max_tries}, seed 40: ")


def test_of_equal_scores_retry_keeps_the_more_legible(steps):
    found, told, _ = steps([[1.0], [1.0], [0.9]], 3, legibilities=[0.2, 0.4, 0.9])
    assert (found.seed, found.passed) == (1, False)
    assert told[0][0] == "try 1 of 3, seed 0: failed, score 1.000, legibility 0.20"


def test_retry_counts_seeds_round(steps):
    assert steps([[0.0], [0.0]], 2, seed=2**64 - 1)[2] == [2**64 - 1, 0]


def test_retry_says_what_its_sampler_says(server):
    graph = retry(server, "OPEN", 2, cfg=2.0)
    del graph["retry"]["inputs"]["negative"]
    assert "needs a negative conditioning" in server.fail(graph)["exception_message"]
