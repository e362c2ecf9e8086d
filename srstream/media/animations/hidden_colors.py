"""Replaces the colors of invisible pixels, which a network would mix into the visible ones.

Shape legend: H, W are rows and columns of a plane.
"""

from __future__ import annotations

import cv2
import numpy as np

from srstream.frame import Plane

RADIUS = 16
"""Pixels beyond the edge of what is visible; farther away nothing reaches an edge."""


def spread_colors(planes: tuple[Plane, ...]) -> tuple[Plane, ...]:
    """Give invisible pixels near visible ones the color of the nearest of those.

    Files often keep black or white there, which would become a fringe around what is visible.

    Args:
        planes: (H, W) each, alpha last.
    """
    *colors, alpha_HW = planes
    hidden_HW = alpha_HW == 0
    if not hidden_HW.any() or hidden_HW.all():
        return planes
    distance_HW, label_HW = cv2.distanceTransformWithLabels(
        hidden_HW.astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    near_HW = hidden_HW & (distance_HW <= RADIUS)
    place_of_label = np.zeros(int(label_HW.max()) + 1, np.intp)
    place_of_label[label_HW[~hidden_HW]] = np.flatnonzero(~hidden_HW)
    nearest = place_of_label[label_HW[near_HW]]
    filled = []
    for color_HW in colors:
        plane_HW = color_HW.copy()
        plane_HW[near_HW] = color_HW.ravel()[nearest]
        filled.append(plane_HW)
    return (*filled, alpha_HW)
