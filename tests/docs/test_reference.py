"""The reference page says what the declarations say."""

from __future__ import annotations

from docs.reference import PAGE, page


def test_the_page_of_options_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.reference"
