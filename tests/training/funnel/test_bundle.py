"""Bundles: what is written is what is read, and what cannot be trusted is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from training.arrays import map_arrays, save_arrays
from training.bundle import BundleManifest, DataFingerprint, fingerprint, open_bundle, seal_bundle
from training.errors import BundleError
from training.interactions import Interactions
from training.pipeline import Pipeline


@pytest.fixture
def bundle(pipeline: Pipeline, world: Interactions, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    prints = fingerprint(world, trained_on="all", includes_test_rows=True)
    pipeline.save(folder, seed=1, fingerprint=prints, metrics={"ndcg@10": 0.5}, ci95={"ndcg@10": (0.4, 0.6)}, git_commit="abc")
    return folder


def test_a_loaded_bundle_answers_as_before(pipeline: Pipeline, bundle: Path) -> None:
    loaded = Pipeline.load(bundle, expected_dataset="planted")
    queries = pipeline.queries_for(["u3", "u7", "nobody"])
    before, after = pipeline.recommend(queries, 15), loaded.recommend(loaded.queries_for(["u3", "u7", "nobody"]), 15)
    np.testing.assert_array_equal(before.item_idx, after.item_idx)
    np.testing.assert_array_equal(before.score, after.score)
    np.testing.assert_array_equal(before.source, after.source)
    assert loaded.items.equals(pipeline.items)
    assert loaded.manifest is not None
    assert loaded.manifest.metrics == {"ndcg@10": 0.5}
    assert loaded.manifest.ci95 == {"ndcg@10": (0.4, 0.6)}
    assert loaded.manifest.fingerprint.trained_on == "all"
    assert loaded.manifest.sources["transition_knn"]["quota"] == 40


def test_no_file_of_a_bundle_is_a_pickle(bundle: Path) -> None:
    suffixes = {path.suffix for path in bundle.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".parquet", ".safetensors", ".txt"}


def test_another_dataset_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="belongs to dataset 'planted', not 'beauty'"):
        Pipeline.load(bundle, expected_dataset="beauty")


@pytest.mark.parametrize("name", ["items.parquet", "funnel.json", "sources/popularity/popularity.safetensors", "users.parquet"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        Pipeline.load(bundle)


def test_a_changed_byte_is_found(bundle: Path) -> None:
    path = bundle / "sources" / "popularity" / "popularity.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match="differs from the hash"):
        Pipeline.load(bundle)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_on_both_sides(bundle: Path, poison: float) -> None:
    path = bundle / "sources" / "popularity" / "popularity.safetensors"
    share = np.array(map_arrays(path)["share"])
    share[3] = poison
    save_arrays(path, {"share": share})
    manifest = json.loads((bundle / "manifest.json").read_text())
    with pytest.raises(BundleError, match="share in sources/popularity"):
        seal_bundle(bundle, open_manifest(bundle))
    manifest["files"]["sources/popularity/popularity.safetensors"] = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="NaN or infinite"):
        open_bundle(bundle)


def open_manifest(folder: Path) -> BundleManifest:
    return BundleManifest.model_validate_json((folder / "manifest.json").read_text())


def test_a_file_added_to_the_weights_is_refused(bundle: Path) -> None:
    (bundle / "sources" / "popularity" / "extra.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="which its manifest does not list"):
        Pipeline.load(bundle)


def test_a_pickle_is_refused(bundle: Path) -> None:
    (bundle / "sources" / "popularity" / "model.pkl").write_bytes(b"")
    with pytest.raises(BundleError, match="may be a pickle"):
        seal_bundle(bundle, open_manifest(bundle))


def test_a_path_outside_the_bundle_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["../secret"] = manifest["files"]["items.parquet"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside the bundle"):
        Pipeline.load(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "has format None"),
        ('{"format_version": 9}', "has format 9"),
        ('{"format_version": 1}', "cannot be read"),
    ],
)
def test_a_bad_manifest_is_one_clear_error(bundle: Path, text: str, message: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        Pipeline.load(bundle)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Pipeline.load(tmp_path)


def test_a_bundle_needs_a_folder_of_its_own(pipeline: Pipeline, bundle: Path) -> None:
    prints = DataFingerprint(events=1, users=1, items=1, sha256="", trained_on="fit", includes_test_rows=False)
    with pytest.raises(BundleError, match="not empty"):
        pipeline.save(bundle, seed=1, fingerprint=prints)


def test_fingerprints_tell_data_apart(world: Interactions) -> None:
    whole = fingerprint(world, trained_on="all", includes_test_rows=True)
    again = fingerprint(world, trained_on="all", includes_test_rows=True)
    part = fingerprint(world.select(world.from_end > 0), trained_on="fit", includes_test_rows=False)
    assert whole == again
    assert whole.sha256 != part.sha256
    assert part.events == whole.events - world.num_users


def test_mapped_arrays_equal_what_was_saved(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "empty": np.empty((0, 5), dtype=np.int64),
        "flags": rng.random(7) < 0.5,
        "b": rng.integers(0, 9, 11).astype(np.int32),
    }
    save_arrays(tmp_path / "x.safetensors", arrays)
    mapped = map_arrays(tmp_path / "x.safetensors")
    assert set(mapped) == set(arrays)
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)


def test_a_damaged_safetensors_file_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(BundleError, match="cannot be read"):
        map_arrays(tmp_path / "x.safetensors")
