// Two weights: the surface to turn, the map to click on, and the paths of three methods.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);

// ---- E, its gradient and its Hessian, in closed form -----------------------------------------

const CLOSED = {
  // E = (w2 w1 x - y)^2 / 2
  product({ x: [x], y: [y] }, [w1, w2]) {
    const d = w2 * w1 * x - y, off = d * x + w1 * w2 * x * x;
    return {
      error: (d * d) / 2,
      gradient: [d * w2 * x, d * w1 * x],
      hessian: [[(w2 * x) ** 2, off], [off, (w1 * x) ** 2]],
    };
  },
  // Half the mean square of d = tanh(w1 x) + tanh(w2 x) - y
  neurons({ x, y }, [w1, w2]) {
    let error = 0, g1 = 0, g2 = 0, h11 = 0, h12 = 0, h22 = 0;
    x.forEach((x, i) => {
      const t1 = Math.tanh(w1 * x), t2 = Math.tanh(w2 * x), d = t1 + t2 - y[i];
      const s1 = x * (1 - t1 * t1), s2 = x * (1 - t2 * t2); // dt/dw, as tanh' = 1 - tanh^2
      error += (d * d) / 2;
      g1 += d * s1;
      g2 += d * s2;
      h11 += s1 * s1 - 2 * d * x * t1 * s1;
      h12 += s1 * s2;
      h22 += s2 * s2 - 2 * d * x * t2 * s2;
    });
    const n = x.length;
    return {
      error: error / n,
      gradient: [g1 / n, g2 / n],
      hessian: [[h11 / n, h12 / n], [h12 / n, h22 / n]],
    };
  },
};

function local(name, w) {
  return CLOSED[name](DATA.landscapes[name], w);
}

// Eigenvalues of a symmetric matrix, the lower first, and the angle of the higher one's vector.
function eigen([[a, b], [, d]]) {
  const middle = (a + d) / 2, radius = Math.hypot((a - d) / 2, b);
  return { low: middle - radius, high: middle + radius, angle: Math.atan2(2 * b, a - d) / 2 };
}

// ---- three methods ---------------------------------------------------------------------------

// -V (V^T g / of(eigenvalues)), for the eigenvectors V of the Hessian.
function byEigenvalues({ gradient: [g1, g2], hessian }, of) {
  const { low, high, angle } = eigen(hessian), c = Math.cos(angle), s = Math.sin(angle);
  const over = (along, e) => (Math.abs(of(e)) < 1e-15 ? 0 : along / of(e)); // 0 but for rounding
  const up = over(c * g1 + s * g2, high), down = over(-s * g1 + c * g2, low);
  return [-(c * up - s * down), -(s * up + c * down)];
}

const STEPS = {
  "gradient descent": ({ gradient }) => gradient.map((g) => -DATA.rate * g),
  "Newton": (here) => byEigenvalues(here, (e) => e),
  "saddle-free Newton": (here) => byEigenvalues(here, (e) => Math.abs(e) + DATA.damping),
};

function path(name, method, start) {
  let w = start;
  const passed = [w];
  for (let i = 0; i < DATA.steps; i++) {
    const here = local(name, w);
    if (Math.max(...here.gradient.map(Math.abs)) < DATA.arrived) break;
    if (Math.max(...w.map(Math.abs)) > DATA.far) break;
    const move = STEPS[method](here);
    const shorter = Math.min(1, DATA.longest / Math.hypot(...move));
    w = [w[0] + shorter * move[0], w[1] + shorter * move[1]];
    if (!w.every(Number.isFinite)) break;
    passed.push(w);
  }
  return passed;
}

// What a point of a path is, in a word or two.
function verdict(here, last, w) {
  const { low, high } = eigen(here.hessian);
  if (Math.max(...w.map(Math.abs)) > DATA.far) return "left for good";
  if (Math.max(...here.gradient.map(Math.abs)) > DATA.arrived) return last ? "not there yet" : "";
  return high < DATA.negative ? "a maximum" : low < DATA.negative ? "a saddle" : "a minimum";
}

// ---- colours -----------------------------------------------------------------------------------

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const GROUND = DATA.ground.map(channels);

// Of a height from 0 to 1; low heights are told apart best, where all that matters happens.
function ground(height) {
  const at = Math.min(1, height) ** 0.45 * (GROUND.length - 1);
  const i = Math.min(Math.floor(at), GROUND.length - 2);
  return GROUND[i].map((from, k) => from + (at - i) * (GROUND[i + 1][k] - from));
}

