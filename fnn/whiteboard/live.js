// A small network, computed in the page: forward, backward, one step of gradient descent.
// Arrays are {shape, data}, with the last axis fastest. References name them: v3 the value of wire
// 3, d3 its gradient; x5.0 what block 5 sends back at port 0; p5.w, g5.w a parameter and its
// gradient; l5.0, m5.w local derivatives by an input, by a parameter; o3 ones.
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

const gate = (f, ...slopes) => ({
  forward: ([a, ...others]) =>
    others.reduce((s, b) => map(s, (v, i) => f(v, b.data[i])), a),
  backward: (xs, _, y, dy) => ({
    dxs: xs.map((x, k) => map(x, (_, i) =>
      dy.data[i] * slopes[Math.min(k, slopes.length - 1)](...xs.map((v) => v.data[i])))),
  }),
});

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

function reduced(scale) {
  return {
    forward: ([x]) => ({ shape: [], data: [total(x) * scale(x)] }),
    backward: ([x], _, y, dy) => ({ dxs: [map(x, () => dy.data[0] * scale(x))] }),
  };
}

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
    forward: ([x, p], _, args) => map(x, (v, i) => v ** (p ? p.data[i] : args[0])),
    backward: ([x, p], _, y, dy, args) => {
      const exponent = (i) => (p ? p.data[i] : args[0]);
      const slope = (v, q) => (q === 0 ? 0 : q * v ** (q - 1));
      const dx = map(x, (v, i) => dy.data[i] * slope(v, exponent(i)));
      const byExponent = (v, i) => dy.data[i] * (v === 0 && x.data[i] >= 0 ? 0 : v * Math.log(x.data[i]));
      return { dxs: p ? [dx, map(y, byExponent)] : [dx] };
    },
  },
  negate: byEntry((x) => -x, () => -1),
  scale: byEntry((x, c) => c * x, (x, y, c) => c),
  exp: byEntry(Math.exp, (x, y) => y),
  log: byEntry(Math.log, (x) => 1 / x),
  square: byEntry((x) => x * x, (x) => 2 * x),
  sqrt: byEntry(Math.sqrt, (x, y) => 0.5 / y),
  sum: reduced(() => 1),
  mean: reduced((x) => 1 / x.data.length),
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

class Live {
  constructor(program) {
    this.program = program;
    this.reset();
  }

  // As recorded.
  reset() {
    const copy = ({ shape, data }) => ({ shape, data: [...data] });
    this.inputs = new Map(this.program.inputs.map((input) => [input.wire, copy(input)]));
    this.params = {};
    for (const [owner, leaves] of Object.entries(this.program.params)) {
      this.params[owner] = {};
      for (const leaf in leaves) this.params[owner][leaf] = copy(leaves[leaf]);
    }
    this.run();
  }

  run() {
    const value = new Map(this.inputs), gradient = new Map();
    this.value = value;
    this.gradient = gradient;
    this.back = new Map();
    this.dparams = {};
    const { ops, output } = this.program;
    for (const op of ops) {
      const xs = op.reads.map((wire) => value.get(wire));
      value.set(op.out, OPS[op.op].forward(xs, this.params[op.params], op.args, op));
    }
    gradient.set(output, map(value.get(output), () => 1));
    for (const op of [...ops].reverse()) {
      const dy = gradient.get(op.out) ?? zeros(value.get(op.out));
      const { dxs, dparams } = this.pulled(op, dy);
      this.back.set(op, { dxs, dparams });
      op.reads.forEach((wire, i) => {
        if (dxs[i]) gradient.set(wire, gradient.has(wire) ? add(gradient.get(wire), dxs[i]) : dxs[i]);
      });
      for (const leaf in dparams) {
        const sums = (this.dparams[op.params] ??= {});
        sums[leaf] = sums[leaf] ? add(sums[leaf], dparams[leaf]) : dparams[leaf];
      }
    }
  }

  pulled(op, dy) {
    const xs = op.reads.map((wire) => this.value.get(wire));
    return OPS[op.op].backward(xs, this.params[op.params], this.value.get(op.out), dy, op.args);
  }

  // The array of a reference; null for none.
  get(reference) {
    const kind = reference[0], [name, rest] = [...reference.slice(1).split(/\.(.*)/s), ""];
    if (kind === "v") return this.value.get(Number(name));
    if (kind === "d") return this.gradient.get(Number(name)) ?? null;
    if (kind === "o") return map(this.value.get(Number(name)), () => 1);
    const op = this.program.ops.find((op) => op.id === name && (op.port ?? Number(rest)) === Number(rest))
      ?? this.program.ops.find((op) => op.id === name);
    if (kind === "x") return this.back.get(op).dxs[op.port === undefined ? Number(rest) : 0] ?? null;
    if (kind === "p") return this.params[op.params][rest];
    if (kind === "g") return this.back.get(op).dparams[rest];
    const { dxs, dparams } = this.pulled(op, map(this.value.get(op.out), () => 1));
    return kind === "l" ? dxs[Number(rest)] : dparams[rest];
  }

  get loss() {
    return total(this.value.get(this.program.output));
  }

  // Whether it gets the gradients that were recorded.
  get agrees() {
    const { gradients, tolerance } = this.program;
    return Object.entries(gradients).every(([reference, { data }]) => {
      const mine = this.get(reference), size = Math.max(...data.map(Math.abs), tolerance);
      return mine && data.every((v, i) => Math.abs(v - mine.data[i]) <= tolerance * size);
    });
  }

  // What a step changes: the parameters; of a circuit without any, its inputs.
  step(rate) {
    const less = (a, d) => a.data.forEach((_, i) => { a.data[i] -= rate * d.data[i]; });
    for (const [owner, leaves] of Object.entries(this.params)) {
      for (const leaf in leaves) less(leaves[leaf], this.dparams[owner][leaf]);
    }
    if (!Object.keys(this.params).length) {
      for (const { wire, constant, label } of this.program.inputs) {
        if (!constant && !label && this.gradient.has(wire)) less(this.inputs.get(wire), this.gradient.get(wire));
      }
    }
    this.run();
  }

  // A value that the reader may change; null for others.
  editable(reference) {
    const input = this.program.inputs.find(({ wire }) => reference === `v${wire}`);
    if (input) return input.constant ? null : input;
    return reference[0] === "p" ? {} : null;
  }

  set(reference, index, value) {
    const at = this.get(reference);
    at.data[index] = value;
    this.run();
  }
}
