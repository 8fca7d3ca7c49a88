"""The template of nginx's configuration: named blocks, and values from the settings."""

import pytest

from serve import nginx, settings
from serve.catalog.catalog import Catalog


def test_every_name_of_the_template_is_filled() -> None:
    """With its block or its value."""
    text = nginx.rendered(settings.read({"SERVE_RUN_DIR": "/run/x"}), Catalog([]))
    assert "{{" not in text
    assert text.count("proxy_set_header X-Serve-Tried") == 4  # wherever a web worker is asked
    assert "error_page 418 = @web;" in text


def test_a_block_may_contain_blocks_that_are_defined_before_it() -> None:
    """And values; a name may be used several times."""
    template = "{{block a}}\n    one {{x}};\n{{end}}\n{{block b}}\n    {{a}}\n    two;\n{{end}}\nhttp { {{b}} {{a}} }\n"
    assert nginx._filled(template, {"x": "1"}).split() == ["http", "{", "one", "1;", "two;", "one", "1;", "}"]


def test_an_unknown_name_is_an_error() -> None:
    """A misspelt value must not start nginx."""
    with pytest.raises(KeyError, match="prot"):
        nginx._filled("listen {{prot}};", {"port": "8080"})
