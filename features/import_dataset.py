"""Importing a dataset: files in any known format into catalogue and activity store, by the writer that live events use.

Owns the sequence: read and judge every row (the bad ones go to the rejects file), then the catalogue and the schema, then the
events, user group by user group in bounded memory. Nothing is written before the whole file has been judged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.catalogue_tables import CatalogueRows, catalogue_rows
from features.errors import EventError, ImportFormatError
from features.events import ACTIONS, UNKNOWN_ACTION
from features.histories import FileTraits
from features.import_catalogue import ItemsTransaction, write_catalogue
from features.import_events import Progress, write_events
from features.import_report import ImportReport, import_notes, most_common, unused_note
from features.importers.columns import FOLDER, INTERACTION_ALIASES, check_mapping, choose_columns
from features.importers.detect import open_source
from features.importers.rows import judge
from features.importers.source import RawBatch, RawDataset
from features.paths import DatasetPaths
from features.rejects import Rejects
from features.row_buffer import RowBuffer


def import_dataset(
    source: str,
    paths: DatasetPaths,
    catalogue: Catalogue,
    *,
    fmt: str = "auto",
    mapping: Mapping[str, str] | None = None,
    default_action: str = "view",
    extra_actions: Collection[str] = (),
    items_transaction: ItemsTransaction | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ImportReport:
    """Import files into a dataset; importing the same again adds nothing.

    Args:
        source: path of a folder or file, or the name of a public dataset.
        paths: where the dataset lives.
        catalogue: of the same dataset.
        fmt: `auto`, `movielens`, `sequences`, `csv` or `parquet`.
        mapping: canonical name -> column of the file.
        default_action: action of interactions that have neither action nor value.
        extra_actions: actions that are known beside the built-in ones.
        progress: told how far it is.

    Raises:
        DatasetNotFoundError: neither such a path nor such a name.
        ImportFormatError: the files cannot be read, lack a required column, or hold no valid interaction.
        EventError: the default action is not known.
        StoreError: the stores refuse.
    """
    mapping = dict(mapping or {})
    check_mapping(mapping)
    known = (*ACTIONS, *extra_actions)
    if default_action not in known:
        raise EventError(f"default action {default_action!r} is not known; use one of {', '.join(known)}", "action")
    raw = open_source(source, fmt, cache=paths.home / "downloads", mapping=mapping)
    return import_raw(
        raw,
        paths,
        catalogue,
        mapping=mapping,
        default_action=default_action,
        extra_actions=extra_actions,
        items_transaction=items_transaction,
        progress=progress,
        source=source,
    )


def import_raw(
    raw: RawDataset,
    paths: DatasetPaths,
    catalogue: Catalogue,
    *,
    source: str,
    mapping: Mapping[str, str] | None = None,
    default_action: str = "view",
    extra_actions: Collection[str] = (),
    items_transaction: ItemsTransaction | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ImportReport:
    """Import what a reader opened; see `import_dataset`.

    Args:
        source: how to call the files in errors.
    """
    mapping = dict(mapping or {})
    started_at = datetime.now(UTC)
    transaction = items_transaction or catalogue.store.begin
    chosen = _interaction_columns(raw, mapping, source)
    with Rejects(paths.rejects, started_at) as rejects, RowBuffer(paths.root / "scratch") as buffer:
        traits, has_times, has_values = _read(raw, chosen, default_action, buffer, rejects, progress)
        if not buffer.rows:
            raise ImportFormatError(_nothing_valid(source, rejects))
        old = catalogue.schema()
        sides: dict[str, CatalogueRows | None] = {}
        for side, table in (("item", raw.items), ("user", raw.users)):
            known = old.item_attributes if side == "item" else old.user_attributes
            sides[side] = (
                None
                if table is None
                else catalogue_rows(
                    table,
                    "item" if side == "item" else "user",
                    mapping=mapping,
                    known=known,
                    rejects=rejects,
                )
            )
        write_catalogue(
            sides,
            old,
            paths,
            catalogue,
            has_times=has_times,
            has_values=has_values,
            items_transaction=transaction,
            progress=progress,
        )
        counts = write_events(buffer, traits, paths, started_at, frozenset({*ACTIONS, *extra_actions}), progress)
    listed = set() if sides["item"] is None else set(sides["item"].table["item_id"].to_pylist())
    with transaction() as connection:
        catalogue.inside(connection).add_missing_items(sorted(counts.items - listed))
    told = (note for rows in sides.values() if rows is not None for note in rows.notes)
    used = set(chosen.values())
    unused = tuple(column for column in raw.columns if column not in used)
    unused_told = unused_note(Path(source).name, unused)
    outdated = ActivityStore.of(paths).flagged(UNKNOWN_ACTION, extra_actions) if extra_actions else {}
    notes = (*raw.notes, *unused_told, *told, *import_notes(counts, listed, rejects, outdated, has_times=has_times))
    return ImportReport(
        dataset=paths.dataset,
        users=counts.users,
        items=len(counts.items),
        interactions=counts.interactions,
        catalogue_items=len(listed | counts.items),
        duplicates=counts.repeated + counts.stored_before,
        rejected=rejects.count,
        rejected_path=str(rejects.path) if rejects.path else None,
        unused_columns=unused,
        notes=notes,
    )


def _interaction_columns(raw: RawDataset, mapping: Mapping[str, str], source: str) -> dict[str, str]:
    """The interactions' columns by canonical name. A mapped column may stand in the items or users file instead."""
    elsewhere = {name for table in (raw.items, raw.users) if table is not None for name in table.table.column_names}
    meant = dict(raw.meanings)
    for canonical, column in mapping.items():
        if column in raw.columns and canonical in INTERACTION_ALIASES:
            meant[canonical] = column
        elif column not in elsewhere:
            meant[canonical] = column  # stands nowhere: refused below, with what there is
    return choose_columns(
        raw.columns,
        INTERACTION_ALIASES,
        required=[("user_id", "session_id"), ("item_id",)],
        mapping=meant,
        what=f"{Path(source).name} ({raw.format})",
        hint=FOLDER,
    )


