"""A run's log, curve and sheets."""

import numpy as np
import torch
from PIL import Image

from ovis_core.training.report import Log, draw_curve, save_samples


def test_a_resumed_log_has_each_step_once(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.cut(0)  # of a run that has none yet
    for step in range(6):
        log.write({"step": step, "loss": float("nan") if step == 2 else 1.0 / (step + 1)})
    log.path.write_text(log.path.read_text() + '{"step": 6, "lo')  # killed while writing
    log.cut(4)
    log.write({"step": 4, "loss": 0.5})
    assert [entry["step"] for entry in log.entries()] == [0, 1, 2, 3, 4]
    assert next(entry for entry in log.entries() if entry["step"] == 2)["loss"] is None


def test_the_curve_falls_as_the_loss_does(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step in range(200):
        log.write({"step": step, "loss": 1.0 - step / 200})
    draw_curve(log, tmp_path / "curve.png")
    blue = (np.asarray(Image.open(tmp_path / "curve.png")) == (0x1F, 0x4E, 0x9C)).all(-1)
    first, last = (np.nonzero(blue[:, columns])[0].mean() for columns in (slice(80, 120), slice(780, 820)))
    assert last > first + 200  # rows count downwards


def test_a_sheet_of_samples_holds_every_picture_and_caption(tmp_path):
    colours = torch.eye(3).repeat(2, 1)[:5]
    images = colours[:, :, None, None].expand(-1, -1, 32, 64)
    sheets = []
    for caption in ("", "picture \U000f0000"):  # which no font has
        save_samples(images, [caption] * 5, tmp_path / "sheet.png", columns=2)
        sheets.append(np.asarray(Image.open(tmp_path / "sheet.png")))
    for sheet in sheets:
        seen = [int((sheet == colour).all(-1).sum()) for colour in 255 * np.eye(3)]
        assert seen == [2 * 32 * 64, 2 * 32 * 64, 32 * 64]
    assert (sheets[1] < 128).all(-1).any(), "no captions"
    assert sheets[1].shape[0] > sheets[0].shape[0]
