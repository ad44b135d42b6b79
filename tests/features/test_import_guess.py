"""What an importer makes of files that do not say what they are: columns, delimiters, headers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.errors import ImportFormatError
from features.importers.guess import guess_columns
from features.importers.text import TextForm, open_path, sniff, stream

Written = Callable[[str, str | bytes], Path]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\t1\t878887116\n196\t377\t1\t878887117\n",
         {"user_id": "column1", "item_id": "column2", "value": "column3", "timestamp": "column4"}),
        ("when,who,what,did\n2020-01-01,ann,x1,view\n2020-01-02,bob,x2,purchase\n2020-01-03,ann,x3,view\n",
         {"user_id": "who", "item_id": "what", "timestamp": "when", "action": "did"}),
        ("Customer ID,Product ID,Stars\nc1,p1,4\nc2,p2,5\n", {"user_id": "Customer ID", "item_id": "Product ID", "value": "Stars"}),
        ("visitorid,event,itemid,timestamp\n1,view,9,1433221332117\n2,addtocart,8,1433224214164\n",
         {"user_id": "visitorid", "item_id": "itemid", "timestamp": "timestamp", "action": "event"}),
        ("user_id,item_id,time\n1,2,12.5\n1,3,13.5\n", {"user_id": "user_id", "item_id": "item_id"}),
    ],
)  # fmt: skip
def test_columns_are_guessed_by_names_and_content(written: Written, content: str, expected: dict[str, str]) -> None:
    guess = guess_columns(written("a.csv", content))
    assert {name: column for name, column in guess.mapping.items() if name != "value" or "value" in expected} == expected
    assert guess.complete
    assert set(guess.confidence) == set(guess.reasons) == set(guess.mapping)
    assert all(0 < sure <= 1 for sure in guess.confidence.values())
    assert guess.sample.num_rows <= 5


def test_files_without_a_header_are_guessed_and_the_guess_is_told(home: Any, written: Written) -> None:
    report = home.import_(written("u.csv", "196,242,3,881250949\n186,302,3,891717742\n22,377,1,878887116\n"))
    assert (report.users, report.items, report.interactions) == (3, 3, 3)
    assert home.events().value.tolist() == [3.0, 3.0, 1.0]
    assert any("no header; columns were guessed" in note and "user_id=column1" in note for note in report.notes)


def test_a_guess_without_ids_is_incomplete(written: Written) -> None:
    guess = guess_columns(written("a.csv", "height,width\n1.5,2.5\n2.5,3.5\n"))
    assert not guess.complete
    with pytest.raises(ImportFormatError, match="no file"):
        guess_columns(Path("/nowhere.csv"))


def test_sniffing_names_delimiter_and_header(written: Written) -> None:
    assert sniff(open_path(written("a", "a;b\n1;2\n")), "a") == TextForm(";", ("a", "b"))
    assert sniff(open_path(written("b", "x,y\nx,z\n")), "b").has_header
    assert not sniff(open_path(written("c", "x,x\nx,z\n")), "c").has_header


# ---- by name


def test_double_separators_across_reads(written: Written) -> None:
    path = written("a.dat", "".join(f"user{n}::item{n}\n" for n in range(3000)))
    form = TextForm("::", ("user_id", "item_id"), has_header=False, quoted=False)
    table = pa.concat_tables([batch.table for batch in stream(lambda: _Drip(path.read_bytes()), "a.dat", form)])
    assert table["item_id"].to_pylist() == [f"item{n}" for n in range(3000)]


class _Drip(io.BytesIO):
    """A file that gives few bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(17 if size is None or size < 0 or size > 17 else size)