def _read(
    raw: RawDataset, chosen: Mapping[str, str], default_action: str, buffer: RowBuffer, rejects: Rejects, progress: Progress
) -> tuple[FileTraits, bool, bool]:
    first: int | None = None
    has_positions = has_times = has_values = False
    done = 0
    for batch in raw.interactions():
        for bad in batch.bad_rows:
            rejects.add(batch.file, bad.number, bad.reason, bad.text)
        judged = judge(batch.table, chosen, default_action)
        _reject_rows(batch, judged.rejected.tolist(), judged.reasons, rejects)
        rows = judged.rows
        if rows.num_rows:
            earliest = pc.min(rows["time_us"]).as_py()
            first = earliest if first is None else first if earliest is None else min(first, earliest)
            has_positions |= rows["position"].null_count < rows.num_rows
            has_values |= rows["value"].null_count < rows.num_rows
            known = pc.and_(pc.is_valid(rows["time_us"]), pc.invert(pc.fill_null(rows["timestamp_imputed"], False)))
            has_times |= bool(pc.any(known).as_py())
            buffer.add(rows)
        done += batch.table.num_rows + len(batch.bad_rows)
        progress("reading", done, raw.expected_rows)
    return FileTraits(first, has_positions), has_times, has_values


def _reject_rows(batch: RawBatch, rows: list[int], reasons: list[str], rejects: Rejects) -> None:
    if not rows:
        return
    contents = batch.table.take(pa.array(rows)).to_pylist()
    for row, reason, content in zip(rows, reasons, contents, strict=True):
        rejects.add(batch.file, int(batch.row_numbers[row]), reason, content)


def _nothing_valid(source: str, rejects: Rejects) -> str:
    if not rejects.count:
        return f"{source} has no interactions: there is nothing to import"
    return (
        f"{source} has no valid interaction: all {rejects.count:,} rows were rejected ({most_common(rejects)}); see {rejects.path}"
    )
