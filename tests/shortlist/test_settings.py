"""Settings: sources, precedence, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from shortlist.settings import SettingsError, load_settings


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    (tmp_path / "shortlist.toml").write_text("[serve]\nport = 1001\ndeadline_ms = 100\ncache_ttl_s = 5\n")
    environ = {"SHORTLIST_SERVE__PORT": "1002", "SHORTLIST_SERVE__DEADLINE_MS": "200"}
    settings = load_settings(("serve.port=1003",), environ=environ, folder=tmp_path)
    assert (settings.serve.port, settings.serve.deadline_ms, settings.serve.cache_ttl_s) == (1003, 200, 5)


@pytest.mark.parametrize(
    ("environ", "overrides", "message"),
    [
        ({"SHORTLIST_SERVE__PROT": "1"}, (), "unknown setting 'serve.prot'; known here: .*port"),
        ({}, ("speed=1",), "unknown setting 'speed'; known here: .*serve"),
        ({}, ("serve.port=abc",), "setting 'serve.port'.*'abc'"),
        ({}, ("serve.port=70000",), "setting 'serve.port'"),
        ({}, ("serve.port",), "must look like section.key=value"),
        ({"SHORTLIST_CONFIG": "/nowhere/x.toml"}, (), "does not exist"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    environ: dict[str, str], overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(overrides, environ=environ, folder=tmp_path)


def test_secrets_in_the_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "shortlist.toml").write_text('[token]\nadmin = "x"\n')
    with pytest.raises(SettingsError, match="SHORTLIST_TOKEN__ADMIN"):
        load_settings(environ={}, folder=tmp_path)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    settings = load_settings(environ={"SHORTLIST_TOKEN__ADMIN": "open-sesame"}, folder=tmp_path)
    assert "open-sesame" not in repr(settings)


@pytest.mark.parametrize("given", ["wishlist, share", ["wishlist", "share"]])
def test_extra_actions_are_a_list_or_text_with_commas(given: object, tmp_path: Path) -> None:
    if isinstance(given, str):
        settings = load_settings(environ={"SHORTLIST_EVENTS__EXTRA_ACTIONS": given}, folder=tmp_path)
    else:
        (tmp_path / "shortlist.toml").write_text('[events]\nextra_actions = ["wishlist", "share"]\n')
        settings = load_settings(environ={}, folder=tmp_path)
    assert settings.events.extra_actions == ("wishlist", "share")