const rgb = (color, light = 1) => `rgb(${color.map((c) => Math.min(255, Math.round(c * light)))})`;
const ink = () => getComputedStyle(document.body).color;

// ---- the page ----------------------------------------------------------------------------------

const $ = (css) => document.querySelector(css);
const map = $("#map"), surface = $("#surface"), slider = $("#at");
const shown = {
  name: "product", start: null, paths: {}, frame: 0, timer: 0, azimuth: 0, elevation: 0,
};

const land = () => DATA.landscapes[shown.name];

// How many steps are shown at each frame: every one at first, more and more later.
const FRAMES = [0];
while (FRAMES.at(-1) < DATA.steps) {
  FRAMES.push(Math.min(DATA.steps, Math.max(FRAMES.at(-1) + 1, Math.round(FRAMES.at(-1) * 1.05))));
}

function choose(name) {
  shown.name = name;
  [shown.elevation, shown.azimuth] = land().camera;
  $(`input[value=${name}]`).checked = true;
  $("#about").textContent = land().about;
  paintMap();
  begin(land().starts[0]);
  go(lastFrame());
}

function begin(start) {
  stop();
  shown.start = start;
  for (const method in STEPS) shown.paths[method] = path(shown.name, method, start);
  slider.max = lastFrame();
  go(0);
}

function lastFrame() {
  const most = Math.max(...Object.values(shown.paths).map((passed) => passed.length - 1));
  return FRAMES.findIndex((steps) => steps >= most);
}

function go(frame) {
  shown.frame = Math.max(0, Math.min(lastFrame(), frame));
  slider.value = shown.frame;
  slider.setAttribute("aria-valuetext", `step ${FRAMES[shown.frame]}`);
  draw();
}

function play() {
  if (shown.frame >= lastFrame()) go(0);
  $("#play").textContent = "pause";
  const tick = () => {
    go(shown.frame + 1);
    // Slowly at first: the first steps say most.
    if (shown.frame < lastFrame()) shown.timer = setTimeout(tick, shown.frame < 12 ? 350 : 60);
    else stop();
  };
  shown.timer = setTimeout(tick, 350);
}

function stop() {
  clearTimeout(shown.timer);
  shown.timer = 0;
  $("#play").textContent = "play";
}

const chosen = () => Object.keys(STEPS).filter((method) => $(`input[data-method="${method}"]`).checked);
const passedSoFar = (method) => shown.paths[method].slice(0, FRAMES[shown.frame] + 1);

function draw() {
  drawMap();
  drawSurface();
  const said = [];
  for (const method in STEPS) {
    const passed = passedSoFar(method), w = passed.at(-1), here = local(shown.name, w);
    const { low, high } = eigen(here.hessian);
    const last = passed.length === shown.paths[method].length;
    const word = verdict(here, last, w);
    const index = (low < DATA.negative) + (high < DATA.negative);
    const cells = [
      passed.length - 1, `${fixed(w[0])}, ${fixed(w[1])}`, here.error.toPrecision(3),
      Math.max(...here.gradient.map(Math.abs)).toExponential(0),
      `${fixed(low)}, ${fixed(high)}`, index, word,
    ];
    const row = $(`tr[data-method="${method}"]`);
    cells.forEach((text, i) => { row.cells[i + 1].textContent = text; });
    if (last && word) said.push(`${method}: ${word} after ${passed.length - 1} steps`);
  }
  // Only the end is read aloud.
  const ended = shown.frame >= lastFrame();
  $("#said").textContent = ended ? said.join("; ") : `step ${FRAMES[shown.frame]}`;
}

const fixed = (v) => (Math.round(v * 1e4) / 1e4 + 0).toFixed(4).replace("-", "\u2212");

// A canvas as sharp as the screen, in units of CSS pixels.
function prepared(canvas) {
  const ratio = devicePixelRatio || 1, { clientWidth: w, clientHeight: h } = canvas;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, w, h);
  pen.lineJoin = pen.lineCap = "round";
  return [pen, w, h];
}

