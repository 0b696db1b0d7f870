// A small network, computed in the page: forward, backward, one step of gradient descent.
// Arrays are {shape, data}, with the last axis fastest. References name them: v3 the value of wire
// 3, d3 its gradient; x5.0 what block 5 sends back at port 0; p5.w, g5.w a parameter and its
// gradient; l5.0, m5.w local derivatives by an input, by a parameter; o3 ones.
"use strict";

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
    const back = OPS[op.op].backward(xs, this.params[op.params], this.value.get(op.out), dy, op.args);
    return op.frozen ? { dxs: back.dxs } : back;
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
    if (kind === "g") return this.back.get(op).dparams?.[rest] ?? null;
    const { dxs, dparams } = this.pulled(op, map(this.value.get(op.out), () => 1));
    return kind === "l" ? dxs[Number(rest)] : dparams?.[rest] ?? null;
  }

  get loss() {
    return total(this.value.get(this.program.output));
  }

  // Whether it gets the gradients that were recorded. A small one may be what rounding left of large
  // ones, as that of a bias before batch_norm.
  get agrees() {
    const { gradients, tolerance } = this.program;
    const largest = (data) => Math.max(...data.map(Math.abs), tolerance);
    const least = 0.01 * Math.max(0, ...Object.values(gradients).map(({ data }) => largest(data)));
    return Object.entries(gradients).every(([reference, { data }]) => {
      const mine = this.get(reference), size = Math.max(largest(data), least);
      return mine && data.every((v, i) => Math.abs(v - mine.data[i]) <= tolerance * size);
    });
  }

  // What a step changes: the parameters; of a circuit without any, its inputs.
  step(rate) {
    const less = (a, d) => a.data.forEach((_, i) => { a.data[i] -= rate * d.data[i]; });
    for (const [owner, leaves] of Object.entries(this.params)) {
      for (const leaf in leaves) { // but for what has no gradient, such as running statistics
        if (this.dparams[owner]?.[leaf]) less(leaves[leaf], this.dparams[owner][leaf]);
      }
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
