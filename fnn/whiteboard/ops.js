// What live.js computes with: each operation forward and backward, as fnn's blocks do. Arrays are
// {shape, data}, with the last axis fastest. forward(xs, params, args, op), where op has the shape of
// its value; backward(xs, params, y, dy, args) gives what goes to each input, and dparams.
"use strict";

const array = (like, data) => ({ shape: like.shape, data });
const map = (a, f) => array(a, a.data.map(f));
const zeros = (a) => map(a, () => 0);
const add = (a, b) => map(a, (v, i) => v + b.data[i]);
const total = (a) => a.data.reduce((s, v) => s + v, 0);
const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const times = (t, v) => (t === 0 ? 0 : t * v); // a term of weight 0 is 0

// An entry at a time: y = f(x), dx = dy slope(x, y).
const byEntry = (f, slope) => ({
  forward: ([x], _, args) => map(x, (v) => f(v, ...args)),
  backward: ([x], _, y, dy, args) =>
    ({ dxs: [map(x, (v, i) => dy.data[i] * slope(v, y.data[i], ...args))] }),
});

const sizeOf = (shape) => shape.reduce((a, b) => a * b, 1);

// For each entry of a shape, the number of the entry that is copied there where x is broadcast.
function copies(x, shape) {
  const steps = [], missing = shape.length - x.length;
  for (let d = x.length - 1, step = 1; d >= 0; step *= x[d--]) steps[d + missing] = x[d] === 1 ? 0 : step;
  return Array.from({ length: sizeOf(shape) }, (_, at) => {
    let from = 0;
    for (let d = shape.length - 1; d >= 0; d--) {
      from += (at % shape[d]) * (steps[d] ?? 0);
      at = Math.floor(at / shape[d]);
    }
    return from;
  });
}

// A sum over all entries with the same number: into an array like x.
function collected(x, numbers, terms) {
  const sums = zeros(x);
  terms.forEach((v, i) => { sums.data[numbers[i]] += v; });
  return sums;
}

// Inputs of shapes that broadcast: what goes back to a copied entry is the sum over its copies.
const gate = (f, ...slopes) => {
  const spread = (xs, shape) => xs.map((x) => copies(x.shape, shape));
  return {
    forward: (xs, _, args, { shape }) => {
      const from = spread(xs, shape);
      const data = from[0].map((_, i) => xs.map((x, k) => x.data[from[k][i]]).reduce((a, b) => f(a, b)));
      return { shape, data };
    },
    backward: (xs, _, { shape }, dy) => {
      const from = spread(xs, shape);
      const at = (i) => xs.map((x, k) => x.data[from[k][i]]);
      const slope = (k) => slopes[Math.min(k, slopes.length - 1)];
      return { dxs: xs.map((x, k) => collected(x, from[k], dy.data.map((d, i) => d * slope(k)(...at(i))))) };
    },
  };
};

const wins = (a, b) => (a === b ? 0.5 : a > b ? 1 : 0);

// Rows of the last axis: f(row, its number) is its new row.
function byRow(a, f) {
  const width = a.shape.at(-1) ?? 1, rows = [];
  for (let i = 0; i < a.data.length; i += width) rows.push(f(a.data.slice(i, i + width), i / width));
  return array(a, rows.flat());
}

const exponentials = (z) => {
  const m = Math.max(...z), e = z.map((v) => Math.exp(v - m)), s = e.reduce((a, b) => a + b, 0);
  return { p: e.map((v) => v / s), log: z.map((v) => v - m - Math.log(s)) };
};

// The mean over examples of terms(prediction, target) and their slopes, entry by entry or, with
// `rows`, a row of classes at a time, where a label stands for a row of zeros with a 1.
const loss = (terms, slope, byTarget, rows) => {
  const examples = (y) => (rows ? y.data.length / y.shape.at(-1) : y.shape[0]);
  const target = (y, t) => (t.data.length === y.data.length ? t
    : byRow(y, (row, r) => row.map((_, k) => Number(k === t.data[r]))));
  return {
    forward: ([y, t], _, args) => {
      const all = terms(y, target(y, t), args);
      return { shape: [], data: [total(all) / examples(y)] };
    },
    backward: ([y, t], _, value, dy, args) => {
      const rows = target(y, t), scale = dy.data[0] / examples(y);
      const label = t.data.length !== y.data.length;
      return {
        dxs: [map(slope(y, rows, args), (v) => scale * v),
              label ? null : map(byTarget(y, rows, args), (v) => scale * v)],
      };
    },
  };
};

