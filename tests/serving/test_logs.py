"""Log lines are JSON with the request's id."""

from __future__ import annotations

import json
import logging
import os
import sys
import time

import pytest

from serving.logs import KEPT_DAYS, LOGGER, JsonLines, log_to_file


def test_a_line_is_one_json_object_with_what_was_told() -> None:
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        record = logging.LogRecord(LOGGER, logging.ERROR, __file__, 1, "failed: %s", ("é",), sys.exc_info())
    record.request_id, record.status = "r-1", 500
    line = JsonLines("gateway-7").format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["request_id"], told["status"]) == ("failed: é", "r-1", 500)
    assert told["process"] == "gateway-7"
    assert "broken" in told["error"]
    assert told["at"].endswith("+00:00")


def test_a_traceback_is_plain_text_where_ray_serve_has_replaced_print(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.logging_utils import redirected_print

    monkeypatch.setattr("builtins.print", redirected_print)  # as in each of its replicas
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord(LOGGER, logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    told = json.loads(JsonLines("gateway-7").format(record))["error"]
    assert told.startswith("Traceback (most recent call last):\n  File ")
    assert told.endswith("\nValueError: broken")


def test_lines_go_to_the_home(make_config) -> None:
    config, logger = make_config(), logging.getLogger(LOGGER)
    before = list(logger.handlers)
    try:
        log_to_file(config, "test")
        logger.info("hello", extra={"version": "3"})
        (line,) = (config.home / "logs" / "test.jsonl").read_text().splitlines()
        assert json.loads(line)["version"] == "3"
    finally:
        for handler in set(logger.handlers) - set(before):
            logger.removeHandler(handler)
            handler.close()


def test_files_that_nobody_writes_to_any_more_are_removed(make_config) -> None:
    config = make_config()
    folder = config.home / "logs"
    folder.mkdir(parents=True)
    names = ("retriever-1.jsonl", "retriever-1.jsonl.1", "retriever-2.jsonl", "supervisor.log")
    for name in names:
        (folder / name).touch()
        if name != "retriever-2.jsonl":
            os.utime(folder / name, (0, time.time() - (KEPT_DAYS + 1) * 86_400))
    log_to_file(config, "retriever-3")
    logging.getLogger(LOGGER).handlers.pop()
    assert sorted(file.name for file in folder.iterdir()) == ["retriever-2.jsonl", "supervisor.log"]


def test_what_a_quiet_process_says_after_its_file_was_removed_is_kept(make_config) -> None:
    config, logger = make_config(), logging.getLogger(LOGGER)
    log_to_file(config, "gateway-1")
    mine = logger.handlers[-1]
    try:
        logger.info("started")
        file = config.home / "logs" / "gateway-1.jsonl"
        os.utime(file, (0, time.time() - (KEPT_DAYS + 1) * 86_400))
        log_to_file(config, "retriever-2")
        logger.handlers.pop()
        assert not file.exists()
        logger.info("in trouble")
        assert [json.loads(line)["message"] for line in file.read_text().splitlines()] == ["in trouble"]
    finally:
        logger.removeHandler(mine)
        mine.close()
