"""docs/settings.md is what the models say, and `shortlist settings` shows origins and no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shortlist.commands.app import run
from shortlist.settings_page import page, rows, shown_value

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text() == page(), "shortlist settings --page > docs/settings.md"


def test_every_setting_says_what_it_means() -> None:
    assert [row.key for row in rows() if not row.meaning] == []
    assert {"home", "serve.port", "serve.placements.NAME.top_k", "token.admin"} <= {row.key for row in rows()}


def test_values_are_shown_with_their_origin_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shortlist.toml").write_text("[serve]\nport = 1001\npoll_s = 5\n[serve.placements.home]\ntop_k = 5\n")
    monkeypatch.setenv("SHORTLIST_SERVE__PORT", "1002")
    monkeypatch.setenv("SHORTLIST_TOKEN__ADMIN", "open-sesame")
    monkeypatch.setenv("SHORTLIST_REDIS__BUS_URL", "redis://me:pass-word@host:1/0?password=pass-word")
    assert run(["settings", "--json", "--set", "serve.cache_ttl_s=7"]) == 0
    out = capsys.readouterr().out
    assert "open-sesame" not in out
    assert "pass-word" not in out
    found = {one["setting"]: (one["value"], one["from"]) for one in json.loads(out)["settings"]}
    file = str(tmp_path / "shortlist.toml")
    assert found["serve.port"] == (1002, "SHORTLIST_SERVE__PORT")
    assert found["serve.poll_s"] == (5.0, file)
    assert found["serve.placements"] == ("home", file)
    assert found["serve.cache_ttl_s"] == (7, "--set")
    assert found["serve.deadline_ms"] == (500, "default")
    assert found["token.admin"] == ("(hidden)", "SHORTLIST_TOKEN__ADMIN")
    assert found["redis.bus_url"] == ("redis://***@host:1/0?***", "SHORTLIST_REDIS__BUS_URL")


def test_of_a_url_only_place_and_scheme_are_shown() -> None:
    assert shown_value("postgresql://u:p@ss/w@host/db?sslpassword=x") == "postgresql://***@host/db?***"
    assert shown_value("s3://bucket/folder") == "s3://bucket/folder"
