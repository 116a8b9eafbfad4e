"""What errors say when they quote others."""

from seesaw.engine.values.errors import MOST_CHARS, ConfigError


def test_what_a_config_error_quotes_is_bounded_and_printable() -> None:
    assert str(ConfigError("é is no size: use 4GiB")) == "é is no size: use 4GiB"
    assert str(ConfigError("\x1b[2J a\ud800b\n")) == r"\x1b[2J a\ud800b\n"
    long = str(ConfigError("no " + "x" * 10**6 + " here: use another"))
    assert long.startswith("no xxx") and long.endswith("x here: use another") and len(long) < MOST_CHARS + 10