// A line with a white casing and a dot at each step; null breaks it.
function drawPath(pen, points, color) {
  for (const [width, style] of [[4.5, "white"], [2.2, color]]) {
    pen.beginPath();
    let on = false;
    for (const p of points) {
      if (p) pen[on ? "lineTo" : "moveTo"](...p);
      on = Boolean(p);
    }
    pen.lineWidth = width;
    pen.strokeStyle = style;
    pen.stroke();
  }
  const every = Math.max(1, Math.floor(points.length / 50));
  points.forEach((p, i) => {
    const last = i === points.length - 1;
    if (p && (last || i % every === 0)) dot(pen, p, last ? 5 : 3, color, "white", 1);
  });
}

function dot(pen, [x, y], radius, fill, edge, width) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = fill;
  pen.fill();
  pen.lineWidth = width;
  pen.strokeStyle = edge;
  pen.stroke();
}

// A diamond is a saddle, a circle a minimum.
function mark(pen, [x, y], index) {
  if (!index) return dot(pen, [x, y], 5.5, "white", "#1c2430", 2);
  pen.beginPath();
  for (const [dx, dy] of [[0, -7], [7, 0], [0, 7], [-7, 0]]) pen.lineTo(x + dx, y + dy);
  pen.closePath();
  pen.fillStyle = "white";
  pen.fill();
  pen.lineWidth = 2;
  pen.strokeStyle = "#1c2430";
  pen.stroke();
}

function write(pen, text, x, y, align = "center") {
  pen.font = "13px system-ui, sans-serif";
  pen.textAlign = align;
  pen.textBaseline = "middle";
  pen.fillStyle = ink();
  pen.fillText(text, x, y);
}

// A text on the surface, with an edge in the colour of the page.
function label(pen, text, x, y) {
  pen.font = "600 12.5px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineWidth = 4;
  pen.strokeStyle = getComputedStyle($("section")).backgroundColor;
  pen.strokeText(text, x, y);
  pen.fillStyle = ink();
  pen.fillText(text, x, y);
}

// ---- the map -----------------------------------------------------------------------------------

const EDGE = 34, BANDS = 22, PIXELS = 420;
const painted = document.createElement("canvas");

