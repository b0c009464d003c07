# SPDX-License-Identifier: Apache-2.0
"""What is asked of the geometry, as terms to be weighted; all per window, lengths in metres."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from g2vlm_ros.checkpoint.config import PATCH_PX
from g2vlm_ros.demo.train.batched_model import RawHeads
from g2vlm_ros.demo.train.config import Loss
from g2vlm_ros.model.heads import nearest_rotation
from g2vlm_ros.records import Intrinsics

EDGE_STEP = 0.08
"""A relative depth step that counts as an edge."""
VISIBLE = 0.05
"""Relative depth difference up to which a point counts as seen from another view."""
HIDDEN = -100
"""Label of a patch that the other view does not show."""
SLOPE_STEPS = (1, 2, 4)
"""Distances in pixels over which slopes of the depth are compared."""
SHOWN = 0.06
"""Share of a cell from which on what fills it shall be named."""


class GeometryTarget(NamedTuple):
    """Ground truth of B windows of N views."""

    depth_m: Tensor
    """(B, N, H, W)."""
    important: Tensor
    """bool (B, N, H, W): pixels on things; edges are found from the depth."""
    poses: Tensor
    """(B, N, 4, 4) in the frame of view 0."""


def true_rays(camera: Intrinsics, device: torch.device) -> Tensor:
    """(H, W, 2): x and y of the ray with z = 1 through each pixel centre."""
    u = torch.arange(camera.width_px, device=device, dtype=torch.float32)
    v = torch.arange(camera.height_px, device=device, dtype=torch.float32)
    x, y = (u - camera.cx_px) / camera.fx_px, (v - camera.cy_px) / camera.fy_px
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)


def geometry_terms(
    raw: RawHeads, target: GeometryTarget, rays: Tensor, weights: Loss
) -> dict[str, Tensor]:
    """Every geometric term, unweighted."""
    log_z, xy = raw.points[..., 2], raw.points[..., :2]
    scale = best_scale(log_z, target.depth_m)
    emphasis = 1.0 + (weights.object_weight - 1.0) * (target.important | edges(target.depth_m))
    sample = torch.rand_like(log_z) < weights.pixels
    emphasis = emphasis * sample
    emphasis = emphasis / emphasis.sum()
    points, metric, ray = _points(xy, log_z, target.depth_m, rays, scale)
    terms = {
        "points": (emphasis * points).sum(),
        "metric": (emphasis * metric).sum(),
        "rays": (sample * ray).sum() / sample.sum(),
        "normals": _normals(log_z, target.depth_m, rays),
        "slopes": _slopes(log_z - target.depth_m.log()),
    }
    return terms | _poses(raw, target, scale)


def best_scale(log_z: Tensor, depth: Tensor) -> Tensor:
    """(B,) detached: the factor on the prediction that centres the log depth ratio."""
    ratio = depth.log() - log_z
    return ratio.detach().flatten(1)[:, ::3].median(dim=1).values.exp()


def _points(
    xy: Tensor, log_z: Tensor, depth: Tensor, rays: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """L1 of the points relative to their depth, scaled and as they are, and L1 of the rays.

    Per pixel. The depth is compared as a logarithm: |z/d - 1| would pull all depths towards zero,
    since it charges too far more than too near, and a detached scale would let them go there.
    """
    reach = 1.0 + rays.abs().sum(-1)
    metric = (log_z - depth.log()) * reach
    aligned = metric + scale.log()[:, None, None, None] * reach
    return aligned.abs(), metric.abs(), (xy - rays).abs().sum(-1)


def edges(depth: Tensor) -> Tensor:
    """bool like depth: a neighbour is nearer or farther by more than EDGE_STEP."""
    log = depth.log()
    out = torch.zeros_like(depth, dtype=torch.bool)
    across = (log[..., :, 1:] - log[..., :, :-1]).abs() > EDGE_STEP
    down = (log[..., 1:, :] - log[..., :-1, :]).abs() > EDGE_STEP
    out[..., :, 1:] |= across
    out[..., :, :-1] |= across
    out[..., 1:, :] |= down
    out[..., :-1, :] |= down
    return out


def _slopes(off: Tensor) -> Tensor:
    """L1 of the differences of log depth between pixels a few apart, edges included.

    off (..., H, W): errors of the log depth. It makes edges sharp, where the other terms are
    content with the middle of a smear.
    """
    total = off.new_zeros(())
    for step in SLOPE_STEPS:
        total = total + (off[..., :, step:] - off[..., :, :-step]).abs().mean()
        total = total + (off[..., step:, :] - off[..., :-step, :]).abs().mean()
    return total / len(SLOPE_STEPS)


def _normals(log_z: Tensor, depth: Tensor, rays: Tensor) -> Tensor:
    """1 - cosine between surface normals of true rays times depth, at a random distance."""
    stride = 2 ** int(torch.randint(3, ()))
    first = [int(torch.randint(stride, ())) for _ in range(2)]
    at = (..., slice(first[0], None, stride), slice(first[1], None, stride))
    ray = torch.cat((rays, torch.ones_like(rays[..., :1])), -1)[at[1:] + (slice(None),)]
    truth, predicted = depth[at], log_z[at].exp()
    want, smooth = _cross(truth, ray)
    estimate, _ = _cross(predicted, ray)
    cosine = (F.normalize(estimate, dim=-1, eps=1e-8) * F.normalize(want, dim=-1, eps=1e-8)).sum(
        -1
    )
    return ((1.0 - cosine) * smooth).sum() / smooth.sum().clamp(min=1)


def _cross(depth: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """Unscaled normals (..., h-1, w-1, 3) of a depth map, and where no edge crosses."""
    points = depth[..., None] * ray
    corner, right, below = (
        points[..., :-1, :-1, :],
        points[..., :-1, 1:, :],
        points[..., 1:, :-1, :],
    )
    middle = depth[..., :-1, :-1]
    step = torch.maximum(
        (depth[..., :-1, 1:] - middle).abs(), (depth[..., 1:, :-1] - middle).abs()
    )
    a, b = (right - corner).unbind(-1), (below - corner).unbind(-1)
    # torch.linalg.cross is slow along a last axis of three.
    cross = [a[i - 2] * b[i - 1] - a[i - 1] * b[i - 2] for i in range(3)]
    return torch.stack(cross, -1), step < 2 * EDGE_STEP * middle


def _poses(raw: RawHeads, target: GeometryTarget, scale: Tensor) -> dict[str, Tensor]:
    """Rotation of each view, raw and made orthogonal, and its place; view 0 is the frame."""
    want = target.poses[..., :3, :3]
    rows = F.normalize(raw.rotation9.unflatten(-1, (3, 3)), dim=-1, eps=1e-6)
    chordal = (rows - want).square().sum((-1, -2))
    turned = nearest_rotation(raw.rotation9.flatten(0, 1)).unflatten(0, want.shape[:2])
    chordal = chordal + 0.5 * (turned - want).square().sum((-1, -2)).add(1e-6).sqrt()
    place = scale[:, None, None] * raw.translation - target.poses[..., :3, 3]
    metric = raw.translation - target.poses[..., :3, 3]
    return {
        "rotation": chordal.mean(),
        "translation": (place.abs().sum(-1) + 0.5 * metric.abs().sum(-1)).mean(),
    }


def grid_points(target: GeometryTarget, rays: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, rows * columns, 3): points (m) in the middles of a grid, in the frame of view 0."""
    sides = (
        ((torch.arange(n, device=rays.device) + 0.5) * size / n).long()
        for n, size in zip(grid, target.depth_m.shape[-2:], strict=True)
    )
    rows, columns = (part.flatten() for part in torch.meshgrid(*sides, indexing="ij"))
    ray = torch.cat((rays, torch.ones_like(rays[..., :1])), -1)[rows, columns]
    points = target.depth_m[:, :, rows, columns, None] * ray
    rotation, place = target.poses[..., :3, :3], target.poses[..., :3, 3]
    return points @ rotation.transpose(-1, -2) + place[:, :, None]