const entries = (f) => (y, t, args) => map(y, (v, i) => f(v, t.data[i], ...args));
const logOf = (y) => byRow(y, (row) => exponentials(row).log);
const softmaxOf = (y) => byRow(y, (row) => exponentials(row).p);

// The sum over some axes, or their mean.
function reduced(mean) {
  const into = (x, axes) => copies(x.shape.map((n, d) => (axes.includes(d) ? 1 : n)), x.shape);
  const share = (x, axes) => (mean ? 1 / axes.reduce((n, d) => n * x.shape[d], 1) : 1);
  return {
    forward: ([x], _, [axes], { shape }) => {
      const y = collected({ shape, data: Array(sizeOf(shape)).fill(0) }, into(x, axes), x.data);
      return map(y, (v) => v * share(x, axes));
    },
    backward: ([x], _, y, dy, [axes]) => {
      const numbers = into(x, axes);
      return { dxs: [map(x, (_, i) => dy.data[numbers[i]] * share(x, axes))] };
    },
  };
}

// The area under the normal density above x: by a series of positive terms, far out by a fraction.
function tail(x) {
  if (x < 0) return 1 - tail(-x);
  const density = Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  let sum = 0;
  if (x < 4) {
    for (let k = 1, term = x; term > 1e-18; k += 2, term *= x * x / k) sum += term;
    return 0.5 - density * sum;
  }
  for (let k = 60; k > 0; k--) sum = k / (x + sum);
  return density / (x + sum);
}

const gelu = (x) => x * tail(-x);
const geluSlope = (x) => tail(-x) + x * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
const inner = (x) => Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3); // of gelu by tanh
const innerSlope = (x) => Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * x * x);
const unit = (scale, x, alpha, width) => scale * (x > 0 ? x : alpha * Math.expm1(x / width));
const unitSlope = (scale, x, alpha, width) => scale * (x > 0 ? 1 : (alpha / width) * Math.exp(x / width));
const SELU = [1.0507009873554805, 1.6732632423543772];

const powers = gate((x, p) => x ** p, (x, p) => (p === 0 ? 0 : p * x ** (p - 1)),
  (x, p) => (x ** p === 0 && x >= 0 ? 0 : x ** p * Math.log(x)));
const power = byEntry((x, p) => x ** p, (x, y, p) => (p === 0 ? 0 : p * x ** (p - 1)));

// A layer of a stack: the part of each parameter.
const layerOf = (params, k, n) => Object.fromEntries(Object.entries(params ?? {}).map(([leaf, a]) => {
  const size = a.data.length / n;
  return [leaf, { shape: a.shape.slice(1), data: a.data.slice(k * size, (k + 1) * size) }];
}));

const columnsOf = (w) => (w.shape.length > 1 ? w.shape[1] : 1);

