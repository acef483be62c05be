"""Ray-cast a room with solid objects to the colour, object and depth of every pixel.

Coordinates are metres from the camera, which looks along z: x to the right, y DOWN, z forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SHAPES = ("ball", "box", "cone")
TEXTURES = ("striped", "chequered", "mottled")

FOCAL = 0.9
"""Focal length as a multiple of the picture's side: a field of view of 58 degrees."""
_AMBIENT = 0.45
_BOX_HALF = 0.42  # half the width of a box relative to its height


@dataclass(frozen=True)
class Surface:
    """A solid texture of two colours that alternate through space, like the grain of wood.

    Args:
        texture: index into ``TEXTURES``.
        colours: [2, 3] RGB in [0, 1].
        waves: [3, W] wave vectors, radians per metre along x, y, z; W depends on the texture.
        phases: [W] radians.
        period_metres: period of the finest wave.
    """

    texture: int
    colours: Array
    waves: Array
    phases: Array
    period_metres: float

    def colour(self, points: Array, pixels_per_metre: Array | float) -> Array:
        """Return RGB [N, 3] at points [N, 3].

        The pattern fades where pixels are too coarse to show it."""
        waves = np.sin(_product(points, self.waves) + self.phases)
        if self.texture == 0:
            pattern = 3.0 * waves[:, 0]
        elif self.texture == 1:
            pattern = 9.0 * waves[:, 0] * waves[:, 1] * waves[:, 2]
        else:
            pattern = 1.6 * waves.sum(1)
        shown = np.minimum(1.0, pixels_per_metre * np.float32(self.period_metres / 3))
        fraction = (0.5 + 0.5 * shown * np.tanh(pattern)).astype(np.float32)
        return self.colours[0] + fraction[:, None] * (self.colours[1] - self.colours[0])


@dataclass(frozen=True)
class Thing:
    """One object, standing on the ground or hanging above it.

    Args:
        category: class of the object; not used by the renderer.
        shape: index into ``SHAPES``.
        x: metres to the right, of its centre.
        z: metres forward, of its centre.
        height: metres.
        lift: metres from the ground to its underside.
        turn: rotation about the vertical axis, radians.
        surface: its texture, in the object's own coordinates.
    """

    category: int
    shape: int
    x: float
    z: float
    height: float
    lift: float
    turn: float
    surface: Surface


@dataclass(frozen=True)
class Room:
    """The background and the light.

    Args:
        horizon: row of the horizon, as a fraction of the picture's height.
        camera_metres: height of the camera above the ground.
        wall_metres: depth of the back wall.
        ground: texture of the ground.
        wall: texture of the wall.
        light: [3] unit vector towards the light.
        exposure: [3] gain of R, G, B.
    """

    horizon: float
    camera_metres: float
    wall_metres: float
    ground: Surface
    wall: Surface
    light: Array
    exposure: Array


def render(
    room: Room, things: Sequence[Thing], size: int
) -> tuple[Array, NDArray[np.int64], Array]:
    """Render what the camera sees; at each pixel the nearest surface hides the others.

    Args:
        room: background and light.
        things: objects, in any order.
        size: height and width in pixels.

    Returns:
        colour [size, size, 3] float32 (about [0, 1], not clipped); owner [size, size] int64, 0 for
        background and i + 1 for ``things[i]``; depth [size, size] float32, metres along z.
    """
    centres = ((np.arange(size, dtype=np.float32) + 0.5) / size).astype(np.float32)
    across, down = (centres - 0.5) / FOCAL, (centres - np.float32(room.horizon)) / FOCAL
    colour, depth = _background(room, things, across, down)
    owner = np.zeros((size, size), np.int64)
    for number, thing in enumerate(things, start=1):
        rows, columns = _window(room, thing, across, down)
        if not (rows.stop > rows.start and columns.stop > columns.start):
            continue
        rays = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.float32)
        rays[..., 0], rays[..., 1], rays[..., 2] = across[columns], down[rows, None], 1
        own_rays = _turned(rays.reshape(-1, 3), thing.turn)
        camera = np.array([-thing.x, thing.lift - room.camera_metres, -thing.z], np.float32)
        own_camera = _turned(camera, thing.turn)
        met = _met(thing, own_camera, own_rays)
        seen = np.flatnonzero(met < depth[rows, columns].ravel())
        at = met[seen]
        points = own_camera + at[:, None] * own_rays[seen]
        normals = _turned(_normals(thing, points), -thing.turn)
        where = tuple(np.add(np.divmod(seen, rays.shape[1]), [[rows.start], [columns.start]]))
        colour[where] = thing.surface.colour(points, FOCAL * size / at) * _shade(room, normals)
        depth[where], owner[where] = at, number
    return colour * room.exposure, owner, depth


def _shade(room: Room, normals: Array) -> Array:
    """Brightness [N, 1] of surfaces with normals [N, 3]: ambient light plus the lamp's."""
    lit = np.maximum(_product(normals, room.light[:, None]), np.float32(0))
    return np.float32(_AMBIENT) + np.float32(0.75) * lit


