"""Imported by each of Ray's workers before it takes work (`RAY_preload_python_modules`); imports only in a standby.

A worker that runs trials or a proxy must not pay for what replicas need: the mark in the environment tells them apart.
"""

from __future__ import annotations

import importlib
import os

MARK = "SHORTLIST_STANDBY"
"""Variable in the environment of replicas' processes: the home of their stack."""
OF_REPLICAS = ("ray.serve._private.replica", "serving.retriever_replica", "serving.shadow_replica", "features.store")
"""What a version's replica imports, seconds of it: Ray Serve's side of it, ours, and Feast, which opens in the background."""

if MARK in os.environ:
    for name in OF_REPLICAS:
        importlib.import_module(name)
