// The layout of a narrow window: an item below the other, in the order in which they run. A value's
// wire goes down a lane of its own on the right and enters its readers from the left.
"use strict";

const STEP = 8, RAIL = 6; // between wires that lie side by side

// A block as high as it has to be: its value's wire leaves below it, not beside it.
function tallSize({ size, stem, tall }) {
  const { shape, exit, down, low } = tall, at = low + tall.captions_high + 4 + tall.out_up;
  return {
    width: stem + Math.max(shape, exit + 10 + tall.captions_wide, exit + tall.out_wide),
    up: size.up, down: at + tall.out_down, ports: size.ports, out: at,
    tall: { x: stem + exit, captions: [stem + exit + 10, low], from: down },
  };
}

// Takes and returns what place() does.
function stacked(net, sizes) {
  const items = net.columns.flat().filter((k) => sizes[k]), order = [];
  const into = (k) => net.wires.map(([source, , target, port], i) => ({ i, source, target, port }))
    .filter(({ target }) => target === k).sort((a, b) => b.port - a.port);
  for (const k of items.filter((k) => !net.inputs.includes(k))) { // an input stands above its reader
    for (const { source } of into(k).reverse()) {
      if (net.inputs.includes(source) && !order.includes(source)) order.push(source);
    }
    order.push(k);
  }
  order.unshift(...items.filter((k) => !order.includes(k)));
  const row = new Map(order.map((k, i) => [k, i]));
  const narrow = (k) => net.inputs.includes(k) && sizes[k].width < NARROW;
  // Inside a network, from its edge to the item below.
  const direct = ({ source, target }) => order.slice(row.get(source), row.get(target)).every(narrow);
  const widest = Math.max(0, ...order.filter(narrow).map((k) => sizes[k].width));
  const left = 5 + widest + STEP * Math.max(...items.map((k) => into(k).length));
  const at = {}, channel = [], ends = new Set();
  let y = 0, right = 0;
  order.forEach((k, r) => {
    const wires = into(k), [x, s] = [net.inputs.includes(k) ? 1 : left, sizes[k]];
    if (net.ends.includes(k) && wires.length === 1 && wires[0].source === order[r - 1]) {
      const source = wires[0].source, size = sizes[source]; // a result stands beside its block
      at[k] = [at[source][0] + size.width + 8, at[source][1] + size.out];
      ends.add(wires[0].i);
    } else {
      y += r ? STEP : 0;
      for (const wire of wires) {
        if (!direct(wire)) channel[wire.i] = y += STEP;
      }
      at[k] = [x, y + s.up + (r ? STEP : 0)];
      y = at[k][1] + s.down;
    }
    right = Math.max(right, at[k][0] + s.width);
  });
  // The shortest wires are innermost; two that lie beside each other have two lanes.
  const lanes = [], laneOf = new Map();
  const last = (k) => Math.max(...net.wires.map(([source, , target], i) =>
    (source === k && channel[i] !== undefined ? row.get(target) : -1)));
  const long = order.map((k) => [k, row.get(k), last(k)]).filter(([, , end]) => end >= 0);
  for (const [k, begin, end] of long.sort((a, b) => a[2] - a[1] - b[2] + b[1])) {
    const free = (lane) => (lanes[lane] ??= []).every(([a, b]) => a >= end || begin >= b);
    let lane = 0;
    while (!free(lane)) lane++;
    lanes[lane].push([begin, end]);
    laneOf.set(k, lane);
  }
  const paths = net.wires.map(([source, , target, port], i) => {
    const { ports } = sizes[target], [x, axis] = at[target], arrives = into(target);
    const end = `V${tenth(axis + ports[Math.min(port, ports.length - 1)])}H${tenth(x)}`;
    const start = `M${tenth(at[source][0] + sizes[source].width)},${tenth(at[source][1] + sizes[source].out)}`;
    if (ends.has(i)) return `${start}H${tenth(x)}`;
    const turn = left - STEP * (arrives.length - arrives.findIndex((wire) => wire.i === i));
    if (channel[i] === undefined) return `${start}H${tenth(turn)}${end}`;
    return `${start}H${tenth(right + 6 + RAIL * laneOf.get(source))}V${tenth(channel[i])}H${tenth(turn)}${end}`;
  });
  const outs = net.ends.map((k) => at[k][1]);
  const whole = {
    width: right + (lanes.length ? 8 + RAIL * (lanes.length - 1) : 0), up: 0, down: y,
    ports: net.inputs.map((k) => at[k][1]), out: outs.reduce((s, v) => s + v, 0) / (outs.length || 1),
  };
  return { at, paths, rows: order.length, size: whole };
}
