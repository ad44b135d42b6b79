"""Importing a dataset: files in any known format into catalogue and activity store, by the writer that live events use.

Owns the sequence: read and judge every row (the bad ones go to the rejects file), then the catalogue and the schema, then the
events, user group by user group in bounded memory. Nothing is written before the whole file has been judged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.activity_store import ActivityStore
from features.attributes import merge_attributes
from features.catalogue import Catalogue
from features.catalogue_tables import CatalogueRows, catalogue_rows
from features.errors import EventError, ImportFormatError
from features.events import ACTIONS
from features.histories import FileTraits, to_events
from features.importers.columns import INTERACTION_ALIASES, check_mapping, choose_columns
from features.importers.detect import open_source
from features.importers.rows import judge
from features.importers.source import RawBatch, RawDataset
from features.paths import DatasetPaths
from features.rejects import Rejects
from features.row_buffer import RowBuffer
from features.schema import DatasetSchema

Progress = Callable[[str, int, int | None], None]
"""Called with the stage (`reading`, `catalogue`, `writing`), rows done and rows expected (None where unknown)."""


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Args:
        dataset: its name.
        users, items, interactions: of the file's valid distinct interactions.
        catalogue_items: distinct items that the file lists or that occur in its interactions.
        duplicates: interactions repeated in the file or stored before.
        rejected: rows left out because they are bad.
        rejected_path: CSV of them with reasons; None where there are none.
        notes: things worth knowing, one sentence each; not part of `to_dict`.
    """

    dataset: str
    users: int
    items: int
    interactions: int
    catalogue_items: int
    duplicates: int
    rejected: int
    rejected_path: str | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as commands print it."""
        fields = asdict(self)
        fields.pop("notes")
        return fields


def import_dataset(
    source: str,
    paths: DatasetPaths,
    catalogue: Catalogue,
    *,
    fmt: str = "auto",
    mapping: Mapping[str, str] | None = None,
    default_action: str = "view",
    extra_actions: Collection[str] = (),
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
    progress: Progress = lambda stage, done, total: None,
) -> ImportReport:
    """Import what a reader opened; see `import_dataset`.

    Args:
        source: how to call the files in errors.
    """
    mapping = dict(mapping or {})
    started_at = datetime.now(UTC)
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
        _write_catalogue(sides, old, paths, catalogue, has_times=has_times, has_values=has_values, progress=progress)
        counts = _write_events(buffer, traits, paths, started_at, frozenset({*ACTIONS, *extra_actions}), progress)
    listed = set() if sides["item"] is None else set(sides["item"].table["item_id"].to_pylist())
    bare = counts.items - listed
    catalogue.add_missing_items(sorted(bare))
    notes = list(raw.notes)
    if listed and bare:
        notes.append(
            f"{len(bare):,} items occur in the activity and are not listed with attributes (one is {min(bare)!r}): they are "
            "recommended from activity alone; list them in the items file and import again to give them a title and categories"
        )
    if counts.single_event_users:
        notes.append(
            f"{counts.single_event_users:,} of {counts.users:,} users have one interaction: kept for training, "
            "too short to be held out for testing"
        )
    if counts.erased:
        notes.append(
            f"{counts.erased:,} interactions were left out: their users were erased after they happened; what those do since then "
            "is kept"
        )
    if rejects.count:
        notes.append(f"{rejects.count:,} rows were rejected ({_most_common(rejects)}); see {rejects.path}")
    if not has_times:
        notes.append("no interaction has a time: file order is taken as history order; window features stay empty")
    return ImportReport(
        dataset=paths.dataset,
        users=counts.users,
        items=len(counts.items),
        interactions=counts.interactions,
        catalogue_items=len(listed | counts.items),
        duplicates=counts.repeated + counts.stored_before,
        rejected=rejects.count,
        rejected_path=str(rejects.path) if rejects.path else None,
        notes=tuple(notes),
    )


@dataclass
class _Counts:
    users: int
    items: set[str]
    interactions: int
    repeated: int
    stored_before: int
    erased: int
    single_event_users: int


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


def _write_catalogue(
    sides: Mapping[str, CatalogueRows | None],
    old: DatasetSchema,
    paths: DatasetPaths,
    catalogue: Catalogue,
    *,
    has_times: bool,
    has_values: bool,
    progress: Progress,
) -> None:
    items, users = sides["item"], sides["user"]
    new = not catalogue.exists()
    schema = replace(
        old,
        item_attributes=merge_attributes(old.item_attributes, items.attributes if items else ()),
        user_attributes=merge_attributes(old.user_attributes, users.attributes if users else ()),
        has_times=has_times or (old.has_times and not new),
        has_values=has_values or old.has_values,
    )
    catalogue.save_schema(schema)
    schema.save(paths.schema_file)
    done = 0
    for rows, upsert in ((items, catalogue.upsert_items), (users, catalogue.upsert_users)):
        if rows is not None:
            done += upsert(_not_erased(rows.table, paths))
            progress("catalogue", done, None)


def _not_erased(profiles: pa.Table, paths: DatasetPaths) -> pa.Table:
    """Profiles of people who were not erased; a profile has no time, so a file's may be of before."""
    if "user_id" not in profiles.column_names:
        return profiles
    erased = ActivityStore.of(paths).erased(profiles["user_id"].to_pylist())
    keep = pc.invert(pc.is_in(profiles["user_id"], value_set=pa.array(sorted(erased), pa.string())))
    return profiles.filter(keep) if erased else profiles


def _write_events(
    buffer: RowBuffer,
    traits: FileTraits,
    paths: DatasetPaths,
    started_at: datetime,
    known_actions: frozenset[str],
    progress: Progress,
) -> _Counts:
    store = ActivityStore.of(paths)
    counts = _Counts(0, set(), 0, 0, 0, 0, 0)
    done = 0
    progress("writing", 0, buffer.rows)
    for group in buffer.groups():
        events, repeated = to_events(group, traits, dataset=paths.dataset, received_at=started_at, known_actions=known_actions)
        lengths = pc.value_counts(pc.coalesce(events["user_id"], events["session_id"]).combine_chunks()).field("counts")
        counts.users += len(lengths)
        counts.single_event_users += int(pc.sum(pc.equal(lengths, 1)).as_py() or 0)
        counts.items.update(pc.unique(events["item_id"]).to_pylist())
        counts.interactions += events.num_rows
        counts.repeated += repeated
        stored = store.append(events)
        counts.stored_before += stored.duplicates
        counts.erased += stored.erased
        done += group.num_rows
        progress("writing", done, buffer.rows)
    return counts


def _nothing_valid(source: str, rejects: Rejects) -> str:
    if not rejects.count:
        return f"{source} has no interactions: there is nothing to import"
    return (
        f"{source} has no valid interaction: all {rejects.count:,} rows were rejected ({_most_common(rejects)}); see {rejects.path}"
    )


def _most_common(rejects: Rejects) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in rejects.reasons.most_common(3))
