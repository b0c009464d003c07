# SPDX-License-Identifier: Apache-2.0
"""The kernels in numpy: what each computes, written for reading. They are slow, and the tests'."""

from __future__ import annotations

import cv2
import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3, cross_matrix


def depth_edges(depth, relative_step):
    """bool (..., H, W): pixels whose depth differs from a 4-neighbour by more than the step."""
    edges = np.zeros(depth.shape, bool)
    before, after, every = slice(None, -1), slice(1, None), slice(None)
    for first, second in (
        ((..., before), (..., after)),
        ((..., before, every), (..., after, every)),
    ):
        a, b = depth[first], depth[second]
        step = np.abs(a - b) > relative_step * np.minimum(a, b)
        edges[first] |= step
        edges[second] |= step
    return edges


def valid_points(points, edge_step):
    """bool (N, H, W): finite, in front of the camera, not at a depth step."""
    depth = points[..., 2]
    valid = np.isfinite(points.sum(-1)) & (depth > 0)
    return valid & ~depth_edges(depth, edge_step) if edge_step > 0 else valid


def pack_points(points, colours, confidence, valid, views, affines, stride, least, organised):
    """float32 (M, 5): x, y, z, the bits of 0x00RRGGBB, confidence."""
    clouds = []
    for view, affine in zip(views, affines, strict=True):
        every = (view, slice(None, None, stride), slice(None, None, stride))
        keep = valid[every] & ((confidence[every] >= least) if least > 0 else True)
        place = points[every] @ affine[:, :3].T + affine[:, 3]
        place = np.where(keep[..., None], place, np.float32(np.nan))
        red, green, blue = np.moveaxis(colours[every].astype(np.uint32), -1, 0)
        rgb = (red << 16 | green << 8 | blue).view(np.float32)
        cloud = np.concatenate([place, rgb[..., None], confidence[every][..., None]], -1)
        clouds.append(cloud.reshape(-1, 5) if organised else cloud[keep])
    return np.concatenate(clouds).astype(np.float32)


def keys_of_points(points, size):
    """int64 (n,): 18 bits of block per axis, then 3 bits of cell per axis; -1 out of range."""
    cells = np.floor(points * (1.0 / size))
    inside = (np.abs(cells) < 1 << 20).all(1)
    x, y, z = np.where(inside[:, None], cells, 0).astype(np.int64).T + (1 << 20)
    blocks = (x >> 3 << 18 | y >> 3) << 18 | z >> 3
    return np.where(inside, blocks << 9 | (x & 7) << 6 | (y & 7) << 3 | z & 7, -1)


