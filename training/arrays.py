"""Named arrays in one safetensors file, read back as memory maps so that processes on a machine share the pages.

The format is safetensors' own (https://github.com/huggingface/safetensors, "Format"): 8 bytes of header length, a JSON header
with dtype, shape and offsets, then the raw bytes. Its Python reader copies; the map below does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from training.errors import BundleError

AnyArray = npt.NDArray[np.generic]

DTYPES: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
"""safetensors' names of the types that we store."""


def save_arrays(path: Path, arrays: Mapping[str, AnyArray]) -> None:
    """Write `arrays` to one safetensors file."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(path))


def map_arrays(path: Path, *, copy_on_write: bool = False) -> dict[str, AnyArray]:
    """The arrays of a safetensors file as memory maps; pages are read when touched.

    Args:
        path: of the file.
        copy_on_write: what is written goes to a page of this process's own, for torch, which takes no read-only memory; otherwise
            the arrays are read-only.

    Raises:
        BundleError: the file is missing or is not a safetensors file of known types.
    """
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > path.stat().st_size:
                raise ValueError("header is longer than the file")
            header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        arrays: dict[str, AnyArray] = {}
        for name, entry in header.items():
            shape = tuple(int(length) for length in entry["shape"])
            dtype = np.dtype(DTYPES[entry["dtype"]])
            if 0 in shape:  # nothing to map, and mmap refuses empty ranges
                arrays[name] = np.empty(shape, dtype=dtype)
            else:
                offset = 8 + header_bytes + int(entry["data_offsets"][0])
                mode: Literal["c", "r"] = "c" if copy_on_write else "r"
                # A plain view of the map: numpy's own class runs Python at every indexing.
                arrays[name] = np.asarray(np.memmap(path, dtype=dtype, mode=mode, offset=offset, shape=shape))
        return arrays
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path.name} cannot be read as a safetensors file ({error}); fetch the bundle again") from error


def non_finite(path: Path) -> list[str]:
    """Names of the arrays of a safetensors file that hold a NaN or an infinity."""
    return [name for name, array in map_arrays(path).items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
