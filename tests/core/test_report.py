"""A run's log, curve and sheets."""

import numpy as np
import torch
from PIL import Image

from ovis_core.training.report import Log, draw_curve, draw_sheet


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


def test_a_sheet_holds_every_picture(tmp_path):
    colours = torch.eye(3).repeat(2, 1)[:5]
    images = colours[:, :, None, None].expand(-1, -1, 32, 64)
    draw_sheet(images, [f"picture {i}" for i in range(5)], tmp_path / "sheet.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * (48 + 4) + 4, 2 * (64 + 4) + 4, 3)
    for i, colour in enumerate(colours):
        row, column = i // 2 * (48 + 4) + 4 + 16, i % 2 * (64 + 4) + 4 + 32
        assert (sheet[row, column] == (colour * 255).byte().numpy()).all()
    assert (sheet[4 + 32 : 4 + 48, 4:-4] < 128).any(), "no captions"