const OPS = {
  copy: byEntry((x) => x, () => 1),
  add: gate((a, b) => a + b, () => 1),
  subtract: gate((a, b) => a - b, () => 1, () => -1),
  multiply: gate((a, b) => a * b, (a, b) => b, (a) => a),
  divide: gate((a, b) => a / b, (a, b) => 1 / b, (a, b) => -a / b / b),
  maximum: gate(Math.max, wins, (a, b) => wins(b, a)),
  minimum: gate(Math.min, (a, b) => wins(b, a), wins),
  power: {
    forward: (xs, ...rest) => (xs.length > 1 ? powers : power).forward(xs, ...rest),
    backward: (xs, ...rest) => (xs.length > 1 ? powers : power).backward(xs, ...rest),
  },
  negate: byEntry((x) => -x, () => -1),
  scale: byEntry((x, c) => c * x, (x, y, c) => c),
  exp: byEntry(Math.exp, (x, y) => y),
  log: byEntry(Math.log, (x) => 1 / x),
  square: byEntry((x) => x * x, (x) => 2 * x),
  sqrt: byEntry(Math.sqrt, (x, y) => 0.5 / y),
  sum: reduced(false),
  mean: reduced(true),
  global_avg_pool: reduced(true),
  identity: byEntry((x) => x, () => 1),
  step: byEntry((x) => Number(x >= 0), () => 0),
  logistic: byEntry(sigmoid, (x) => sigmoid(x) * sigmoid(-x)),
  tanh: byEntry(Math.tanh, (x) => 4 * sigmoid(2 * x) * sigmoid(-2 * x)),
  relu: byEntry((x) => Math.max(x, 0), (x) => Number(x > 0)),
  leaky_relu: byEntry((x, a) => (x > 0 ? x : a * x), (x, y, a) => (x > 0 ? 1 : a)),
  elu: byEntry((x, a) => (x > 0 ? x : a * Math.expm1(x)), (x, y, a) => (x > 0 ? 1 : a * Math.exp(x))),
  softplus: byEntry(softplus, sigmoid),
  softsign: byEntry((x) => x / (1 + Math.abs(x)), (x) => 1 / (1 + Math.abs(x)) ** 2),
  silu: byEntry((x) => x * sigmoid(x), (x) => sigmoid(x) * (1 + x * sigmoid(-x))),
  hard_tanh: byEntry((x) => Math.min(Math.max(x, -1), 1), (x) => Number(Math.abs(x) < 1)),
  hard_sigmoid: byEntry((x) => Math.min(Math.max(x + 3, 0), 6) / 6, (x) => (Math.abs(x) < 3 ? 1 / 6 : 0)),
  absolute: byEntry(Math.abs, Math.sign),
  selu: byEntry((x) => unit(SELU[0], x, SELU[1], 1), (x) => unitSlope(SELU[0], x, SELU[1], 1)),
  celu: byEntry((x, a) => unit(1, x, a, a), (x, y, a) => unitSlope(1, x, a, a)),
  gelu: byEntry((x, byTanh) => (byTanh ? x * sigmoid(2 * inner(x)) : gelu(x)),
    (x, y, byTanh) => (byTanh ? sigmoid(2 * inner(x)) * (1 + 2 * x * innerSlope(x) * sigmoid(-2 * inner(x)))
      : geluSlope(x))),
  mish: byEntry((x) => x * Math.tanh(softplus(x)), (x) => {
    const t = Math.tanh(softplus(x));
    return t + x * sigmoid(x) * (1 - t * t);
  }),
  dropout: byEntry((x) => x, () => 1), // of nothing
  // Blocks in a row, their parameters stacked: args are how many, the block's kind and arguments.
  repeat: {
    forward: ([x], params, [n, kind, args], op) => {
      for (let k = 0; k < n; k++) x = OPS[kind].forward([x], layerOf(params, k, n), args, op);
      return x;
    },
    backward: ([x], params, y, dy, [n, kind, args]) => {
      const xs = [x], parts = [];
      for (let k = 0; k < n; k++) xs.push(OPS[kind].forward([xs[k]], layerOf(params, k, n), args, y));
      for (let k = n - 1; k >= 0; k--) {
        const back = OPS[kind].backward([xs[k]], layerOf(params, k, n), xs[k + 1], dy, args);
        [dy] = back.dxs;
        parts.unshift(back.dparams ?? {});
      }
      const leaves = Object.keys(parts[0]).map((leaf) =>
        [leaf, array(params[leaf], parts.flatMap((part) => part[leaf].data))]);
      return { dxs: [dy], dparams: Object.fromEntries(leaves) };
    },
  },
  softmax: {
    forward: ([x]) => softmaxOf(x),
    backward: ([x], _, y, dy) => {
      const s = byRow(y, (p, r) => {
        const up = dy.data.slice(r * p.length, (r + 1) * p.length);
        const mean = p.reduce((sum, v, i) => sum + v * up[i], 0);
        return p.map((v, i) => v * (up[i] - mean));
      });
      return { dxs: [s] };
    },
  },
  log_softmax: {
    forward: ([x]) => logOf(x),
    backward: ([x], _, y, dy) => ({
      dxs: [byRow(y, (log, r) => {
        const up = dy.data.slice(r * log.length, (r + 1) * log.length);
        const sum = up.reduce((a, b) => a + b, 0);
        return up.map((v, i) => v - Math.exp(log[i]) * sum);
      })],
    }),
  },
  // y = x W + b: dx = dy Wᵀ, dW = xᵀ dy, db = Σ dy over the examples.
  linear: {
    forward: ([x], { w, b }) => {
      const columns = columnsOf(w), inputs = w.shape[0], rows = x.data.length / inputs;
      const data = [];
      for (let r = 0; r < rows; r++) {
        for (let k = 0; k < columns; k++) {
          let sum = 0;
          for (let i = 0; i < inputs; i++) sum += x.data[r * inputs + i] * w.data[i * columns + k];
          data.push(sum + (b ? b.data[k] : 0));
        }
      }
      return { shape: [...x.shape.slice(0, -1), ...w.shape.slice(1)], data };
    },
    backward: ([x], { w, b }, y, dy) => {
      const columns = columnsOf(w), inputs = w.shape[0];
      const dx = map(x, (_, at) => {
        const r = Math.floor(at / inputs), i = at % inputs;
        let sum = 0;
        for (let k = 0; k < columns; k++) sum += dy.data[r * columns + k] * w.data[i * columns + k];
        return sum;
      });
      const over = (f) => {
        let sum = 0;
        for (let r = 0; r < x.data.length / inputs; r++) sum += f(r);
        return sum;
      };
      const dw = map(w, (_, at) => {
        const i = Math.floor(at / columns), k = at % columns;
        return over((r) => x.data[r * inputs + i] * dy.data[r * columns + k]);
      });
      const db = b && map(b, (_, k) => over((r) => dy.data[r * columns + k]));
      return { dxs: [dx], dparams: b ? { w: dw, b: db } : { w: dw } };
    },
  },
  concatenate: {
    forward: (xs) => {
      const widths = xs.map((x) => x.shape.at(-1)), rows = xs[0].data.length / widths[0], data = [];
      for (let r = 0; r < rows; r++) {
        xs.forEach((x, k) => data.push(...x.data.slice(r * widths[k], (r + 1) * widths[k])));
      }
      return { shape: [...xs[0].shape.slice(0, -1), widths.reduce((a, b) => a + b)], data };
    },
    backward: (xs, _, y, dy) => {
      const widths = xs.map((x) => x.shape.at(-1)), all = y.shape.at(-1);
      const start = (k) => widths.slice(0, k).reduce((a, b) => a + b, 0);
      return {
        dxs: xs.map((x, k) => map(x, (_, at) =>
          dy.data[Math.floor(at / widths[k]) * all + start(k) + at % widths[k]])),
      };
    },
  },
  flatten: {
    forward: ([x], _, args, like) => ({ shape: like.shape, data: [...x.data] }),
    backward: ([x], _, y, dy) => ({ dxs: [array(x, [...dy.data])] }),
  },
  squared_error: loss(
    entries((y, t) => (y - t) ** 2 / 2), entries((y, t) => y - t), entries((y, t) => t - y)),
  binary_cross_entropy: loss(
    entries((y, t, logits) => (logits ? times(t, softplus(-y)) + times(1 - t, softplus(y))
      : -times(t, Math.log(y)) - times(1 - t, Math.log1p(-y)))),
    entries((y, t, logits) => (logits ? (1 - t) * sigmoid(y) - t * sigmoid(-y)
      : times(1 - t, 1 / (1 - y)) - times(t, 1 / y))),
    entries((y, t, logits) => (logits ? -y : Math.log1p(-y) - Math.log(y)))),
  softmax_cross_entropy: loss(
    (y, t) => map(logOf(y), (v, i) => -times(t.data[i], v)),
    (y, t) => {
      const p = softmaxOf(y), width = y.shape.at(-1);
      return byRow(y, (row, r) => {
        const part = t.data.slice(r * width, (r + 1) * width), sum = part.reduce((a, b) => a + b, 0);
        return row.map((_, k) => p.data[r * width + k] * sum - part[k]);
      });
    },
    (y) => map(logOf(y), (v) => -v), true),
  cross_entropy: loss(
    (y, t) => map(y, (v, i) => -times(t.data[i], Math.log(v))),
    (y, t) => map(y, (v, i) => -times(t.data[i], 1 / v)),
    (y) => map(y, (v) => -Math.log(v)), true),
};
