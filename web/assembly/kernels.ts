// Activations -> activations: the operations of a transformer in float32, by SIMD where time goes.
//
// Every function takes `count` positions at once, each a row of its arrays. A product over many
// positions reads each weight once, which is why a prompt goes several tokens at a time.

/** Sum of a[i] * b[i]. */
function dot(a: usize, b: usize, n: usize): f32 {
  let s0 = f32x4.splat(0),
    s1 = s0,
    s2 = s0,
    s3 = s0;
  const end = a + n * 4,
    blocks = a + (n & ~15) * 4;
  for (; a < blocks; a += 64, b += 64) {
    s0 = f32x4.add(s0, f32x4.mul(v128.load(a), v128.load(b)));
    s1 = f32x4.add(s1, f32x4.mul(v128.load(a, 16), v128.load(b, 16)));
    s2 = f32x4.add(s2, f32x4.mul(v128.load(a, 32), v128.load(b, 32)));
    s3 = f32x4.add(s3, f32x4.mul(v128.load(a, 48), v128.load(b, 48)));
  }
  let sum = across(f32x4.add(f32x4.add(s0, s1), f32x4.add(s2, s3)));
  for (; a < end; a += 4, b += 4) sum += load<f32>(a) * load<f32>(b);
  return sum;
}

// @ts-ignore: decorator
@inline
function across(v: v128): f32 {
  return (
    f32x4.extract_lane(v, 0) +
    f32x4.extract_lane(v, 1) +
    (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3))
  );
}

/** y [count, rows] = x [count, columns] times the transpose of w [rows, columns]. */
export function matmul(
  y: usize,
  w: usize,
  x: usize,
  rows: usize,
  columns: usize,
  count: usize,
): void {
  const row = columns * 4,
    blocks = (columns & ~3) * 4;
  for (let r: usize = 0; r < rows; r++, w += row) {
    let t: usize = 0;
    for (; t + 4 <= count; t += 4) {
      const x0 = x + t * row,
        x1 = x0 + row,
        x2 = x1 + row,
        x3 = x2 + row;
      let s0 = f32x4.splat(0),
        s1 = s0,
        s2 = s0,
        s3 = s0;
      for (let i: usize = 0; i < blocks; i += 16) {
        const v = v128.load(w + i);
        s0 = f32x4.add(s0, f32x4.mul(v, v128.load(x0 + i)));
        s1 = f32x4.add(s1, f32x4.mul(v, v128.load(x1 + i)));
        s2 = f32x4.add(s2, f32x4.mul(v, v128.load(x2 + i)));
        s3 = f32x4.add(s3, f32x4.mul(v, v128.load(x3 + i)));
      }
      let f0 = across(s0),
        f1 = across(s1),
        f2 = across(s2),
        f3 = across(s3);
      for (let i = blocks; i < row; i += 4) {
        const v = load<f32>(w + i);
        f0 += v * load<f32>(x0 + i);
        f1 += v * load<f32>(x1 + i);
        f2 += v * load<f32>(x2 + i);
        f3 += v * load<f32>(x3 + i);
      }
      const at = y + (t * rows + r) * 4;
      store<f32>(at, f0);
      store<f32>(at + rows * 4, f1);
      store<f32>(at + rows * 8, f2);
      store<f32>(at + rows * 12, f3);
    }
    for (; t < count; t++) store<f32>(y + (t * rows + r) * 4, dot(w, x + t * row, columns));
  }
}

/**
 * y [count, width] = x over its root mean square, times `scale`, and by channel times `weight` if
 * not 0.
 */
export function rmsNorm(
  y: usize,
  x: usize,
  weight: usize,
  width: usize,
  count: usize,
  eps: f32,
  scale: f32,
): void {
  for (let t: usize = 0; t < count; t++, x += width * 4, y += width * 4) {
    const factor = (<f32>1 / sqrt<f32>(dot(x, x, width) / <f32>width + eps)) * scale;
    for (let i: usize = 0; i < width * 4; i += 4) {
      const value = load<f32>(x + i) * factor;
      store<f32>(y + i, weight ? value * load<f32>(weight + i) : value);
    }
  }
}

/**
 * Rotate x [count, heads, width] in place: channel i < half is paired with channel half + i, by the
 * angles whose cosines and sines are [count, half].
 */
