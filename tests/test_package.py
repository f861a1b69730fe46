"""What `comfy node pack` puts into the archive: all that users need, and nothing of the tests."""

import re
import subprocess
from pathlib import PurePosixPath

import tiny_model

ROOT = tiny_model.ROOT
# What ComfyUI reads from a pack, and what README sends its readers to.
SHIPPED = {
    *("__init__.py", "nodes", "ovis_core", "pyproject.toml", "requirements.txt"),
    *("locales", "models", "web", "workflows", "subgraphs"),
    *("README.md", "README.zh.md", "LICENSE", "SECURITY.md", "docs"),
}


def archive() -> set[str]:
    """comfy-cli takes what git tracks, without what .comfyignore names, in gitignore's syntax."""

    def listed(*options: str) -> set[str]:
        command = ["git", "-c", "core.quotePath=false", "ls-files", "-z", "--cached", *options]
        return set(subprocess.check_output(command, cwd=ROOT, text=True).split("\0")) - {""}

    return listed() - listed("--ignored", "--exclude-from=.comfyignore")


def test_archive_holds_what_users_need_and_nothing_else():
    files = archive()
    assert {PurePosixPath(file).parts[0] for file in files} == SHIPPED
    for folder in ("nodes", "ovis_core", "locales", "models", "web", "workflows", "subgraphs"):
        here = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        missing = {file for file in here - files if "__pycache__" not in file}
        assert not missing, "in the working tree but not in the archive"


def test_no_test_or_tool_is_shipped():
    wanted = re.compile(r"(^|/)(tests?|bench|tools|\.ci)/|(^|/)(test_\w+|conftest|dev)\.py$")
    assert [file for file in archive() if wanted.search(file)] == []


def test_files_that_readme_names_are_shipped():
    """Those of its sections for developers aside."""
    users = (ROOT / "README.md").read_text("utf-8").split("## Without ComfyUI")[0]
    named = set(re.findall(r"workflows/api/\w+\.\w+", users))
    assert {"workflows/api/campaign.py", "workflows/api/text_to_image.py"} <= named
    assert named <= archive()


def test_links_of_readme_and_docs_lead_somewhere():
    pages = [*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(pages) > 8
    lost = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not lost


def test_shipped_code_imports_nothing_that_is_not_shipped():
    for file in archive():
        if file.endswith(".py"):
            text = (ROOT / file).read_text("utf-8")
            assert not re.search(r"^\s*(from|import) (tests|tools|dev|tiny_\w+)\b", text, re.M), file
