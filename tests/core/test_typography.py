"""The typography as a dataset, and the command that writes one."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ovis_core.drawing.fonts import Fonts
from ovis_core.typography import dataset as typography
from ovis_core.typography.rendering import Renderer
from ovis_core.typography.settings import Typography


def test_dataset_has_uint8_pictures_and_captions(fonts):
    dataset = typography.TypographyDataset(5, seed=2, faces=fonts)
    assert len(dataset) == len([*dataset]) == 5
    assert dataset[1]["image"].dtype == torch.uint8
    example = Renderer(faces=fonts)(2, 1)
    assert dataset[1]["caption"] == example.caption
    assert torch.equal(dataset[1]["image"], torch.tensor(np.asarray(example.image)).permute(2, 0, 1))
    assert pickle.loads(pickle.dumps(dataset))[1]["caption"] == example.caption
    with pytest.raises(IndexError):
        dataset[5]


def test_sizes_are_known_before_drawing(fonts, everything):
    renderer = Renderer(everything, fonts)
    assert (
        {renderer(0, index).image.size for index in range(1, 30, 3)} == {renderer.size_of(1)} == {(192, 96)}
    )


@pytest.fixture
def command(fonts, monkeypatch):
    monkeypatch.setattr(Fonts, "of_style", lambda self, wanted: fonts)

    def command(*arguments):
        typography.main([str(argument) for argument in arguments])

    return command


def test_command_writes_pictures_captions_and_a_contact_sheet(command, fonts, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text('{"languages": {"zh": 1}}', "utf-8")
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    command("--out", out, "--count", 9, "--seed", 4, "--config", settings, "--contact-sheet", sheet)
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text("utf-8").splitlines()]
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:06d}.png" for i in range(9)),
        "captions.jsonl",
    ]
    renderer = Renderer(Typography(languages={"zh": 1}), fonts)
    for index, line in enumerate(lines):
        example = renderer(4, index)
        assert line["caption"] == example.caption
        assert line["texts"] == list(example.texts)
        assert (np.asarray(example.image) == np.asarray(Image.open(out / line["file_name"]))).all()
    width, height = Image.open(sheet).size
    assert 8 * 128 < width < 8 * 136
    assert 2 * 128 < height < 2 * 140


def test_command_refuses_what_cannot_be_done(command, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "bad.json").write_text("{")
    for arguments, sentence in (
        (("--out", tmp_path / "full", "--count", 1), "is not an empty folder"),
        (("--out", tmp_path / "a", "--count", 0), "at least 1 is needed"),
        (("--out", tmp_path / "a", "--count", 1, "--config", tmp_path / "none"), "No such file"),
        (("--out", tmp_path / "a", "--count", 1, "--config", tmp_path / "bad.json"), "error: "),
    ):
        with pytest.raises(SystemExit, match=sentence):
            command(*arguments)
    assert not (tmp_path / "a").exists()


def test_captions_are_written_whole_or_not_at_all(fonts, tmp_path, monkeypatch):
    monkeypatch.setattr(typography, "describe", lambda example: {}[example.caption])
    with pytest.raises(KeyError):
        typography.write_dataset(tmp_path / "out", Renderer(faces=fonts), 3, 0)
    assert not (tmp_path / "out" / "captions.jsonl").exists()