def cell_sums(keys, weights, positions, colours):
    """{key: (weight, x, y, z, r, g, b, count)}, sums weighted by confidence."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    columns = [np.ones(len(keys)), *positions.T, *colours.T]
    sums = [np.bincount(inverse, weights * column) for column in columns]
    rows = np.stack([*sums, np.bincount(inverse)], 1)
    return dict(zip(distinct.tolist(), rows, strict=True))


def fold(voxels, slots, cells, revision):
    """VOXEL (s,) after CELL (m,) was folded into its slots (m,)."""
    voxels, old = voxels.copy(), voxels[slots]
    new = old["count"] == 0
    total = old["count"] * old["confidence"].astype(np.float64) + cells["weight"]
    share = (cells["weight"] / total).astype(np.float32)[:, None]
    for name in ("position", "colour"):
        mean = (cells[name] / cells["weight"][:, None]).astype(np.float32)
        moved = old[name] + (mean - old[name]) * share
        old[name] = np.rint(moved) if name == "colour" else moved
    seen = old["count"] + cells["count"].astype(np.int64)
    old["confidence"], old["count"] = total / seen, np.minimum(seen, 1000)
    later = new | (cells["stamp_ns"] >= old["stamp_ns"])
    for name in ("stamp_ns", "window"):
        old[name] = np.where(later, cells[name], old[name])
    old["born"][new], old["revision"] = revision, revision
    voxels[slots] = old
    return voxels


def project(points, pinhole):
    """Pixels (..., 2) of points (..., 3) in the optical frame; NaN behind the camera."""
    fx, fy, cx, cy = pinhole
    z = np.where(points[..., 2] > 0, points[..., 2], np.nan)
    return np.stack([fx * points[..., 0] / z + cx, fy * points[..., 1] / z + cy], -1)


def multi_view_confidence(points, j_from_i, pinholes, grid, agreement, edge_step):
    """float32 (N, H, W), by whole arrays, pair by pair."""
    views, height, width, _ = points.shape
    coarse = points[:, ::grid, ::grid]
    total, seen = np.zeros((2, *coarse.shape[:3]), np.float32)
    for i in range(views):
        for j in range(views):
            if i == j or pinholes[j, 0] <= 0:
                continue
            moved = coarse[i] @ j_from_i[j, i, :, :3].T + j_from_i[j, i, :, 3]
            pixel = project(moved, pinholes[j])
            inside = np.isfinite(pixel).all(-1) & (pixel > -0.5).all(-1)
            inside &= (pixel < (width - 0.5, height - 0.5)).all(-1)
            pixel = np.where(inside[..., None], pixel, 0).round().astype(int)
            column, row = np.moveaxis(pixel, -1, 0)
            surface = points[j, row, column, 2]
            error = (moved[..., 2] - surface) / surface
            known = inside & (error <= 3 * agreement)
            total[i] += np.where(known, np.exp(-np.abs(error) / agreement), 0)
            seen[i] += known
    mean = np.where(seen > 0, total / np.maximum(seen, 1), np.float32(np.nan))
    mean[depth_edges(coarse[..., 2], edge_step)] *= 0.5
    return mean.repeat(grid, 1).repeat(grid, 2)[:, :height, :width]


def fusion_factors(points, j_from_i, pinholes, edge_step, tolerance):
    """float32 (N, h, w): factor on each depth of a small grid."""
    views, height, width, _ = points.shape
    surfaces = [
        np.dstack([1 / depth, depth_edges(depth, edge_step)]).astype(np.float32)
        for depth in points[..., 2]
    ]
    factors = np.empty(points.shape[:3], np.float32)
    for i in range(views):
        pull, weight = np.zeros((height, width)), np.ones((height, width))
        for j in range(views):
            if i == j or pinholes[j, 0] <= 0:
                continue
            turned = points[i] @ j_from_i[j, i, :, :3].T
            moved = turned + j_from_i[j, i, :, 3]
            pixel = project(moved, pinholes[j])
            inside = np.isfinite(pixel).all(-1) & (pixel > -0.5).all(-1)
            inside &= (pixel < (width - 0.5, height - 0.5)).all(-1)
            at = np.where(inside[..., None], pixel, 0).astype(np.float32)
            border = cv2.BORDER_REPLICATE
            there = cv2.remap(surfaces[j], at, None, cv2.INTER_LINEAR, borderMode=border)
            with np.errstate(all="ignore"):
                expected = -np.log(there[..., 0] * moved[..., 2])
                slope = turned[..., 2] / moved[..., 2]
            seen = inside & (there[..., 1] == 0) & np.isfinite(expected)
            expected, slope = np.where(seen, expected, 0), np.where(seen, slope, 0)
            counts = np.where(seen, 1 / (1 + (expected / tolerance) ** 2) ** 2, 0)
            pull += counts * slope * expected
            weight += counts * slope**2
        factors[i] = np.exp(pull / weight)
    return factors


def in_camera(points, pose):
    """float32 (n, 3): points of the map as a camera with map_from_camera `pose` has them."""
    return (points - pose[:3, 3].astype(np.float32)) @ pose[:3, :3].astype(np.float32)


def nearest_depth(depth, confidence, least):
    """float32 (H, W): least depth of the 3 x 3 pixels around, 0 where one is unknown."""
    known = np.isfinite(depth) & (depth > 0) & (confidence >= least)
    trusted = np.where(known, depth, np.float32(0))
    around = np.ones((3, 3), np.uint8)
    return cv2.erode(trusted, around, borderType=cv2.BORDER_CONSTANT, borderValue=0.0)


def seen_through(points, nearest, pose, pinhole, slack):
    """bool (n,): points that a ray passed on its way to a surface clearly behind."""
    height, width = nearest.shape
    local = in_camera(points, pose)
    pixel = np.nan_to_num(project(local, np.float32(pinhole)), nan=-9.0)
    inside = (pixel >= -0.5).all(1) & (pixel <= (width - 0.5, height - 0.5)).all(1)
    u, v = np.clip(np.rint(pixel), 0, (width - 1, height - 1)).astype(int).T
    return inside & (nearest[v, u] > local[:, 2] * np.float32(1.05) + np.float32(slack))


def fit_similarity(source, target, weights):
    """(scale, rotation, translation) that minimises sum w |target - T(source)|² (Umeyama)."""
    w = weights / weights.sum()
    a, b = source - w @ source, target - w @ target
    u, singular, vt = np.linalg.svd((b * w[:, None]).T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float(singular @ sign / (w @ (a * a).sum(1)))
    return scale, rotation, w @ target - scale * rotation @ (w @ source)


def fit_view(source, target, weights, ranges, directions, centre, robust_steps, polish_steps):
    """(scale, rotation, translation), hessian, curvature, gradient (n, 7)."""
    base = current = weights / ranges**2
    for _ in range(robust_steps):
        scale, rotation, translation = fit_similarity(source, target, current)
        error = np.linalg.norm(scale * source @ rotation.T + translation - target, axis=1) / ranges
        spread = max(1.4826 * float(np.median(error)), 1e-6)
        current = base / (1.0 + (error / spread) ** 2)
    for last in [False] * polish_steps + [True]:
        moved = scale * source @ rotation.T + translation
        ray = moved - centre
        reach = np.linalg.norm(ray, axis=1)
        unit = ray / reach[:, None]
        log_range, turn = np.log(reach / ranges), unit - directions
        angle = np.linalg.norm(turn, axis=1)
        w_range, c_range = _cauchy(log_range, np.median(np.abs(log_range)) * 1.4826, 1, weights)
        w_turn, c_turn = _cauchy(angle, np.median(angle) / 1.1774, 2, weights)
        motion = np.zeros((len(moved), 3, 7))  # of a point, by the seven unknowns
        x, y, z = moved.T
        motion[:, 0, 1], motion[:, 0, 2], motion[:, 1, 2] = z, -y, x
        motion[:, 1, 0], motion[:, 2, 0], motion[:, 2, 1] = -z, y, -x
        motion[:, :, 3:6], motion[:, :, 6] = np.eye(3), moved
        along = np.einsum("ni,nij->nj", unit, motion)
        hessian, curvature = (
            np.einsum("n,nij,nik->jk", across / reach**2, motion, motion)
            + np.einsum("n,nj,nk->jk", (range_ - across) / reach**2, along, along)
            for range_, across in ((w_range, w_turn), (c_range, c_turn))
        )
        across = turn - unit * (unit * turn).sum(1, keepdims=True)
        pull = unit * (w_range * log_range)[:, None] + across * w_turn[:, None]
        gradient = np.einsum("ni,nij->nj", pull / reach[:, None], motion)
        if last:
            break
        step = np.linalg.lstsq(hessian, -gradient.sum(0), rcond=1e-14)[0]
        turned = cv2.Rodrigues(step[:3])[0]
        translation = np.exp(step[6]) * turned @ translation + step[3:6]
        scale, rotation = scale * np.exp(step[6]), turned @ rotation
    return (scale, rotation, translation), hessian, curvature, gradient


def _cauchy(error, spread, degrees, weights):
    spread = max(2.385 * float(spread), 1e-6)
    squared = (error / spread) ** 2
    robust = 1.0 / (1.0 + squared)
    weighted = weights * robust / spread**2
    return weighted, weighted * (1.0 - 2.0 * robust * squared / degrees)


def covisibility(points, colours, poses, pinholes, step, agreement, nearness, least):
    """(shared, alike, stretch) float64 (N, N)."""
    views, height, width, _ = points.shape
    shared, alike, stretch = np.full((3, views, views), np.nan)
    for j in range(views):
        if pinholes[j, 0] <= 0:
            continue
        shared[j, j] = alike[j, j] = 1.0
        for i in set(range(views)) - {j}:
            own = points[i, ::step, ::step].reshape(-1, 3)
            local = own @ poses[i, :3, :3].T + poses[i, :3, 3]
            pose = poses[j].astype(np.float64)
            moved = (local - pose[:3, 3]) @ pose[:3, :3]
            pixel = np.nan_to_num(project(moved, pinholes[j]), nan=-9.0).round()
            inside = (pixel >= 0).all(1) & (pixel < (width, height)).all(1)
            u, v = np.where(inside[:, None], pixel, 0).astype(int).T
            off = np.log(np.maximum(moved[:, 2], 1e-9) / points[j, v, u, 2])
            near, same = inside & (np.abs(off) < nearness), inside & (np.abs(off) < agreement)
            shared[i, j] = same.mean()
            stretch[i, j] = np.median(off[near]) if near.sum() >= least else np.nan
            a = colours[i, ::step, ::step].mean(-1).reshape(-1)[same]
            b = colours[j, v, u].mean(-1)[same]
            if len(a) >= least and a.std() >= 1 and b.std() >= 1:
                alike[i, j] = np.corrcoef(a, b)[0, 1]
    return shared, alike, stretch


def surfaces(points, poses, reach, step, max_bend):
    """(places, normals) float64 (n, 3) of smooth pixels, in the window's frame."""
    height, width = points.shape[1:3]
    rows = np.arange(reach, height - reach, step)[:, None]
    columns = np.arange(reach, width - reach, step)

    def moved(down, right):
        return points[:, rows + down, columns + right].astype(np.float64)

    middle, left, right, above, below = (
        moved(*by) for by in ((0, 0), (0, -reach), (0, reach), (-reach, 0), (reach, 0))
    )
    normal = np.cross(below - above, right - left)
    length, depth = np.linalg.norm(normal, axis=-1), middle[..., 2]
    bends = [np.abs(a[..., 2] + b[..., 2] - 2 * depth) for a, b in ((left, right), (above, below))]
    good = (length > 0) & np.all([bend < max_bend * depth for bend in bends], axis=0)
    turn = poses[:, :3, :3].astype(np.float64)
    places = np.einsum("nij,nhwj->nhwi", turn, middle) + poses[:, None, None, :3, 3]
    normals = np.einsum("nij,nhwj->nhwi", turn, normal) / length[..., None]
    return places[good], normals[good]


