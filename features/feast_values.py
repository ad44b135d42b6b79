"""Forms that Feast wants: frames to write, and protobuf values read."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa


def arrow_frame(table: pa.Table) -> pd.DataFrame:
    """A pandas frame that keeps Arrow's types: plain pandas would turn nullable integers into floats."""
    return table.combine_chunks().to_pandas(types_mapper=pd.ArrowDtype)


def plain_value(value: Any) -> Any:
    """A Feast protobuf value as a Python value, None where it is not set; lists stay protobuf sequences."""
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    found = getattr(value, kind)
    return found.val if kind.endswith("_list_val") else found
