"""Sparse coding, the state of the art before networks: anchored neighborhood regression (A+).

R. Timofte, V. De Smet, L. Van Gool, "A+: Adjusted Anchored Neighborhood Regression for Fast
Super-Resolution", ACCV 2014. A dictionary of low-resolution patch features is learned by sparse
coding (scikit-learn); each of its atoms is an anchor with a linear map, ridge-regressed from the
closest training patches, from features to the part of the original that bicubic lacks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from srstream.errors import UsageError, WeightsError
from srstream.quality import Plane, luma_bt601
from trainer.config_file import Section, read_config
from trainer.data.degrade import SCALE, bicubic_resize, downscale
from trainer.data.pairs import crop_to_multiple, find_pictures, read_rgb
from trainer.judge.evaluate import Enlarged, LowResolution, Upscaler, enlarge_planes
from trainer.state import write_atomically

PATCH_LR = 3
"""Side of a patch, in low-resolution pixels."""

PATCH = PATCH_LR * SCALE

GRADIENT = np.array([-1.0, 0.0, 1.0])
SECOND = np.array([1.0, 0.0, -2.0, 0.0, 1.0]) / 2
"""The features: both filters along rows and columns of the enlarged picture (Zeyde, 2010)."""

Matrix = NDArray[np.float32]


class SparseConfig(Section):
    """The learning of dictionaries: all of `configs/sparse.toml`."""

    model: Literal["sparse"] = "sparse"
    seed: int = Field(default=1, ge=0, lt=2**32, description="seed of patches and dictionary")
    num_atoms: int = Field(default=512, ge=2, le=8192, description="size of the dictionary")
    num_patches: int = Field(
        default=300_000, ge=1000, le=5_000_000, description="drawn from all pictures together"
    )
    num_dictionary_patches: int = Field(
        default=60_000, ge=500, le=1_000_000, description="how many of them the dictionary sees"
    )
    num_nonzero: int = Field(
        default=3, ge=1, le=16, description="atoms per patch while the dictionary is learned"
    )
    num_neighbours: int = Field(
        default=2048, ge=16, le=16384, description="training patches for each anchor's map"
    )
    ridge: float = Field(default=0.1, gt=0, description="regularization of the regression")
    variance_kept: float = Field(default=0.9999, gt=0, lt=1, description="by the features' PCA")
    quiet_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="share of the patches that vary least: at unit length they are noise",
    )


@dataclass(frozen=True)
class Dictionaries:
    """The learned dictionaries. d features after PCA, n atoms."""

    components: Matrix
    """(d, 4 PATCH^2), from raw features; their mean is negligible and not subtracted."""
    atoms: Matrix
    """(n, d), of unit length."""
    maps: Matrix
    """(n, PATCH^2, d)."""
    recipe: str

    @property
    def num_parameters(self) -> int:
        return int(self.components.size + self.atoms.size + self.maps.size)


def load_sparse_config(path: Path) -> SparseConfig:
    """Return the checked config, or raise `ConfigError` with the mistakes."""
    return read_config(path, SparseConfig)


def learn_dictionaries(config: SparseConfig, folder: Path) -> Dictionaries:
    """Learn dictionaries from a folder of pictures; this takes minutes.

    Raises:
        UsageError: scikit-learn is missing, or the pictures hold too few patches.
    """
    try:
        from sklearn.decomposition import PCA, MiniBatchDictionaryLearning
    except ImportError as error:
        raise UsageError(
            "sparse coding needs scikit-learn; pip install 'srstream[train]'"
        ) from error
    random = np.random.default_rng(config.seed)
    paths = find_pictures(folder)
    features, missing = _training_patches(paths, config, random)
    if len(features) * (1.0 - config.quiet_share) <= config.num_neighbours:
        raise UsageError(
            f"{folder}: its pictures yield {len(features)} patches; that leaves fewer "
            f"than num_neighbours = {config.num_neighbours}"
        )
    pca = PCA(config.variance_kept, svd_solver="full").fit(features[: 20 * features.shape[1]])
    components = pca.components_.astype(np.float32)
    reduced = features @ components.T
    lengths = np.linalg.norm(reduced, axis=1, keepdims=True)
    lively = lengths[:, 0] > np.quantile(lengths, config.quiet_share)
    lengths = lengths[lively]
    directions, missing = reduced[lively] / lengths, missing[lively] / lengths

    learner = MiniBatchDictionaryLearning(
        config.num_atoms,
        batch_size=1024,
        max_iter=5,
        transform_algorithm="omp",
        transform_n_nonzero_coefs=config.num_nonzero,
        random_state=config.seed,
        n_jobs=1,
    )
    atoms = learner.fit(directions[: config.num_dictionary_patches]).components_
    atoms = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)
    maps = np.stack([_anchor_map(atom, directions, missing, config) for atom in atoms])
    recipe = (
        f"A+ with {config.num_atoms} atoms of {len(components)} features, "
        f"{len(features):,} patches of {len(paths)} pictures, {config.num_neighbours} neighbours, "
        f"ridge {config.ridge:g}, seed {config.seed}"
    )
    return Dictionaries(components, atoms, maps.astype(np.float32), recipe)


def sparse_upscaler(dictionaries: Dictionaries) -> Upscaler:
    """Apply the nearest anchor's map to each luma patch, averaging overlaps; bicubic on chroma."""

    def upscale(lr: LowResolution) -> Enlarged:
        height, width = (side * SCALE for side in lr.shape)
        bicubic = enlarge_planes(lr.yuv_3HW, height, width)
        return Enlarged(bicubic[0] + _missing(bicubic[0], dictionaries), bicubic[1:])

    return upscale