def structure_up(normals, up, gates, soft, open):
    """(up, off_rad, walls) by ever narrower gates."""
    for gate in gates:
        rise = np.arcsin(np.clip(np.abs(normals @ up), 0.0, 1.0))
        flat = rise > np.pi / 4
        off = np.minimum(rise, np.pi / 2 - rise)
        weights = (off < gate) / (1.0 + (off / soft) ** 2)
        walls, floors = (
            (normals[part] * weights[part, None]).T @ normals[part] for part in (~flat, flat)
        )
        still = open * weights.sum() * (np.eye(3) - np.outer(up, up))
        found = np.linalg.eigh(walls - floors + still)[1][:, 0]
        up = found if found @ up > 0 else -found
    return up, off, walls


def pinhole_of_points(points, step):
    """fx, fy, cx, cy of one point map (H, W, 3) by least squares."""
    sample = points[::step, ::step].astype(np.float64)
    rows, columns = np.mgrid[0 : points.shape[0] : step, 0 : points.shape[1] : step]
    (fx, cx), (fy, cy) = (
        np.polyfit((sample[..., axis] / sample[..., 2]).ravel(), pixels.ravel(), 1)
        for axis, pixels in ((0, columns), (1, rows))
    )
    return np.array([fx, fy, cx, cy])


