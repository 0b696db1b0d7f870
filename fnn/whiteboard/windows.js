// Convolutions and pools: windows that slide over the axes between examples and channels. For each
// of these axes, args have {window, stride, dilation, low}; pools of means also counts.
"use strict";

// visit(pixel of x, pixel of y, place in the window, where in y) for all that are in x; of one y the
// places come in row-major order.
function eachPlace(x, y, axes, visit) {
  const two = (list, one) => (list.length > 1 ? list : [one, ...list]); // a sequence has height 1
  const still = { window: 1, stride: 1, dilation: 1, low: 0 };
  const [rows, columns] = two(axes, still);
  const [high, wide] = two(x.shape.slice(1, -1), 1), [outHigh, outWide] = two(y.shape.slice(1, -1), 1);
  for (let b = 0; b < x.shape[0]; b++) for (let r = 0; r < outHigh; r++) for (let c = 0; c < outWide; c++) {
    for (let i = 0; i < rows.window; i++) for (let j = 0; j < columns.window; j++) {
      const h = r * rows.stride + i * rows.dilation - rows.low;
      const w = c * columns.stride + j * columns.dilation - columns.low;
      if (h < 0 || h >= high || w < 0 || w >= wide) continue;
      visit((b * high + h) * wide + w, (b * outHigh + r) * outWide + c, i * columns.window + j, [r, c]);
    }
  }
}

// visit(entry of x, of y, of w) for all products of a convolution.
function eachProduct(x, y, w, axes, groups, visit) {
  const [inputs, outputs] = [x.shape.at(-1), y.shape.at(-1)], per = inputs / groups;
  eachPlace(x, y, axes, (p, q, place) => {
    for (let o = 0; o < outputs; o++) {
      const first = Math.floor(o / (outputs / groups)) * per;
      for (let c = 0; c < per; c++) {
        visit(p * inputs + first + c, q * outputs + o, (place * per + c) * outputs + o);
      }
    }
  });
}

// The entry of x that wins each window: of equal ones the first.
function winners(x, y, axes) {
  const channels = x.shape.at(-1), won = Array(sizeOf(y.shape)).fill(-1);
  eachPlace(x, y, axes, (p, q) => {
    for (let c = 0; c < channels; c++) {
      const [from, to] = [p * channels + c, q * channels + c];
      if (won[to] < 0 || x.data[from] > x.data[won[to]]) won[to] = from;
    }
  });
  return won;
}

// visit(entry of x, of y, its share) for all entries of windows whose mean is taken.
function eachShare(x, y, axes, visit) {
  const channels = x.shape.at(-1);
  eachPlace(x, y, axes, (p, q, _, where) => {
    const at = where.slice(-axes.length), count = axes.reduce((n, { counts }, d) => n * counts[at[d]], 1);
    for (let c = 0; c < channels; c++) visit(p * channels + c, q * channels + c, 1 / count);
  });
}

Object.assign(OPS, {
  conv: {
    forward: ([x], { w, b }, [axes, groups], { shape }) => {
      const outputs = shape.at(-1);
      const data = Array.from({ length: sizeOf(shape) }, (_, i) => (b ? b.data[i % outputs] : 0));
      eachProduct(x, { shape }, w, axes, groups, (i, k, j) => { data[k] += x.data[i] * w.data[j]; });
      return { shape, data };
    },
    backward: ([x], { w, b }, y, dy, [axes, groups]) => {
      const dx = zeros(x), dw = zeros(w), outputs = y.shape.at(-1);
      eachProduct(x, y, w, axes, groups, (i, k, j) => {
        dx.data[i] += dy.data[k] * w.data[j];
        dw.data[j] += dy.data[k] * x.data[i];
      });
      const db = b && collected(b, dy.data.map((_, i) => i % outputs), dy.data);
      return { dxs: [dx], dparams: b ? { w: dw, b: db } : { w: dw } };
    },
  },
  max_pool: {
    forward: ([x], _, [axes], { shape }) =>
      ({ shape, data: winners(x, { shape }, axes).map((i) => x.data[i]) }),
    backward: ([x], _, y, dy, [axes]) => ({ dxs: [collected(x, winners(x, y, axes), dy.data)] }),
  },
  avg_pool: {
    forward: ([x], _, [axes], { shape }) => {
      const y = { shape, data: Array(sizeOf(shape)).fill(0) };
      eachShare(x, y, axes, (i, k, share) => { y.data[k] += x.data[i] * share; });
      return y;
    },
    backward: ([x], _, y, dy, [axes]) => {
      const dx = zeros(x);
      eachShare(x, y, axes, (i, k, share) => { dx.data[i] += dy.data[k] * share; });
      return { dxs: [dx] };
    },
  },
});
