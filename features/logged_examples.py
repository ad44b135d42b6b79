"""Training rows out of what was served: each shown item with its slate, the values that ranked it, and what was done with it.

A join of three logs by id: events quote a `recommendation_id`, slates name the list that they show, the feature log has the list's
values. Rows are weighted by the inverse of the sampling rate. Nothing is recomputed, so what a model learns from these rows is what
it will be given; and there is no row for what was never shown.

Legend: `F` features.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa

from features.activity_store import ActivityStore
from features.errors import FeatureJoinError
from features.paths import DatasetPaths
from features.quiet_duckdb import connect
from features.served import feature_log, slate_log

_SHOWN = """
    SELECT s.recommendation_id, s.at, s.user_id, s.session_id, s.model_version, s.served_from, s.placement, s.assignments,
           s.list_id, 1 / s.sample_rate AS weight, s.item_ids[p + 1] AS item_id, p AS slate_position
    FROM slates s, range(len(s.item_ids)) t(p)
"""


def attributed_events(paths: DatasetPaths, *, since: datetime | None = None, until: datetime | None = None) -> pa.Table:
    """Events that quote a logged slate, with what the slate was.

    Returns:
        `event_id`, `action`, `item_id`, `value`, `timestamp`, `position` (as the client says), `recommendation_id`,
        `slate_position` (null for an item that was not in the slate), `placement`, `assignments`, `model_version`, `list_id`,
        `weight`.
    """
    slates = slate_log(paths.root).read(since=since, until=until)
    columns = ("event_id", "action", "item_id", "value", "timestamp", "position", "recommendation_id")
    events = ActivityStore.of(paths).read(columns, since=since)
    with connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("slates", slates)
        connection.register("events", events)
        return connection.sql(
            f"""WITH shown AS ({_SHOWN})
            SELECT e.*, shown.slate_position, s.placement, s.assignments, s.model_version, s.list_id, 1 / s.sample_rate AS weight
            FROM events e JOIN slates s USING (recommendation_id)
            LEFT JOIN shown ON shown.recommendation_id = e.recommendation_id AND shown.item_id = e.item_id
            ORDER BY e.timestamp, e.event_id"""
        ).to_arrow_table()


def logged_examples(
    paths: DatasetPaths,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    positive: tuple[str, ...] = ("click", "add_to_cart", "purchase"),
) -> pa.Table:
    """One row for each item of each slate whose features were logged.

    Args:
        paths: of the dataset.
        since, until: bounds of the slates' times, both included.
        positive: actions that make a row's label 1.

    Returns:
        The slate's columns, `item_id`, `slate_position`, `weight`, `actions` (list, of events that quote the slate), `label`
        (int8), and one float32 column a feature; a feature that a version lacks is null.

    Raises:
        FeatureJoinError: nothing was logged.
    """
    slates = slate_log(paths.root).read(since=since, until=until)
    lists = feature_log(paths.root).read(until=until)
    if not slates.num_rows or not lists.num_rows:
        raise FeatureJoinError(
            f"no slates with logged features below {paths.root}: serve some answers first, with serve.feature_log_rate above 0"
        )
    events = ActivityStore.of(paths).read(("recommendation_id", "item_id", "action"), since=since)
    with connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in (("slates", slates), ("lists", _values(lists)), ("events", events)):
            connection.register(name, table)
        return connection.sql(
            f"""WITH shown AS ({_SHOWN}),
            done AS (SELECT recommendation_id, item_id, list_sort(list_distinct(list(action))) AS actions FROM events
                     WHERE recommendation_id IS NOT NULL GROUP BY ALL)
            SELECT shown.* EXCLUDE (list_id), coalesce(done.actions, []) AS actions,
                   CAST(len(list_intersect(coalesce(done.actions, []), ?)) > 0 AS TINYINT) AS label,
                   lists.* EXCLUDE (list_id, item_id)
            FROM shown JOIN lists ON shown.list_id = lists.list_id AND shown.item_id = lists.item_id
            LEFT JOIN done ON shown.recommendation_id = done.recommendation_id AND shown.item_id = done.item_id
            ORDER BY shown.at, shown.recommendation_id, shown.slate_position""",
            params=[list(positive)],
        ).to_arrow_table()


def _values(lists: pa.Table) -> pa.Table:
    """One row for each item of each list: `list_id`, `item_id` and a float32 column a feature."""
    blocks = []
    for row in range(lists.num_rows):
        names = lists["feature_names"][row].as_py()
        items = lists["item_ids"][row].as_py()
        matrix = np.asarray(lists["values"][row].values, dtype=np.float32).reshape(len(items), len(names))
        columns = {name: pa.array(matrix[:, f], from_pandas=True) for f, name in enumerate(names)}
        blocks.append(pa.table({"list_id": [lists["list_id"][row].as_py()] * len(items), "item_id": items, **columns}))
    return pa.concat_tables(blocks, promote_options="default")