def moved_points(relative, source, target, points, nearest):
    """Points (k, 3) of source views as target views see them, and the turns (k, 3, 3)."""
    pose = relative[target, source]
    seen = np.einsum("kij,kj->ki", pose[:, :3, :3], points) + pose[:, :3, 3]
    seen[:, 2] = np.maximum(seen[:, 2], nearest * points[:, 2])
    return seen, pose[:, :3, :3]


def pose_rows(slope, turn, points, seen):
    """Derivatives of m functionals (k, m, 3) of points as the target sees them: (k, m, 6) by the
    motions of source and target, (k, m) by the logarithm of the depth in the source."""
    away = slope @ turn
    source = np.concatenate([np.cross(points[:, None], away), away], -1)
    target = -np.concatenate([np.cross(seen[:, None], slope), slope], -1)
    return source, target, np.einsum("kmi,ki->km", away, points)


def robust(error, cauchy):
    """Cauchy's weight of errors in standard deviations."""
    return 1 / (1 + (error / cauchy) ** 2)


def track_information(residual, along, pixel, min_px, max_point, cauchy, alike):
    """(k, 2, 2) information of tracks, and the deviations that they show."""
    length = np.maximum(np.linalg.norm(along, axis=1), 1e-9)
    axis = along / length[:, None]
    side = np.stack([-axis[:, 1], axis[:, 0]], 1)
    on, across = (residual * axis).sum(1), (residual * side).sum(1)
    std_px = max(min_px, 1.4826 * np.median(np.abs(across) / pixel))
    far = length >= np.median(length)
    total = 1.4826 * np.median(np.abs(on[far]) / length[far])
    noise = np.median(std_px * pixel[far] / length[far])
    point = np.clip(total**2 - noise**2, 0, max_point**2)
    base = (std_px * pixel) ** 2
    variance = base + point * length**2
    error = np.sqrt(across**2 / base + on**2 / variance) / 1.1774
    weight = robust(error, cauchy) / alike
    information = (weight / variance)[:, None, None] * axis[:, :, None] * axis[:, None]
    information += (weight / base)[:, None, None] * side[:, :, None] * side[:, None]
    return information, (std_px, np.sqrt(point))


