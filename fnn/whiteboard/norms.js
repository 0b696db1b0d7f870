// Normalisations: z = (x - mean) rate of each group of entries, y = z scale + bias of each channel,
// the place on the last axis.
"use strict";

// group(i, shape, size): the group of entry i of an array, where size channels are in one.
function normalisation(group) {
  const parts = ([x], params = {}, [epsilon, running, channelsOfOne]) => {
    const width = x.shape.at(-1), groups = x.data.map((_, i) => group(i, x.shape, channelsOfOne));
    const channels = x.data.map((_, i) => i % width), size = Math.max(...groups) + 1;
    const means = (terms) => {
      const sums = collected({ shape: [size], data: Array(size).fill(0) }, groups, terms).data;
      return sums.map((v) => (v * size) / x.data.length);
    };
    const given = (leaf) => params[`statistics/${leaf}`].data;
    const mean = running ? given("mean") : means(x.data);
    const deviations = x.data.map((v, i) => v - mean[groups[i]]);
    const variance = running ? given("var") : means(deviations.map((v) => v * v));
    const rate = variance.map((v) => 1 / Math.sqrt(v + epsilon));
    const z = deviations.map((v, i) => v * rate[groups[i]]);
    const of = (leaf, otherwise) => channels.map((c) => params[leaf]?.data[c] ?? otherwise);
    return { params, groups, channels, means, rate, z, scale: of("scale", 1), bias: of("bias", 0), running };
  };
  return {
    forward: (xs, params, args) => {
      const { z, scale, bias } = parts(xs, params, args);
      return map(xs[0], (_, i) => z[i] * scale[i] + bias[i]);
    },
    backward: (xs, given, y, dy, args) => {
      const { params, groups, channels, means, rate, z, scale, running } = parts(xs, given, args);
      const g = dy.data.map((d, i) => d * scale[i]);
      const [mean, along] = [means(g), means(g.map((v, i) => v * z[i]))];
      const dx = map(xs[0], (_, i) => {
        const k = groups[i];
        return rate[k] * (running ? g[i] : g[i] - mean[k] - z[i] * along[k]);
      });
      const dparams = {};
      if (params.scale) dparams.scale = collected(params.scale, channels, dy.data.map((d, i) => d * z[i]));
      if (params.bias) dparams.bias = collected(params.bias, channels, dy.data);
      return { dxs: [dx], dparams };
    },
  };
}

Object.assign(OPS, {
  layer_norm: normalisation((i, shape) => Math.floor(i / shape.at(-1))),
  batch_norm: normalisation((i, shape) => i % shape.at(-1)),
  ...Object.fromEntries(["group_norm", "instance_norm"].map((name) => [name, normalisation((i, shape, size) => {
    const width = shape.at(-1), example = Math.floor(i / (sizeOf(shape) / shape[0]));
    return (example * width + (i % width)) / size | 0;
  })])),
});
