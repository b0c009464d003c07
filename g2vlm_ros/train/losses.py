"""What is asked of the geometry, as terms to be weighted; all per window, lengths in metres."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from g2vlm_ros.core.config import PATCH_PX
from g2vlm_ros.core.datatypes import Intrinsics
from g2vlm_ros.model.heads import nearest_rotation
from g2vlm_ros.train.config import Loss
from g2vlm_ros.train.forward import RawHeads

EDGE_STEP = 0.08
"""A relative depth step that counts as an edge."""
VISIBLE = 0.05
"""Relative depth difference up to which a point counts as seen from another view."""


class Target(NamedTuple):
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
    raw: RawHeads, target: Target, rays: Tensor, weights: Loss
) -> dict[str, Tensor]:
    """Every geometric term, unweighted."""
    log_z, xy = raw.points[..., 2], raw.points[..., :2]
    scale = best_scale(log_z, target.depth_m)
    emphasis = 1.0 + (weights.object_weight - 1.0) * (target.important | edges(target.depth_m))
    drawn = torch.rand_like(log_z) < weights.pixels
    emphasis = emphasis * drawn
    emphasis = emphasis / emphasis.sum()
    points, metric, ray = _points(xy, log_z, target.depth_m, rays, scale)
    terms = {
        "points": (emphasis * points).sum(),
        "metric": (emphasis * metric).sum(),
        "rays": (drawn * ray).sum() / drawn.sum(),
        "normals": _normals(log_z, target.depth_m, rays),
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


def _normals(log_z: Tensor, depth: Tensor, rays: Tensor) -> Tensor:
    """1 - cosine between surface normals of true rays times depth, at three distances."""
    total = log_z.new_zeros(())
    for stride in (1, 2, 4):
        first = [int(torch.randint(stride, ())) for _ in range(2)]
        at = (..., slice(first[0], None, stride), slice(first[1], None, stride))
        ray = torch.cat((rays, torch.ones_like(rays[..., :1])), -1)[at[1:] + (slice(None),)]
        truth, predicted = depth[at], log_z[at].exp()
        want, smooth = _cross(truth, ray)
        got, _ = _cross(predicted, ray)
        cosine = (F.normalize(got, dim=-1, eps=1e-8) * F.normalize(want, dim=-1, eps=1e-8)).sum(-1)
        total = total + ((1.0 - cosine) * smooth).sum() / smooth.sum().clamp(min=1)
    return total / 3


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
    return torch.linalg.cross(right - corner, below - corner), step < 2 * EDGE_STEP * middle


def _poses(raw: RawHeads, target: Target, scale: Tensor) -> dict[str, Tensor]:
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


def matching_term(features: Tensor, target: Target, rays: Tensor) -> Tensor:
    """Cross-entropy of which patch of the next view shows what a patch of this view shows.

    features (B, N, P, F), unit length. A training-only help: it makes the trunk compare views.
    """
    batch, views, height, width = target.depth_m.shape
    grid = height // PATCH_PX, width // PATCH_PX
    rows = torch.arange(grid[0], device=features.device) * PATCH_PX + PATCH_PX // 2
    columns = torch.arange(grid[1], device=features.device) * PATCH_PX + PATCH_PX // 2
    rows, columns = (g.flatten() for g in torch.meshgrid(rows, columns, indexing="ij"))
    ray = torch.cat((rays, torch.ones_like(rays[..., :1])), -1)[rows, columns]
    points = target.depth_m[:, :, rows, columns, None] * ray
    rotation, place = target.poses[..., :3, :3], target.poses[..., :3, 3]
    world = points @ rotation.transpose(-1, -2) + place[:, :, None]
    following = torch.arange(1, views + 1, device=features.device) % views
    other = (world - place[:, following, None]) @ rotation[:, following]
    focal = 1.0 / (rays[0, 1, 0] - rays[0, 0, 0])
    z = other[..., 2].nan_to_num().clamp(min=1e-3)
    u = (other[..., 0] / z - rays[0, 0, 0]) * focal
    v = (other[..., 1] / z - rays[0, 0, 1]) * focal
    inside = (u > 0) & (u < width - 1) & (v > 0) & (v < height - 1) & (other[..., 2] > 0.1)
    iu, iv = (x.nan_to_num().round().clamp(0, n - 1).long() for x, n in ((u, width), (v, height)))
    b = torch.arange(batch, device=u.device)[:, None, None]
    seen = target.depth_m[b, following[None, :, None], iv, iu]
    visible = inside & ((seen / z - 1).abs() < VISIBLE)
    label = (iv // PATCH_PX) * grid[1] + iu // PATCH_PX
    logits = features @ features[:, following].transpose(-1, -2) / 0.07
    if not bool(visible.any()):
        return features.sum() * 0.0
    return F.cross_entropy(logits[visible].float(), label[visible])
