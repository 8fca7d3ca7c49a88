"""The emulator's page in Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.browser import Browser, browser
from tests.live.account import Account, account, multi_model
from tests.live.stack import toy


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with account(tmp_path_factory.mktemp("w")) as made:
        yield made


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as made:
        yield made
        assert made.problems == []


def test_an_endpoint_is_watched_and_invoked(aws: Account, tab: Browser, tmp_path: Path) -> None:
    """It appears by itself. The form's call loads the model, whose name then stands at the instance."""
    aws.put("homes/first.tar.gz", toy(tmp_path, "echo", "first"))
    tab.open(f"{aws.platform.url}/")
    tab.see("document.querySelector('main h1')?.textContent === 'Overview'")

    aws.endpoint("homes", multi_model("homes"))
    tab.see("document.querySelector('nav a[title=homes]')?.click() ?? true")
    tab.see("document.querySelector('[data-status=InService]') && document.querySelector('invoke-form form')")
    tab.run("document.querySelector('[name=model]').value = 'first.tar.gz'")
    tab.run("document.querySelector('[name=body]').value = '[1, 2]'")
    tab.run("document.querySelector('invoke-form button').click()")

    assert tab.see("document.querySelector('[data-answer]')?.textContent") == "200"
    assert "[1, 2]" in tab.run("document.querySelector('.answer pre').textContent").replace("\n", " ")
    assert tab.see("document.querySelector('.chips li')?.textContent") == "first.tar.gz"
    assert "calls 1" in tab.see("document.querySelector('[data-metric^=Calls] line-chart canvas') && document.querySelector('[data-metric^=Calls] line-chart').ariaLabel || document.querySelector('[data-metric^=Calls] line-chart')?.getAttribute('aria-label')")
    tab.run("document.querySelector('[name=model]').value = 'none.tar.gz'")
    tab.run("document.querySelector('invoke-form button').click()")
    assert tab.see("document.querySelector('[data-answer].bad')?.textContent") == "400"
