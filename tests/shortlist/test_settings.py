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
        ({}, ("redis.bus_url=http://x",), "setting 'redis.bus_url'.*redis://, rediss:// or unix://$"),
        ({}, ("redis.features_url=redis+cluster://x:1",), "setting 'redis.features_url'.*must begin with"),
        ({}, ("redis.cache_url=x:6379",), "setting 'redis.cache_url'.*or redis\\+cluster://$"),
        ({}, ("control.url=foo://x",), "setting 'control.url'.*SQLAlchemy"),
        ({}, ("control.url=nothing",), "setting 'control.url'.*SQLAlchemy"),
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


@pytest.mark.parametrize("key", ["control.url", "redis.bus_url"])
def test_a_password_in_a_wrong_url_is_not_shown(key: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings((f"{key}=foo://me:open-sesame@host/x",), environ={}, folder=tmp_path)
    assert "open-sesame" not in str(refused.value)


def test_urls_of_the_stores(tmp_path: Path) -> None:
    given = ("redis.cache_url=redis+cluster://h:1", "redis.bus_url=rediss://h:2/0", "control.url=sqlite:////tmp/x.db")
    settings = load_settings(given, environ={}, folder=tmp_path)
    assert (settings.redis.cache_url, settings.control.url) == ("redis+cluster://h:1", "sqlite:////tmp/x.db")


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
