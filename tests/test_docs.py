"""The pages of docs/: they build without a network, and their links hold, as README's do."""

import logging
import re
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]


def test_site_builds_and_its_links_hold(tmp_path, caplog):
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=False)
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        build(config)
    assert not caplog.messages
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        # Nothing comes from elsewhere when a page is opened.
        html = page.read_text()
        assert not re.search(r'(?:src|href)="(?:https?:)?//[^"]*\.(?:js|css|woff2?)', html)


def test_links_of_readme_hold():
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\((?!https:)([^)#]+)\)", text)
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target
    assert len(text.splitlines()) < 200
