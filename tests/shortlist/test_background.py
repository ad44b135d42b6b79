"""Activity logged in the background against a real HTTP server: nothing lost, nothing twice, bounded, flushed at exit."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shortlist import Client
from shortlist.background import BackgroundEvents, BufferFullError


class Intake:
    """Takes events as the server does: by id once. `trouble` gives the status of coming calls; `lost` ones are taken unanswered."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.stored: Counter[str] = Counter()
        self.trouble: list[int | str] = []
        self.open = threading.Event()
        self.open.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                events = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["events"]
                outer.open.wait(10)
                trouble = outer.trouble.pop(0) if outer.trouble else None
                if isinstance(trouble, int):
                    self.answer(trouble, {"error": {"code": "trouble", "message": "come back"}}, {"Retry-After": "0.05"})
                    return
                bad = [n for n, event in enumerate(events) if event["item_id"] == "bad"]
                ids = [None if n in bad else event["event_id"] for n, event in enumerate(events)]
                outer.batches.append([one for one in ids if one])
                for one in ids:
                    if one is not None and one not in outer.stored:
                        outer.stored[one] += 1
                if trouble == "lost":
                    self.connection.close()
                    self.close_connection = True
                    return
                rejected = [{"index": n, "error": "item_id is bad"} for n in bad]
                self.answer(202, {"accepted": len(events) - len(bad), "duplicates": 0, "rejected": rejected, "event_ids": ids}, {})

            def answer(self, status: int, body: Any, headers: dict[str, str]) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()


@pytest.fixture
def intake() -> Iterator[Intake]:
    intake = Intake()
    yield intake
    intake.open.set()
    intake.http.shutdown()
    intake.http.server_close()
    intake.thread.join()


def test_events_are_sent_in_batches_in_order(intake: Intake) -> None:
    with Client(intake.url) as client, client.background(batch_events=40, linger_s=60) as events:
        ids = [events.log_user_activity("u", f"i{n}", "view") for n in range(100)]
        assert events.flush(10)
        assert (events.pending, events.sent, events.rejected) == (0, 100, 0)
    assert [one for batch in intake.batches for one in batch] == ids
    assert max(map(len, intake.batches)) <= 40
    assert len(intake.batches) <= 5


def test_a_lonely_event_does_not_linger_for_ever(intake: Intake) -> None:
    with Client(intake.url) as client, client.background(linger_s=0.02) as events:
        one = events.log_user_activity("u", "i", "view")
        with events._changed:
            assert events._changed.wait_for(lambda: not events._held, 10)
    assert intake.batches == [[one]]


def test_overload_outages_and_lost_answers_store_every_event_once(intake: Intake) -> None:
    intake.trouble = [429, 503, "lost", 429, "lost", 502]
    with Client(intake.url, timeout=5) as client, client.background(batch_events=10, linger_s=0.01) as events:
        ids = [events.log_user_activity("u", f"i{n}", "view") for n in range(50)]
        assert events.flush(30)
    assert intake.stored == Counter(ids)
    assert sum(map(len, intake.batches)) == 50 + 2 * 10, "the lost batches went out again under the same ids"


def test_a_full_buffer_makes_the_caller_wait_and_then_say_so(intake: Intake) -> None:
    intake.open.clear()
    with Client(intake.url) as client, client.background(max_events=20, batch_events=10, block_s=0.05) as events:
        for n in range(20):
            events.log_user_activity("u", f"i{n}", "view")
        with pytest.raises(BufferFullError, match="20 events wait"):
            events.log_user_activity("u", "one too many", "view")
        intake.open.set()
        assert events.flush(10)
        events.log_user_activity("u", "there is room", "view")
    assert len(intake.stored) == 21


def test_what_the_server_refuses_is_told_and_the_rest_goes_on(intake: Intake) -> None:
    refused: list[tuple[str, str]] = []
    with (
        Client(intake.url) as client,
        client.background(batch_events=3, on_rejected=lambda event, why: refused.append((event["item_id"], why))) as events,
    ):
        for item in ("a", "bad", "b"):
            events.log_user_activity("u", item, "view")
        assert events.flush(10)
        intake.trouble = [401]
        events.log_user_activity("u", "c", "view")
        assert events.flush(10)
        assert (events.sent, events.rejected) == (2, 2)
    assert refused == [("bad", "item_id is bad"), ("c", "come back (trouble)")]


def test_a_closed_buffer_takes_nothing(intake: Intake) -> None:
    with Client(intake.url) as client:
        events = client.background()
        events.close()
        events.close()
        with pytest.raises(RuntimeError, match="closed"):
            events.log_user_activity("u", "i", "view")
        with pytest.raises(ValueError, match="batch_events"):
            BackgroundEvents(client, batch_events=2000)


def test_what_cannot_be_sent_at_the_end_is_said_by_number(caplog: pytest.LogCaptureFixture) -> None:
    with Client("http://127.0.0.1:1") as client, client.background(exit_s=0.1) as events:
        events.log_user_activity("u", "i", "view")
    assert "1 events were not sent" in caplog.text


def test_leaving_the_program_flushes(intake: Intake) -> None:
    code = (
        "import sys; from shortlist import Client; events = Client(sys.argv[1]).background(linger_s=60)\n"
        "for n in range(25): print(events.log_user_activity('u', f'i{n}', 'view'))"
    )
    said = subprocess.run([sys.executable, "-c", code, intake.url], capture_output=True, text=True, check=True, timeout=60).stdout
    assert intake.stored == Counter(said.split())
