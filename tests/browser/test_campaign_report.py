"""The campaign client's report.html, opened from its folder as whoever gets it would."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_model
from PIL import Image
from playwright.sync_api import expect

EVIL = "<img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def report(browser, tmp_path_factory):
    """The page of four rows, one in each state, and what it has complained about."""
    campaign = tiny_model.import_by_path("campaign_client", tiny_model.ROOT / "workflows/api/campaign.py")
    folder = tmp_path_factory.mktemp("a #1 100%")
    journal = campaign.Journal(folder / "journal.jsonl", "")
    jobs = [campaign.Job(i, {"headline": EVIL, "夜市": f"{i}"}, journal, {}) for i in (1, 2, 3, 4)]
    for job, status in zip(jobs, campaign.FINAL, strict=False):
        files = [] if status == "failed" else [f"pictures/{status} #1%.png"]
        for file in files:
            (folder / "pictures").mkdir(exist_ok=True)
            Image.new("RGB", (64, 32), "red").save(folder / file)
        job.tell(status, files=files, text=EVIL)
    args = {"out": folder, "title": None, "rows": Path("rows.csv"), "workflow": Path("w.json"), "set": []}
    campaign.write_reports(SimpleNamespace(**args, verify="1:x"), {}, jobs)
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((folder / "report.html").as_uri())
    yield page
    assert complaints == []
    page.close()


def test_the_report_shows_what_the_table_says_and_runs_nothing_of_it(report):
    expect(report.locator(".total")).to_have_text(
        "1 of 4 verified, 1 not: row 2, 1 failed: row 3, 1 still waiting"
    )
    expect(report.locator("figure").first.locator("dd").first).to_have_text(EVIL)
    assert report.title().startswith("a #1 100%")
    assert report.evaluate(
        "[...document.images].filter(image => image.src).map(image => image.naturalWidth)"
    ) == [
        64,
        64,
    ]


def test_the_report_filters_by_state_and_prints_without_its_buttons(report):
    for state in ("made", "unverified", "failed", "waiting"):
        report.get_by_text(f"{state} 1", exact=True).click()
        expect(report.locator("figure:visible")).to_have_class([state])
    report.get_by_text("all 4", exact=True).click()
    expect(report.locator("figure:visible")).to_have_count(4)
    report.emulate_media(media="print")
    expect(report.locator("label:visible")).to_have_count(0)
    expect(report.locator("figure:visible")).to_have_count(4)
    report.emulate_media(media="screen")


def test_a_click_enlarges_a_picture_and_arrows_go_on(report):
    large = report.locator("dialog img")
    report.locator("a.picture").first.click()
    expect(large).to_have_attribute(
        "src", report.locator("a.picture img").first.evaluate("image => image.src")
    )
    assert large.bounding_box()["width"] > 500
    report.keyboard.press("ArrowRight")
    expect(large).to_have_attribute(
        "src", report.locator("a.picture img").last.evaluate("image => image.src")
    )
    report.keyboard.press("Escape")
    expect(large).to_be_hidden()