def places_term(places: Tensor, world: Tensor) -> Tensor:
    """L1 of predicted patch middles (B, N, P, 3) in the frame of view 0, relative to the window.

    A training-only help, as the paper's head of global points: every patch, not only every view,
    must know how its view stands to view 0.
    """
    size = world.norm(dim=-1).flatten(1).mean(1)[:, None, None, None]
    return ((places - world) / size).abs().mean()


class Matches(NamedTuple):
    """Which patch of another view shows what a patch shows."""

    other: Tensor
    """int64 (N,): the other view of each view."""
    label: Tensor
    """int64 (B, N, P): the patch there."""
    visible: Tensor
    """bool (B, N, P): whether it is seen there at all."""


def matches(target: GeometryTarget, rays: Tensor, world: Tensor, other: Tensor) -> Matches:
    """From ground truth; world as from `grid_points`, other (N,) a view for each view."""
    batch, _, height, width = target.depth_m.shape
    rotation, place = target.poses[..., :3, :3], target.poses[..., :3, 3]
    points = (world - place[:, other, None]) @ rotation[:, other]
    focal = 1.0 / (rays[0, 1, 0] - rays[0, 0, 0])
    z = points[..., 2].nan_to_num().clamp(min=1e-3)
    u = (points[..., 0] / z - rays[0, 0, 0]) * focal
    v = (points[..., 1] / z - rays[0, 0, 1]) * focal
    inside = (u > 0) & (u < width - 1) & (v > 0) & (v < height - 1) & (points[..., 2] > 0.1)
    iu, iv = (x.nan_to_num().round().clamp(0, n - 1).long() for x, n in ((u, width), (v, height)))
    b = torch.arange(batch, device=u.device)[:, None, None]
    true_depth = target.depth_m[b, other[None, :, None], iv, iu]
    visible = inside & ((true_depth / z - 1).abs() < VISIBLE)
    return Matches(other, (iv // PATCH_PX) * (width // PATCH_PX) + iu // PATCH_PX, visible)


def matching_term(queries: Tensor, keys: Tensor, matches: Matches) -> Tensor:
    """Cross-entropy of which patch of the other view shows what a patch of this view shows.

    queries and keys (B, N, P, F), scaled so that their products are logits. A training-only help:
    it makes the trunk compare views.
    """
    logits = (queries @ keys[:, matches.other].transpose(-1, -2)).flatten(0, 2).float()
    label = torch.where(matches.visible, matches.label, HIDDEN).flatten()
    total = F.cross_entropy(logits, label, ignore_index=HIDDEN, reduction="sum")
    return total / matches.visible.sum().clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean where the mask is True; 0 where it nowhere is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def looking_term(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of where tokens look, logits (..., T), and where they should (sums to 1).

    A training-only help: to tell anything, a token must find what it is about. mask (...): the
    tokens that are to.
    """
    off = -(target * logits.float().log_softmax(-1)).sum(-1)
    return off.mean() if mask is None else masked_mean(off, mask)


def same_place(queries: Tensor, keys: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Logits (B, N, S, N * P) of cells for patches, and how each cell is covered by patches.

    queries (B, N, S, D) of square views of S cells, keys (B, N, P, D) of the same views in a grid
    of patches (rows, columns).
    """
    views, side = queries.shape[1], round(queries.shape[2] ** 0.5)
    share = _covered(views, side, grid, queries.device)
    logits = torch.einsum("bnsd,bmpd->bnsmp", queries, keys).flatten(3)
    return logits, share


@lru_cache(maxsize=64)
def _covered(views: int, side: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """(N, S, N * P): how each cell of each view is covered by the patches of all."""
    share = torch.kron(overlap(side, grid[0]), overlap(side, grid[1]))
    return torch.einsum("nm,sp->nsmp", torch.eye(views), share).flatten(2).to(device)


def naming_term(logits: Tensor, cells: Tensor, classes: Tensor) -> Tensor:
    """What is seen in each cell, in words: logits (B, N, S, K), cells and classes as in `Batch`.

    Binary cross-entropy, summed over the words. A training-only help: the encoder of the images
    learns names and colours before the language can use them.
    """
    labels = (cells @ classes[:, None] > SHOWN).float()
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1).mean()


def whereabouts_term(guess: Tensor, points: Tensor, mask: Tensor | None = None) -> Tensor:
    """L1 of directions and of logarithms of distances: guess (..., 4), points (..., 3) in metres.

    A training-only help: states of the semantic expert know where in space they are at. mask
    (...): those that are anywhere.
    """
    distance = points.norm(dim=-1, keepdim=True).clamp(min=0.05)
    truth = torch.cat((points / distance, distance.log()), -1)
    off = (guess.float() - truth).abs().sum(-1)
    return off.mean() if mask is None else masked_mean(off, mask)


def overlap(cells: int, patches: int) -> Tensor:
    """(cells, patches): how much of each of equal parts of a line lies on each of others."""
    ends = torch.arange(cells + 1)[:, None] / cells, torch.arange(patches + 1)[None] / patches
    low = torch.maximum(ends[0][:-1], ends[1][:, :-1])
    high = torch.minimum(ends[0][1:], ends[1][:, 1:])
    return (high - low).clamp(min=0) * cells
