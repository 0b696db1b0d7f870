// place() of layout.py again, because positions change as networks unfold and with the window's
// width. A test holds the two equal.
"use strict";

const GAP = 26, LANE = 16, MARGIN = 26, CHANNEL = 30, NARROW = 40;

const tenth = (v) => Math.floor(v * 10 + 0.5) / 10;

// A net: columns (of indices; those beyond its items are waypoints), wires, inputs, and items
// {id, size: {width, up, down, ports, out}, slots, stem, net}. late: as in Layers.
function place(net, sizes, width) {
  const waypoint = { width: 0, up: 4, down: 4, ports: [0], out: 0 };
  const size = (k) => sizes[k] || waypoint;
  const y = heights(net, size);
  const wide = net.columns.map((column) => Math.max(...column.map((k) => size(k).width)));
  const rows = [[]], lefts = [], moved = new Map();
  const all = wide.reduce((s, w) => s + w, 0) + GAP * (wide.length - 1);
  const room = all <= width ? width : width - MARGIN;
  let x = 0;
  net.columns.forEach((column, i) => {
    const ends = column.every((k) => net.ends.includes(k)), dots = i === 1 && wide[0] < NARROW;
    let needs = wide[i];
    if (column.some((k) => net.late.includes(k)) && i + 1 < wide.length) {
      const both = wide[i] + GAP + wide[i + 1];
      if (MARGIN + both <= room) needs = both;
    }
    if (rows.at(-1).length && x + needs > room && !ends && !dots) {
      rows.push([]);
      x = MARGIN;
      const beside = net.columns[i - 1].filter((k) => net.late.includes(k));
      const widest = Math.max(0, ...beside.map((k) => size(k).width));
      if (beside.length && MARGIN + widest + GAP + wide[i] <= room) {
        for (const k of beside) moved.set(k, MARGIN + widest);
        x += widest + GAP;
      }
    }
    rows.at(-1).push(i);
    lefts.push(x);
    x += wide[i] + GAP;
  });
  const at = {}, rowOf = {}, columnOf = {}, bottoms = [], rights = [];
  net.columns.forEach((column, i) => column.forEach((k) => { columnOf[k] = i; }));
  let top = 0;
  rows.forEach((row, r) => {
    const last = row.at(-1), keys = row.flatMap((i) => net.columns[i]).filter((k) => !moved.has(k));
    if (r) keys.push(...net.columns[row[0] - 1].filter((k) => moved.has(k)));
    const high = Math.min(...keys.map((k) => y[k] - size(k).up));
    const low = Math.max(...keys.map((k) => y[k] + size(k).down));
    const shift = r ? bottoms.at(-1) + CHANNEL - high : 0;
    if (!r) top = high;
    for (const k of keys) {
      const i = columnOf[k], end = moved.get(k) ?? lefts[i] + wide[i];
      at[k] = [net.late.includes(k) ? end - size(k).width : lefts[i], y[k] + shift];
      rowOf[k] = r;
    }
    bottoms.push(low + shift);
    rights.push(lefts[last] + wide[last]);
  });
  const turns = new Map();
  const paths = net.wires.map(([source, via, target, port]) => {
    let a = source;
    let out = [at[a][0] + size(a).width, at[a][1] + size(a).out];
    let text = `M${tenth(out[0])},${tenth(out[1])}`;
    for (const b of [...via, target]) {
      const ports = size(b).ports;
      const end = [at[b][0], at[b][1] + (b === target ? ports[Math.min(port, ports.length - 1)] : 0)];
      if (rowOf[a] === rowOf[b]) {
        text += curve(out, end);
      } else {
        const r = rowOf[a], key = `${r} ${source}`;
        const lane = turns.get(key) ?? [...turns.keys()].filter((k) => k.startsWith(`${r} `)).length;
        turns.set(key, lane);
        text += turn(end, rights[r] + 8 + 5 * lane, bottoms[r] + 9 + 5 * lane, lane);
      }
      a = b;
      out = end;
      if (b !== target) {
        out = [end[0] + wide[columnOf[b]], end[1]];
        text += `H${tenth(out[0])}`;
      }
    }
    return text;
  });
  const outs = net.ends.map((k) => at[k][1]);
  const out = outs.length ? outs.reduce((s, v) => s + v, 0) / outs.length : 0;
  const right = Math.max(...rights) + (rows.length > 1 ? MARGIN : 0);
  const ports = net.inputs.map((k) => at[k][1]);
  const whole = { width: right, up: -top, down: bottoms.at(-1), ports, out };
  return { at, paths, rows: rows.length, size: whole };
}

function heights(net, size) {
  const arrives = new Map(), leaves = new Map();
  const add = (map, k, entry) => map.set(k, [...(map.get(k) || []), entry]);
  for (const [source, via, target, port] of net.wires) {
    const stops = [source, ...via, target];
    for (let i = 1; i < stops.length; i++) {
      const [a, b] = [stops[i - 1], stops[i]], ports = size(b).ports;
      const p = b === target ? ports[Math.min(port, ports.length - 1)] : 0;
      add(arrives, b, [a, size(a).out - p]);
      add(leaves, a, [b, p - size(a).out]);
    }
  }
  const y = {};
  for (const column of net.columns) stack(column, arrives, size, y);
  for (const column of net.columns.slice(0, -1).reverse()) {
    if (column.every((k) => net.inputs.includes(k))) stack(column, leaves, size, y);
  }
  return y;
}

function stack(column, near, size, y) {
  const pools = [], offsets = [];
  let offset = 0;
  column.forEach((k, i) => {
    if (i) offset += size(column[i - 1]).down + LANE + size(k).up;
    offsets.push(offset);
    const wanted = (near.get(k) || []).filter(([m]) => m in y).map(([m, shift]) => y[m] + shift);
    const goal = wanted.length ? wanted.reduce((s, v) => s + v, 0) / wanted.length : 0;
    pools.push([goal - offset, 1]);
    while (pools.length > 1) {
      const [a, b] = pools.slice(-2);
      if (a[0] / a[1] < b[0] / b[1]) break;
      pools.splice(-2, 2, [a[0] + b[0], a[1] + b[1]]);
    }
  });
  let i = 0;
  for (const [total, count] of pools) {
    for (let j = 0; j < count; j++, i++) y[column[i]] = total / count + offsets[i];
  }
}

function curve(a, b) {
  if (Math.abs(a[1] - b[1]) < 0.05) return `H${tenth(b[0])}`;
  const bend = Math.max(b[0] - GAP, a[0]), middle = tenth((bend + b[0]) / 2);
  return `H${tenth(bend)}C${middle},${tenth(a[1])} ${middle},${tenth(b[1])} ` +
    `${tenth(b[0])},${tenth(b[1])}`;
}

function turn(b, right, channel, lane) {
  const left = MARGIN / 2 - 3 * lane;
  return `H${tenth(right)}V${tenth(channel)}H${tenth(left)}V${tenth(b[1])}H${tenth(b[0])}`;
}