export function rotate(
  x: usize,
  cos: usize,
  sin: usize,
  heads: usize,
  width: usize,
  half: usize,
  count: usize,
): void {
  for (let t: usize = 0; t < count; t++, cos += half * 4, sin += half * 4) {
    for (let h: usize = 0; h < heads; h++, x += width * 4) {
      for (let i: usize = 0; i < half * 4; i += 4) {
        const a = load<f32>(x + i),
          b = load<f32>(x + i + half * 4);
        const c = load<f32>(cos + i),
          s = load<f32>(sin + i);
        store<f32>(x + i, a * c - b * s);
        store<f32>(x + i + half * 4, b * c + a * s);
      }
    }
  }
}

/**
 * Softmax attention of one position: y and q [heads, width], over the positions `first` to `last`
 * of keys and values [positions, groups, width]; `scores` holds as many float32 as there are
 * positions.
 */
export function attend(
  y: usize,
  q: usize,
  keys: usize,
  values: usize,
  scores: usize,
  first: usize,
  last: usize,
  heads: usize,
  groups: usize,
  width: usize,
): void {
  const stride = groups * width * 4,
    n = last - first + 1;
  const scale = <f32>1 / sqrt<f32>(<f32>width);
  for (let h: usize = 0; h < heads; h++, q += width * 4, y += width * 4) {
    const offset = (h / (heads / groups)) * width * 4 + first * stride;
    let most: f32 = -Infinity;
    for (let j: usize = 0; j < n; j++) {
      const score = dot(q, keys + offset + j * stride, width) * scale;
      store<f32>(scores + j * 4, score);
      most = max<f32>(most, score);
    }
    let sum: f32 = 0;
    for (let j: usize = 0; j < n; j++) {
      const p = <f32>Math.exp(load<f32>(scores + j * 4) - most);
      store<f32>(scores + j * 4, p);
      sum += p;
    }
    memory.fill(y, 0, width * 4);
    for (let j: usize = 0; j < n; j++) {
      addScaled(y, values + offset + j * stride, load<f32>(scores + j * 4) / sum, width);
    }
  }
}

/** y += a x, of n values. */
export function addScaled(y: usize, x: usize, a: f32, n: usize): void {
  const blocks = (n & ~3) * 4,
    factor = f32x4.splat(a);
  let i: usize = 0;
  for (; i < blocks; i += 16) {
    v128.store(y + i, f32x4.add(v128.load(y + i), f32x4.mul(factor, v128.load(x + i))));
  }
  for (; i < n * 4; i += 4) store<f32>(y + i, load<f32>(y + i) + a * load<f32>(x + i));
}

/** y [count, width] += x, by channel times `weight` [width] if that is not 0. */
export function add(y: usize, x: usize, weight: usize, width: usize, count: usize): void {
  for (let t: usize = 0; t < count; t++, x += width * 4, y += width * 4) {
    for (let i: usize = 0; i < width * 4; i += 4) {
      const value = load<f32>(x + i);
      store<f32>(y + i, load<f32>(y + i) + (weight ? value * load<f32>(weight + i) : value));
    }
  }
}

/** y [count, width] = a y + b x, with a and b by channel [width]. */
export function blend(y: usize, x: usize, a: usize, b: usize, width: usize, count: usize): void {
  for (let t: usize = 0; t < count; t++, x += width * 4, y += width * 4) {
    for (let i: usize = 0; i < width * 4; i += 4) {
      store<f32>(y + i, load<f32>(a + i) * load<f32>(y + i) + load<f32>(b + i) * load<f32>(x + i));
    }
  }
}

/** y = y / (1 + e^-y) * x, of n values. */
export function siluTimes(y: usize, x: usize, n: usize): void {
  for (let i: usize = 0; i < n * 4; i += 4) {
    const value = load<f32>(y + i);
    store<f32>(y + i, (value / <f32>(1 + Math.exp(-value))) * load<f32>(x + i));
  }
}

/** y = the square of y, or of slope * y where y is negative; of n values. */
export function squaredRectifier(y: usize, slope: f32, n: usize): void {
  for (let i: usize = 0; i < n * 4; i += 4) {
    let value = load<f32>(y + i);
    if (value < 0) value *= slope;
    store<f32>(y + i, value * value);
  }
}

/** Subtract from each head of y [heads, width] its projection on its group of v [groups, width]. */
export function removeOwnValue(
  y: usize,
  v: usize,
  heads: usize,
  groups: usize,
  width: usize,
): void {
  for (let h: usize = 0; h < heads; h++, y += width * 4) {
    const own = v + (h / (heads / groups)) * width * 4;
    const norm = max<f32>(sqrt<f32>(dot(own, own, width)), 1e-12);
    addScaled(y, own, -dot(y, own, width) / norm / norm, width);
  }
}