def save_dictionaries(dictionaries: Dictionaries, path: Path) -> None:
    """Write dictionaries as `.npz`, without a pickle."""
    import io

    buffer = io.BytesIO()
    np.savez(
        buffer,
        components=dictionaries.components,
        atoms=dictionaries.atoms,
        maps=dictionaries.maps,
        about=np.frombuffer(json.dumps({"recipe": dictionaries.recipe}).encode(), np.uint8),
    )
    write_atomically(path, buffer.getvalue())


def load_dictionaries(path: Path) -> Dictionaries:
    """Read what `save_dictionaries` wrote, or raise `WeightsError`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            return Dictionaries(
                arrays["components"], arrays["atoms"], arrays["maps"], about["recipe"]
            )
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: holds no dictionaries ({error})") from error


def _training_patches(
    paths: list[Path], config: SparseConfig, random: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """Return shuffled features (N, 4 PATCH^2) and what bicubic lacks (N, PATCH^2)."""
    features, missing = [], []
    share = -(-config.num_patches // len(paths))
    for path in paths:
        try:
            rgb = crop_to_multiple(read_rgb(path), SCALE)
        except UsageError:
            continue  # the trainer's data loader names such pictures
        if min(rgb.shape[:2]) < 4 * PATCH:
            continue
        luma = luma_bt601(rgb)
        bicubic = bicubic_resize(luma_bt601(downscale(rgb, SCALE)), *luma.shape)
        rows, columns = (side // SCALE - PATCH_LR + 1 for side in luma.shape)
        chosen = random.choice(rows * columns, min(share, rows * columns), replace=False)
        places = np.stack(np.unravel_index(chosen, (rows, columns)), axis=1) * SCALE
        features.append(_patches_at(_feature_planes(bicubic), places))
        missing.append(_patches_at((luma - bicubic)[None].astype(np.float32), places))
    if not features:
        raise UsageError("no picture is large enough for a patch")
    order = random.permutation(sum(map(len, features)))
    return np.concatenate(features)[order], np.concatenate(missing)[order]


def _feature_planes(plane_HW: Plane) -> Matrix:
    """Return (4, H, W): first and second derivatives along x and y."""
    one = np.ones(1)
    plane = plane_HW.astype(np.float32)
    kernels = [(GRADIENT, one), (one, GRADIENT), (SECOND, one), (one, SECOND)]
    return np.stack([cv2.sepFilter2D(plane, cv2.CV_32F, x, y) for x, y in kernels])


def _patches_at(planes_CHW: Matrix, places: NDArray[np.intp]) -> Matrix:
    """Return (N, C PATCH^2) of the patches whose first samples lie at `places` (N, 2)."""
    windows = np.lib.stride_tricks.sliding_window_view(planes_CHW, (PATCH, PATCH), axis=(1, 2))
    chosen = windows[:, places[:, 0], places[:, 1]]  # (C, N, PATCH, PATCH)
    return np.ascontiguousarray(chosen.swapaxes(0, 1)).reshape(len(places), -1)


def _anchor_map(atom: Matrix, directions: Matrix, missing: Matrix, config: SparseConfig) -> Matrix:
    """Return (PATCH^2, d): ridge regression over the training patches nearest an atom (eq. 7)."""
    closeness = np.abs(directions @ atom)
    nearest = np.argpartition(-closeness, config.num_neighbours - 1)[: config.num_neighbours]
    x, y = directions[nearest], missing[nearest]
    gram = x.T @ x + config.ridge * np.eye(x.shape[1], dtype=np.float32)
    return np.asarray(np.linalg.solve(gram, x.T @ y).T, np.float32)


def _missing(bicubic_HW: Plane, dictionaries: Dictionaries) -> Plane:
    """Return what the maps add to a bicubic enlargement."""
    height, width = bicubic_HW.shape
    if min(height, width) < PATCH:
        return np.zeros_like(bicubic_HW)
    rows, columns = (side // SCALE - PATCH_LR + 1 for side in (height, width))
    planes = _feature_planes(bicubic_HW)
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for row in range(rows):
        places = np.stack([np.full(columns, row), np.arange(columns)], axis=1) * SCALE
        reduced = _patches_at(planes, places) @ dictionaries.components.T
        anchors = np.abs(reduced @ dictionaries.atoms.T).argmax(axis=1)
        made = np.einsum("npd,nd->np", dictionaries.maps[anchors], reduced)
        for column, patch in enumerate(made.reshape(-1, PATCH, PATCH)):
            top, left = row * SCALE, column * SCALE
            total[top : top + PATCH, left : left + PATCH] += patch
            count[top : top + PATCH, left : left + PATCH] += 1
    return total / np.maximum(count, 1)
