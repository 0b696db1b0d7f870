// Convolutions and pools: windows that slide over the axes between examples and channels. For each
// of these axes, args have {window, stride, dilation, low}; pools of means also counts.
"use strict";

// The indices of an array's entries in row-major order, and the number of the one at an index.
const indicesOf = (shape) =>
  shape.reduce((all, n) => all.flatMap((at) => Array.from({ length: n }, (_, i) => [...at, i])), [[]]);
const numberOf = (at, shape) => at.reduce((number, i, d) => number * shape[d] + i, 0);

// visit(pixel of x, pixel of y, place in the window, where in y) for all that are in x; of one y the
// places come in row-major order.
function eachPlace(x, y, axes, visit) {
  const [from, to] = [x, y].map(({ shape }) => shape.slice(1, -1));
  const places = indicesOf(axes.map(({ window }) => window)), wheres = indicesOf(to);
  for (let b = 0; b < x.shape[0]; b++) for (const where of wheres) places.forEach((place, k) => {
    const at = axes.map((a, d) => where[d] * a.stride + place[d] * a.dilation - a.low);
    if (at.some((i, d) => i < 0 || i >= from[d])) return;
    visit(b * sizeOf(from) + numberOf(at, from), b * sizeOf(to) + numberOf(where, to), k, where);
  });
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
    const count = axes.reduce((n, { counts }, d) => n * counts[where[d]], 1);
    for (let c = 0; c < channels; c++) visit(p * channels + c, q * channels + c, 1 / count);
  });
}

// Both ways of a convolution: products(x, y, w, ...) visits as eachProduct does.
function convolution(products) {
  return {
    forward: ([x], { w, b }, [axes, groups], { shape }) => {
      const outputs = shape.at(-1);
      const data = Array.from({ length: sizeOf(shape) }, (_, i) => (b ? b.data[i % outputs] : 0));
      products(x, { shape }, w, axes, groups, (i, k, j) => { data[k] += x.data[i] * w.data[j]; });
      return { shape, data };
    },
    backward: ([x], { w, b }, y, dy, [axes, groups]) => {
      const dx = zeros(x), dw = zeros(w), outputs = y.shape.at(-1);
      products(x, y, w, axes, groups, (i, k, j) => {
        dx.data[i] += dy.data[k] * w.data[j];
        dw.data[j] += dy.data[k] * x.data[i];
      });
      const db = b && collected(b, dy.data.map((_, i) => i % outputs), dy.data);
      return { dxs: [dx], dparams: b ? { w: dw, b: db } : { w: dw } };
    },
  };
}

Object.assign(OPS, {
  conv: convolution(eachProduct),
  conv_transpose: convolution((x, y, w, axes, groups, visit) =>
    eachProduct(y, x, w, axes, groups, (i, k, j) => visit(k, i, j))),
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