// The ground of the map, in bands of equal height with a line between them.
function paintMap() {
  const [from, to] = land().view, n = PIXELS, pixel = (to - from) / (n - 1);
  const e = new Float64Array(n * n), band = new Uint8Array(n * n);
  for (let k = 0; k < n * n; k++) {
    e[k] = local(shown.name, [from + (k % n) * pixel, to - Math.floor(k / n) * pixel]).error;
  }
  const top = e.reduce((a, b) => Math.max(a, b));
  const colors = Array.from({ length: BANDS }, (_, i) => ground(((i + 0.5) / BANDS) ** 2.6));
  e.forEach((e, k) => { band[k] = Math.min(BANDS - 1, Math.floor((e / top) ** (1 / 2.6) * BANDS)); });
  painted.width = painted.height = n;
  const pen = painted.getContext("2d"), image = pen.createImageData(n, n);
  for (let k = 0; k < n * n; k++) {
    const line = (k % n && band[k] !== band[k - 1]) || (k >= n && band[k] !== band[k - n]);
    colors[band[k]].forEach((c, i) => { image.data[4 * k + i] = line ? c + 0.45 * (255 - c) : c; });
    image.data[4 * k + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
}

function onMap(w) {
  const [from, to] = land().view, side = map.clientWidth - EDGE - 8, high = map.clientHeight - EDGE - 8;
  return [EDGE + ((w[0] - from) / (to - from)) * side, 8 + ((to - w[1]) / (to - from)) * high];
}

function fromMap(x, y) {
  const [from, to] = land().view, side = map.clientWidth - EDGE - 8, high = map.clientHeight - EDGE - 8;
  const inside = (share) => from + Math.max(0, Math.min(1, share)) * (to - from);
  return [inside((x - EDGE) / side), inside(1 - (y - 8) / high)];
}

function drawMap() {
  const [pen, w, h] = prepared(map), [from, to] = land().view;
  pen.drawImage(painted, EDGE, 8, w - EDGE - 8, h - EDGE - 8);
  for (let tick = Math.ceil(from); tick <= to; tick++) {
    const text = String(tick).replace("-", "\u2212");
    write(pen, text, onMap([tick, 0])[0], h - 22);
    write(pen, text, EDGE - 6, onMap([0, tick])[1], "right");
  }
  write(pen, "w\u2081", EDGE + (w - EDGE) / 2, h - 7);
  write(pen, "w\u2082", 9, (h - EDGE) / 2);
  pen.save();
  pen.beginPath();
  pen.rect(EDGE, 8, w - EDGE - 8, h - EDGE - 8);
  pen.clip();
  for (const method of chosen()) drawPath(pen, passedSoFar(method).map(onMap), DATA.colors[method]);
  for (const point of land().critical) mark(pen, onMap(point.w), point.index);
  const [x, y] = onMap(shown.start);
  pen.fillStyle = "#1c2430";
  pen.strokeStyle = "white";
  pen.lineWidth = 1.5;
  pen.beginPath();
  pen.rect(x - 4.5, y - 4.5, 9, 9);
  pen.fill();
  pen.stroke();
  pen.restore();
}

// ---- the surface -------------------------------------------------------------------------------

// The surface as points in space, both weights and the height scaled to numbers around 0.
function solid() {
  const own = land();
  if (own.points) return own;
  const [w1, w2] = own.mesh, flat = [...w1.flat(), ...w2.flat()];
  own.low = Math.min(...flat);
  own.high = Math.max(...flat);
  own.heights = w1.map((line, i) => line.map((a, j) => local(shown.name, [a, w2[i][j]]).error));
  own.top = Math.max(...own.heights.flat());
  const half = (own.high - own.low) / 2;
  const scaled = ([a, b], e) => [a / half, b / half, (1.1 * e) / own.top];
  const raw = w1.map((line, i) => line.map((a, j) => scaled([a, w2[i][j]], own.heights[i][j])));
  const all = raw.flat();
  const middle = [0, 1, 2].map((k) => all.reduce((sum, p) => sum + p[k], 0) / all.length);
  own.place = (w, e) => scaled(w, e).map((v, k) => v - middle[k]);
  own.points = raw.map((line) => line.map((p) => p.map((v, k) => v - middle[k])));
  own.radius = Math.max(...own.points.flat().map((p) => Math.hypot(...p)));
  return own;
}

// The projection of a point: to the right, down the page, and away from the eye.
function projection(w, h) {
  const rad = Math.PI / 180, scale = (0.58 * Math.min(w / 1.2, h)) / solid().radius;
  const ca = Math.cos(shown.azimuth * rad), sa = Math.sin(shown.azimuth * rad);
  const ce = Math.cos(shown.elevation * rad), se = Math.sin(shown.elevation * rad);
  return ([x, y, z]) => {
    const near = ca * x + sa * y;
    const across = ca * y - sa * x, up = ce * z - se * near;
    return [w / 2 + scale * across, h / 2 - scale * up, -(ce * near + se * z)];
  };
}

function drawSurface() {
  const [pen, w, h] = prepared(surface), own = solid(), { heights, low, high } = own;
  const view = projection(w, h);
  const project = (w, e) => view(own.place(w, e));
  floor(pen, project, low, high);
  const at = own.points.map((line) => line.map(view));
  const faces = [];
  for (let i = 1; i < at.length; i++) {
    for (let j = 1; j < at[0].length; j++) {
      const corners = [[i - 1, j - 1], [i - 1, j], [i, j], [i, j - 1]];
      const depth = corners.reduce((sum, [r, c]) => sum + at[r][c][2], 0);
      faces.push({ corners, depth, i, j });
    }
  }
  faces.sort((a, b) => b.depth - a.depth);
  for (const { corners, i, j } of faces) {
    const height = corners.reduce((sum, [r, c]) => sum + heights[r][c], 0) / 4 / own.top;
    const color = rgb(ground(height), shade(own, corners));
    pen.beginPath();
    for (const [r, c] of corners) pen.lineTo(at[r][c][0], at[r][c][1]);
    pen.closePath();
    pen.fillStyle = pen.strokeStyle = color; // the stroke closes the seams
    pen.lineWidth = 0.7;
    pen.fill();
    pen.stroke();
    pen.strokeStyle = "rgb(255 255 255 / 35%)";
    for (const [on, [a, b]] of [[i % 4 === 1, [0, 1]], [j % 4 === 1, [0, 3]]]) {
      if (!on) continue;
      const [p, q] = [corners[a], corners[b]].map(([r, c]) => at[r][c]);
      pen.beginPath();
      pen.moveTo(p[0], p[1]);
      pen.lineTo(q[0], q[1]);
      pen.stroke();
    }
  }
  const lift = 0.012 * own.top;
  const seen = (v) => {
    const e = local(shown.name, v).error;
    const inside = v.every((a) => a >= low && a <= high) && e <= 1.1 * own.top;
    return inside ? project(v, e + lift).slice(0, 2) : null;
  };
  for (const method of chosen()) drawPath(pen, passedSoFar(method).map(seen), DATA.colors[method]);
  for (const point of own.critical) {
    const [x, y] = project(point.w, local(shown.name, point.w).error + lift);
    mark(pen, [x, y], point.index);
    label(pen, `${point.name}: index ${point.index}`, x, y + (point.index ? -18 : 18));
  }
}

// Light from above and the left of the eye: the angle between it and a face.
function shade({ points }, corners) {
  const [p, q, , s] = corners.map(([r, c]) => points[r][c]);
  const u = q.map((v, k) => v - p[k]), v = s.map((v, k) => v - p[k]);
  const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
  const turn = ((shown.azimuth - 50) * Math.PI) / 180;
  const sun = [0.6 * Math.cos(turn), 0.6 * Math.sin(turn), 0.8];
  const side = Math.sign(n[2]) || 1, length = Math.hypot(...n) || 1;
  return 0.58 + 0.46 * Math.max(0, (side * n.reduce((sum, c, k) => sum + c * sun[k], 0)) / length);
}

// The square below the surface, with the names of its sides.
function floor(pen, project, low, high) {
  const corners = [[low, low], [high, low], [high, high], [low, high]].map((w) => project(w, 0));
  pen.beginPath();
  for (const [x, y] of corners) pen.lineTo(x, y);
  pen.closePath();
  pen.strokeStyle = ink();
  pen.globalAlpha = 0.35;
  pen.lineWidth = 1;
  pen.stroke();
  pen.globalAlpha = 1;
  const middle = (low + high) / 2, out = 0.17 * (high - low);
  const front = (a, b) => (project(a, 0)[2] < project(b, 0)[2] ? a : b); // of two sides, the nearer
  const name = (text, w) => write(pen, text, ...project(w, 0).slice(0, 2));
  name("w\u2081", front([middle, low - out], [middle, high + out]));
  name("w\u2082", front([low - out, middle], [high + out, middle]));
}

// ---- mouse, touch and keys ---------------------------------------------------------------------

function turn(across, up) {
  shown.azimuth = (shown.azimuth + across) % 360;
  shown.elevation = Math.max(5, Math.min(90, shown.elevation + up));
  drawSurface();
}

// Pointer events are those of mouse, pen and finger alike.
surface.addEventListener("pointerdown", (event) => surface.setPointerCapture(event.pointerId));
surface.addEventListener("pointermove", (event) => {
  if (surface.hasPointerCapture(event.pointerId)) turn(-event.movementX / 2, event.movementY / 2);
});
map.addEventListener("pointerdown", (event) => {
  map.setPointerCapture(event.pointerId);
  begin(fromMap(event.offsetX, event.offsetY));
});
map.addEventListener("pointermove", (event) => {
  if (map.hasPointerCapture(event.pointerId)) begin(fromMap(event.offsetX, event.offsetY));
});
map.addEventListener("pointerup", () => play());

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
surface.addEventListener("keydown", (event) => {
  const arrow = ARROWS[event.key];
  if (!arrow) return;
  event.preventDefault();
  turn(5 * arrow[0], 5 * arrow[1]);
});
map.addEventListener("keydown", (event) => {
  const arrow = ARROWS[event.key];
  if (arrow) {
    const [x, y] = onMap(shown.start), far = event.shiftKey ? 1 : 6;
    begin(fromMap(x + far * arrow[0], y - far * arrow[1]));
  } else if (event.key === "Enter" || event.key === " ") {
    play();
  } else return;
  event.preventDefault();
});

$("#play").addEventListener("click", () => (shown.timer ? stop() : play()));
for (const [id, by] of [["#back", -1], ["#next", 1]]) {
  $(id).addEventListener("click", () => { stop(); go(shown.frame + by); });
}
$("#other").addEventListener("click", () => {
  const starts = land().starts;
  const now = starts.findIndex((start) => String(start) === String(shown.start));
  begin(starts[(now + 1) % starts.length]);
  play();
});
slider.addEventListener("input", () => { stop(); go(Number(slider.value)); });
for (const input of document.querySelectorAll("input[name=network]")) {
  input.addEventListener("change", () => choose(input.value));
}
for (const input of document.querySelectorAll("input[data-method]")) {
  input.addEventListener("change", draw);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(draw).observe(map);

choose("product");