def _background(
    room: Room, things: Sequence[Thing], across: Array, down: Array
) -> tuple[Array, Array]:
    """Render wall, ground and shadows on the ground: colour [S, S, 3] and depth [S, S]."""
    size = len(across)
    # The ground begins below the wall.
    first = int((down * room.wall_metres <= room.camera_metres).sum())
    row_depth = np.full(size, room.wall_metres, np.float32)
    row_depth[first:] = room.camera_metres / down[first:]
    points = np.empty((size, size, 3), np.float32)
    points[..., 0], points[..., 1] = across * row_depth[:, None], (down * row_depth)[:, None]
    points[..., 2] = row_depth[:, None]
    colour = np.empty((size, size, 3), np.float32)
    for rows, surface, up in (
        (slice(0, first), room.wall, (0, 0, -1)),
        (slice(first, size), room.ground, (0, -1, 0)),
    ):
        pixels_per_metre = (FOCAL * size / np.repeat(row_depth[rows], size)).astype(np.float32)
        painted = surface.colour(points[rows].reshape(-1, 3), pixels_per_metre)
        colour[rows] = (painted * _shade(room, np.array([up], np.float32))).reshape(-1, size, 3)
    ground = points[first:]
    for thing in things:  # a soft shadow, away from the lamp
        reach = 0.55 * thing.height
        off_x, off_z = (ground[..., axis] - at for axis, at in ((0, thing.x), (2, thing.z)))
        off_x, off_z = off_x + 0.3 * reach * room.light[0], off_z + 0.3 * reach * room.light[2]
        colour[first:] *= (1 - 0.6 * np.exp(-(((off_x**2 + off_z**2) / reach**2) ** 2)))[..., None]
    return colour, np.repeat(row_depth[:, None], size, 1)


def _window(room: Room, thing: Thing, across: Array, down: Array) -> tuple[slice, slice]:
    """Rows and columns that the object's bounding box projects to."""
    reach = _girth(thing)
    near, far = thing.z - reach, thing.z + reach
    left = min((thing.x - reach) / near, (thing.x - reach) / far)
    right = max((thing.x + reach) / near, (thing.x + reach) / far)
    below = room.camera_metres - thing.lift
    above = below - thing.height
    top, bottom = min(above / near, above / far), max(below / near, below / far)
    rows, columns = np.searchsorted(down, (top, bottom)), np.searchsorted(across, (left, right))
    return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))


def _girth(thing: Thing) -> float:
    """Radius in metres of the upright cylinder around the object."""
    return thing.height * (_BOX_HALF * 2**0.5 if SHAPES[thing.shape] == "box" else 0.5)


def _product(vectors: Array, matrix: Array) -> Array:
    """``vectors @ matrix`` for vectors [..., 3], summed in a fixed order.

    A BLAS would round differently depending on the number of vectors and threads."""
    x, y, z = (vectors[..., axis, None] * matrix[axis] for axis in range(3))
    return x + y + z


def _turned(vectors: Array, angle: float) -> Array:
    """Express vectors [..., 3] in axes rotated by ``angle`` about the vertical."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return _product(vectors, np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], np.float32))


def _met(thing: Thing, camera: Array, rays: Array) -> Array:
    """Depth [N] in metres at which rays [N, 3] first meet the object; infinite where they miss it.

    Camera and rays are in the object's own axes, with the origin at the centre of its underside.
    The parameter along a ray is depth, because its z is 1 in the camera's axes."""
    height = np.float32(thing.height)
    with np.errstate(divide="ignore", invalid="ignore"):
        if SHAPES[thing.shape] == "box":
            half = height * np.float32(_BOX_HALF)
            low, high = np.array([[-half, -height, -half], [half, 0, half]], np.float32)
            one, other = (low - camera) / rays, (high - camera) / rays
            near, far = np.minimum(one, other).max(1), np.maximum(one, other).min(1)
            return np.where((near <= far) & (near > 0), near, np.float32(np.inf))
        # On a ball around its centre, or a cone around its tip, a quadratic form of the offset is
        # constant.
        ball = SHAPES[thing.shape] == "ball"
        offset = camera + np.array([0, height / 2 if ball else height, 0], np.float32)
        # The cone is as wide as it is high.
        form = np.array([1, 1 if ball else -0.25, 1], np.float32)
        level = height**2 / 4 if ball else np.float32(0)
        a = _product(rays**2, form[:, None])[:, 0]
        b = _product(rays, (form * offset)[:, None])[:, 0]
        c = (offset**2 * form).sum() - level
        at = (-b - np.sqrt(b * b - a * c)) / a
        if ball:
            return np.where(at > 0, at, np.float32(np.inf))
        below_tip = offset[1] + at * rays[:, 1]
        at = np.where((at > 0) & (below_tip >= 0) & (below_tip <= height), at, np.float32(np.inf))
        base = -camera[1] / rays[:, 1]  # the base, visible if the cone hangs above the camera
        x, z = camera[0] + base * rays[:, 0], camera[2] + base * rays[:, 2]
        base = np.where((base > 0) & (x * x + z * z <= height**2 / 4), base, np.float32(np.inf))
        return np.minimum(at, base)


def _normals(thing: Thing, points: Array) -> Array:
    """Outward unit normals [N, 3] at points [N, 3] of the surface, in the object's own axes."""
    height = thing.height
    if SHAPES[thing.shape] == "box":
        half = np.array([_BOX_HALF, 0.5, _BOX_HALF], np.float32)
        middle = (points + np.array([0, height / 2, 0], np.float32)) / half
        face = np.abs(middle).argmax(1)[:, None]
        normals = np.zeros_like(points)
        np.put_along_axis(normals, face, np.sign(np.take_along_axis(middle, face, 1)), 1)
        return normals
    if SHAPES[thing.shape] == "ball":
        return (points + np.array([0, height / 2, 0], np.float32)) * np.float32(2 / height)
    slopes = (points + np.array([0, height, 0], np.float32)) * np.array([1, -0.25, 1], np.float32)
    slopes /= np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), np.float32(1e-6))
    slopes[points[:, 1] > -1e-4 * height] = 0, 1, 0  # the base
    return slopes
