"""Slow, obvious float64 twins of gptpack.quant: textbook GPTQ and a textbook trellis search.

Shape legend: R = rows (outputs), C = columns (inputs).
"""

import itertools

import numpy as np

from gptpack.codec.polynomials import polynomials


def gptq(weight_RC, hessian_CC, step_RC, *, damp=0.01, order=None, clip=None, decide=None):
    """Frantar et al. 2022, Algorithm 1, with the upper Cholesky factor of the inverse Hessian.

    Returns codes ``[R, C]``. `order` lists columns, first decided first. `decide` maps a column's
    targets in units of its step to points; it rounds by default.
    """
    columns = weight_RC.shape[1]
    order = list(range(columns)) if order is None else list(order)
    hessian_CC = np.array(hessian_CC, np.float64)
    mean = hessian_CC.diagonal().mean()
    hessian_CC = hessian_CC[np.ix_(order, order)] + damp * mean * np.eye(columns)
    upper_CC = np.linalg.cholesky(np.linalg.inv(hessian_CC)).T
    work_RC = np.array(weight_RC, np.float64)[:, order]
    codes_RC = np.zeros(work_RC.shape, np.int64)
    for i in range(columns):
        step_R = step_RC[:, order[i]]
        target_R = work_RC[:, i] / step_R
        point_R = np.rint(target_R) if decide is None else decide(target_R, order[i])
        if clip is not None:
            point_R = np.clip(point_R, -clip, clip)
        codes_RC[:, order[i]] = point_R
        error_R = (work_RC[:, i] - point_R * step_R) / upper_CC[i, i]
        work_RC[:, i:] -= np.outer(error_R, upper_CC[i, i:])
    return codes_RC


def proxy_loss(weight_RC, value_RC, hessian_CC):
    """``tr(E H E^T)`` per row."""
    error_RC = np.asarray(weight_RC, np.float64) - value_RC
    return np.einsum("rc,cd,rd->r", error_RC, np.asarray(hessian_CC, np.float64), error_RC)


def branches(state, states):
    """What may follow `state`: pairs (residue of the point modulo 4, next state).

    The parity check ``h0(D) z0 + h1(D) z1 = 0`` as Ungerboeck draws it: a shift register whose last
    cell is the parity z0; z0 and the free bit z1 are added where h0 and h1 have terms.
    """
    h0, h1 = polynomials(states)
    memory = states.bit_length() - 1
    cells = [(state >> i) & 1 for i in range(memory)] + [0]
    z0 = cells[0]
    for z1 in (0, 1):
        after = [
            cells[i + 1] ^ (z0 & (h0 >> (i + 1)) & 1) ^ (z1 & (h1 >> (i + 1)) & 1)
            for i in range(memory)
        ]
        yield z0 + 2 * z1, sum(bit << i for i, bit in enumerate(after))


def nearest(target, residue):
    """The integer congruent to `residue` modulo 4 that is nearest to `target`."""
    return residue + 4 * round((target - residue) / 4)


def viterbi(target_R, weight_R, states):
    """The points of the best path from state 0, and its cost."""
    paths = {0: (0.0, [])}
    for target, weight in zip(target_R.tolist(), weight_R.tolist(), strict=True):
        survivors = {}
        for state, (cost, points) in paths.items():
            for residue, after in branches(state, states):
                point = nearest(target, residue)
                total = cost + weight * (target - point) ** 2
                if after not in survivors or total < survivors[after][0]:
                    survivors[after] = (total, (points, point))
        paths = survivors
    cost, linked = min(paths.values(), key=lambda path: path[0])
    points = []
    while linked:
        linked, point = linked
        points.append(point)
    return np.array(points[::-1], np.int64), cost


def cheapest_path(target_R, weight_R, states, reach=4):
    """The same by trying every path and, at each step, every point within `reach`."""
    best = (np.inf, None)
    for choices in itertools.product((0, 1), repeat=len(target_R)):
        state, cost, points = 0, 0.0, []
        for target, weight, choice in zip(target_R, weight_R, choices, strict=True):
            residue, state = list(branches(state, states))[choice]
            middle = round(float(target))
            point = min(
                (z for z in range(middle - reach, middle + reach + 1) if (z - residue) % 4 == 0),
                key=lambda z: (z - target) ** 2,
            )
            points.append(point)
            cost += weight * (target - point) ** 2
        best = min(best, (cost, points), key=lambda pair: pair[0])
    return np.array(best[1]), best[0]


def decode_trellis(symbols_RC, states):
    """Point by point, with the shift register of `branches`."""
    points_RC = np.zeros(symbols_RC.shape, np.int64)
    for c in range(symbols_RC.shape[1]):
        state = 0
        for r in range(symbols_RC.shape[0]):
            point = 2 * int(symbols_RC[r, c]) + (state & 1)
            points_RC[r, c] = point
            state = dict(branches(state, states))[point % 4]
    return points_RC