def track_errors(field, relative, log_depth, tracks, *, nearest):
    """As the kernel."""
    source, target, points, places, rays, pixel = tracks
    at, share = knot_weights(places, field.size, field.knots)
    points = points * np.exp((log_depth[source[:, None], at] * share).sum(1))[:, None]
    seen, _ = moved_points(relative, source, target, points, nearest)
    return np.linalg.norm(seen[:, :2] / seen[:, 2:] - rays, axis=1) / pixel


def track_equations(
    field, relative, log_depth, tracks, hessian, gradient, *,
    nearest, cauchy, min_px, max_point, pair_std, alike,
):  # fmt: skip
    """Dense Jacobians of all unknowns; what a pair has wrong in common is eliminated last."""
    source, target, points, places, rays, pixel = tracks
    at, share = knot_weights(places, field.size, field.knots)
    each, per_view = np.arange(len(source)), 6 + log_depth.shape[1]
    points = points * np.exp((log_depth[source[:, None], at] * share).sum(1))[:, None]
    seen, turn = moved_points(relative, source, target, points, nearest)
    residual = seen[:, :2] / seen[:, 2:] - rays
    slope = np.zeros((len(seen), 2, 3))
    slope[:, [0, 1], [0, 1]] = 1 / seen[:, 2:]
    slope[:, :, 2] = -seen[:, :2] / seen[:, 2:] ** 2
    by_source, by_target, along = pose_rows(slope, turn, points, seen)
    information, noise = track_information(
        residual, along, pixel, min_px, max_point, cauchy, alike
    )
    jacobian = np.zeros((len(seen), 2, gradient.size))
    for k in range(6):
        jacobian[each, :, per_view * source + k] = by_source[:, :, k]
        jacobian[each, :, per_view * target + k] = by_target[:, :, k]
    for k in range(4):
        jacobian[each, :, per_view * source + 6 + at[:, k]] += along * share[:, k, None]
    for i, j in {*zip(source.tolist(), target.tolist(), strict=True)}:
        pair = (source == i) & (target == j)
        rows = jacobian[pair].reshape(-1, gradient.size)
        known = np.zeros((len(rows), len(rows)))
        for k, block in enumerate(information[pair]):
            known[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = block
        common = np.tile(np.eye(2), (pair.sum(), 1))
        total = common.T @ known @ common + np.eye(2) / pair_std**2
        known -= known @ common @ np.linalg.inv(total) @ common.T @ known
        hessian += rows.T @ known @ rows
        gradient += rows.T @ known @ residual[pair].reshape(-1)
    return noise


def surface_equations(
    field, relative, log_depth, source, target, points, places, maps, cameras, hessian, gradient,
    *, nearest, cauchy, border_px, min_points, min_std, alike,
):  # fmt: skip
    """As the kernel."""
    at, share = knot_weights(places, field.size, field.knots)
    per_view, size = 6 + log_depth.shape[1], np.array(field.size)
    points = points * np.exp((log_depth[source[:, None], at] * share).sum(1))[:, None]
    seen, turn = moved_points(relative, source, target, points, nearest)
    camera = cameras[target]
    pixels = camera[:, :2] * seen[:, :2] / seen[:, 2:] + camera[:, 2:]
    kept = np.flatnonzero(((pixels > border_px) & (pixels < size - border_px - 1)).all(1))
    nearest_px = np.rint(pixels).astype(int)
    kept = kept[maps[target, nearest_px[:, 1].clip(0, size[1] - 1),
                     nearest_px[:, 0].clip(0, size[0] - 1), 3][kept] == 0]  # fmt: skip
    if len(kept) < min_points:
        return 0.0
    source, target, seen, points, turn, camera, pixels, nearest_px, at, share = (
        each[kept]
        for each in (source, target, seen, points, turn, camera, pixels, nearest_px, at, share)
    )
    there, part = knot_weights(pixels, field.size, field.knots)
    values = maps[target, nearest_px[:, 1], nearest_px[:, 0]].astype(np.float64)
    surface = values[:, 0] + (values[:, 1:3] * (pixels - nearest_px)).sum(1)
    surface += (log_depth[target[:, None], there] * part).sum(1)
    residual = np.log(seen[:, 2]) - surface
    slope = np.zeros((len(seen), 1, 3))
    across = values[:, 1:3] * camera[:, :2] / seen[:, 2:]
    slope[:, 0, :2] = -across
    slope[:, 0, 2] = (1 + (across * seen[:, :2]).sum(1)) / seen[:, 2]
    steep = np.maximum(np.linalg.norm(slope[:, 0], axis=1) * seen[:, 2], 1.0)
    error = np.abs(residual) / steep
    spread = 1.4826 * np.median(error)
    std = max(min_std, spread)
    weight = robust(error / std, cauchy) ** 2 / (std * steep) ** 2 / alike
    by_source, by_target, along = pose_rows(slope, turn, points, seen)
    jacobian, each = np.zeros((len(seen), gradient.size)), np.arange(len(seen))
    for k in range(6):
        jacobian[each, per_view * source + k] = by_source[:, 0, k]
        jacobian[each, per_view * target + k] = by_target[:, 0, k]
    for k in range(4):
        jacobian[each, per_view * source + 6 + at[:, k]] += along[:, 0] * share[:, k]
        jacobian[each, per_view * target + 6 + there[:, k]] -= part[:, k]
    weighted = jacobian * weight[:, None]
    hessian += weighted.T @ jacobian
    gradient += weighted.T @ residual
    return spread


def knot_weights(pixels, size, grid):
    """int (n, 4), float64 (n, 4): between which knots pixels (n, 2) lie, how near to each."""
    limits = np.array(grid) - 1
    place = np.clip((pixels + 0.5) / np.array(size) * grid - 0.5, 0, limits)
    first = np.minimum(place.astype(int), limits - 1)
    (x, y), (u, v) = first.T, (place - first).T
    corner = y * grid[0] + x
    at = np.stack([corner, corner + 1, corner + grid[0], corner + grid[0] + 1], 1)
    return at, np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u], 1)


