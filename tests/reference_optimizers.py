"""Slow, obvious float64 twins of Muon and Adam: one tensor at a time, matrices by their SVD."""

import numpy as np


def mapped(values, quintics):
    """Singular values after each of the polynomials ``a s + b s^3 + c s^5``."""
    for a, b, c in quintics:
        values = a * values + b * values**3 + c * values**5
    return values


def minimax_quintic(low, high):
    """The a, b, c of ``p(s) = a s + b s^3 + c s^5`` with the least ``max |1 - p|``, and that.

    Over ``low <= s <= high``, by Remez: 1 - p takes its extreme, with alternating sign, at both
    ends and at the two places between them where p' is 0.
    """
    inner = low + (high - low) / 4, high - (high - low) / 4
    error = np.inf
    while True:
        s = np.array([low, *inner, high])
        matrix = np.stack([s, s**3, s**5, [1, -1, 1, -1]], axis=1)
        a, b, c, found = np.linalg.solve(matrix, np.ones(4))
        if abs(found - error) < 1e-15:
            return (a, b, c), found
        error = found
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt((-3 * b - root) / (10 * c)), np.sqrt((-3 * b + root) / (10 * c))


def polar_express(steps=5, *, least=1e-3, cushion=0.02, margin=1.02):
    """The polynomial of each iteration, for singular values that begin in ``[least, 1]``.

    Amsel et al. 2025, https://arxiv.org/abs/2505.16932: each is the best for where those before it
    leave the values, but is not asked to lift less than `cushion` of the largest. All but the last
    are shrunk by `margin`, so that rounding cannot carry a value beyond where they are meant for.
    """
    found, low, high = [], least, 1.0
    for step in range(steps):
        (a, b, c), _ = minimax_quintic(max(low, cushion * high), high)
        if low < cushion * high:  # around 1 again over the whole interval
            ends = mapped(np.array([low, high]), [(a, b, c)])
            a, b, c = (2 / ends.sum() * each for each in (a, b, c))
        if step < steps - 1:
            a, b, c = a / margin, b / margin**3, c / margin**5
        found.append((a, b, c))
        low = mapped(low, [(a, b, c)])
        high = 2 - low
    return found


def orthogonalized(matrix_RC, quintics, *, scale=1.0, floor=1e-7, row_norm=False):
    """The polynomials of a matrix, by its singular value decomposition."""
    matrix_RC = np.array(matrix_RC, np.float64)
    if row_norm:
        lengths_R = np.sqrt((matrix_RC**2).sum(1))
        matrix_RC = matrix_RC / np.maximum(lengths_R, 1e-7)[:, None]
    norm = np.sqrt((matrix_RC**2).sum())
    left, values, right = np.linalg.svd(matrix_RC / (scale * norm + floor), full_matrices=False)
    return left @ np.diag(mapped(values, quintics)) @ right


def evened_out(update_RC, variance, beta2):
    """NorMuon of one matrix: the update, and the running mean, one number a row (or column)."""
    rows, columns = update_RC.shape
    if rows < columns:
        wide, variance = evened_out(update_RC.T, variance, beta2)
        return wide.T, variance
    variance = np.array(
        [
            beta2 * v + (1 - beta2) * np.mean(row**2)
            for v, row in zip(variance, update_RC, strict=True)
        ]
    )
    scaled = update_RC / np.sqrt(np.maximum(variance, 1e-10))[:, None]
    return scaled * np.linalg.norm(update_RC) / np.linalg.norm(scaled), variance


class Muon:
    """One matrix under Muon."""

    def __init__(self, weight_RC, orthogonalize, *, variance_beta2=0.0, cautious=False):
        self.weight = np.array(weight_RC, np.float64)
        self.momentum = np.zeros_like(self.weight)
        self.variance = np.zeros(max(self.weight.shape))
        self.orthogonalize, self.beta2, self.cautious = orthogonalize, variance_beta2, cautious

    def step(self, gradient_RC, *, lr, momentum, weight_decay):
        gradient_RC = np.array(gradient_RC, np.float64)
        self.momentum = momentum * self.momentum + gradient_RC
        update = self.orthogonalize(gradient_RC + momentum * self.momentum)
        if self.beta2:
            update, self.variance = evened_out(update, self.variance, self.beta2)
        rows, columns = self.weight.shape
        decayed = (update * self.weight >= 0) if self.cautious else np.ones_like(update)
        self.weight = self.weight - lr * weight_decay * decayed * self.weight
        self.weight = self.weight - lr * max(1, rows / columns) ** 0.5 * update


class Adam:
    """One tensor under AdamW."""

    def __init__(self, weight, *, beta1, beta2, eps, cautious=False):
        self.weight = np.array(weight, np.float64)
        self.mean, self.square = np.zeros_like(self.weight), np.zeros_like(self.weight)
        self.betas, self.eps, self.cautious, self.steps = (beta1, beta2), eps, cautious, 0

    def step(self, gradient, *, lr, weight_decay):
        beta1, beta2 = self.betas
        gradient = np.array(gradient, np.float64)
        self.steps += 1
        self.mean = beta1 * self.mean + (1 - beta1) * gradient
        self.square = beta2 * self.square + (1 - beta2) * gradient**2
        mean = self.mean / (1 - beta1**self.steps)
        update = mean / (np.sqrt(self.square / (1 - beta2**self.steps)) + self.eps)
        decayed = (update * self.weight > 0) if self.cautious else np.ones_like(update)
        self.weight = self.weight - lr * weight_decay * decayed * self.weight - lr * update