def warp_view(points, source_from_target, camera):
    """Pixels float32 (h, w, 2) and depth float32 (h, w) of a target's points in the source."""
    moved = points @ source_from_target[:, :3].T + source_from_target[:, 3]
    place = camera[:2] * moved[..., :2] / moved[..., 2:] + camera[2:]
    ahead = (moved[..., 2:] > 0) & np.isfinite(place).all(-1, keepdims=True)
    return np.where(ahead, place, -1000), moved[..., 2]


def graph_equations(graph, poses):
    """Hessian, gradient and cost, edge by edge; poses: Sim3 of each node."""
    size = 7 * (int(graph.rows.max(initial=-1)) + 1)
    hessian, gradient, cost = np.zeros((size, size)), np.zeros(size), 0.0
    blocks = [slice(7 * row, 7 * row + 7) if row >= 0 else None for row in graph.rows]
    for (target, source), row, information in zip(
        graph.ends, graph.measured, graph.information, strict=True
    ):
        measured = Sim3(row[0], row[1:10].reshape(3, 3), row[10:])
        between = poses[target].inverse() @ poses[source]
        residual = (between @ measured.inverse()).log()
        cost += residual @ information @ residual
        jacobians = ((blocks[target], -np.eye(7)), (blocks[source], between.adjoint()))
        ends = [(block, jacobian) for block, jacobian in jacobians if block is not None]
        for here, jacobian in ends:
            gradient[here] += jacobian.T @ information @ residual
            for there, other in ends:
                hessian[here, there] += jacobian.T @ information @ other
    for block, pose, (log_scale, std), up in zip(
        blocks, poses, graph.scales, graph.ups, strict=True
    ):
        if block is None:
            continue
        at, z = block.stop - 1, pose.rotation[2]
        if std > 0:
            error = (np.log(pose.scale) - log_scale) / std
            cost += error**2
            hessian[at, at] += 1 / std**2
            gradient[at] += error / std
        turn, rows = cross_matrix(z), slice(block.start, block.start + 3)
        cost += z @ up @ z
        hessian[rows, rows] += turn.T @ up @ turn
        gradient[rows] += turn.T @ up @ z
    return hessian, gradient, cost
