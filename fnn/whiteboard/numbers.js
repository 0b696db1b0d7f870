// Numbers as array_text.py and chain_rule.py write them, for values that have changed.
"use strict";

const EXACT = 9, COLUMN = 5, CELL = 8;

function number(value, digits = 4) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e").map(Number);
  const text = !value || (exponent >= -4 && exponent < digits) ? String(Number(value.toPrecision(digits)))
    : `${mantissa}e${exponent}`;
  return text.replaceAll("-", "−");
}

// With fewer digits where four would take more room than there is.
const short = (value) => [4, 3, 2].map((digits) => number(value, digits))
  .find((text, i) => text.length <= CELL || i === 2);

const exactly = (value) => String(value).replaceAll("-", "−").replace("Infinity", "∞");
const bracketed = (text) => (text.startsWith("−") ? `(${text})` : text);

function columnsOfRows({ shape, data }) {
  const size = data.length, last = shape.at(-1);
  if (size === Math.max(...shape, 1)) return size <= COLUMN ? 1 : Math.ceil(size / 3);
  if (last > 1 && last < 5) return last;
  return Math.ceil(size / (size < EXACT ? Math.ceil(size / 4) : 3));
}

// The numbers in rows, as texts of one width.
function rowsOf(a) {
  const texts = a.data.map(short), columns = columnsOfRows(a);
  const width = a.data.length > columns ? Math.max(...texts.map((text) => text.length)) : 0;
  const rows = [];
  for (let i = 0; i < texts.length; i += columns) {
    rows.push(texts.slice(i, i + columns).map((text) => text.padStart(width)));
  }
  return rows;
}

function summaryOf({ data }) {
  const n = data.length, mean = data.reduce((s, v) => s + v, 0) / n;
  const spread = Math.sqrt(data.reduce((s, v) => s + (v - mean) ** 2, 0) / n);
  const largest = Math.max(...data.map(Math.abs));
  const rounded = Math.abs(mean) <= 2.3e-16 * largest ? 0 : mean;
  const length = Math.sqrt(data.reduce((s, v) => s + v * v, 0));
  return { summary: `${number(rounded)} ± ${number(spread)}`, magnitude: number(length) };
}

// 2, a vector (1, 2), a column (1, 2)ᵀ, a matrix [1, 2; 3, 4].
function writtenMatrix(rows) {
  const texts = rows.map((row) => row.map((v) => number(v)));
  if (texts.length === 1) return texts[0].length === 1 ? texts[0][0] : `(${texts[0].join(", ")})`;
  if (texts[0].length === 1) return `(${texts.map(([text]) => text).join(", ")})ᵀ`;
  return `[${texts.map((row) => row.join(", ")).join("; ")}]`;
}

function matrixOf({ data }, columns, transposed) {
  const rows = [];
  for (let i = 0; i < data.length; i += columns) rows.push(data.slice(i, i + columns));
  return transposed ? rows[0].map((_, k) => rows.map((row) => row[k])) : rows;
}

// The factors of a product and its result; get() finds the array of a reference.
function productOf(get, factors, result) {
  const matrices = Array.isArray(factors[0]);
  const rows = factors.map((factor) => (matrices
    ? matrixOf(get(factor[0]), factor[1], factor[2]) : [get(factor).data]));
  let down = result ? get(result).data : rows.map(([row]) => row).reduce((a, b) =>
    (a.length >= b.length ? a.map((v, i) => v * b[b.length > 1 ? i : 0]) : b.map((v) => v * a[0])));
  if (matrices) down = matrixOf({ data: down }, rows[1][0].length, false);
  return { matrices, rows, down: matrices ? down : [down] };
}

function writtenProduct(get, factors, result) {
  const { matrices, rows, down } = productOf(get, factors, result);
  if (rows.length === 1 && !result) return writtenMatrix(rows[0]);
  const text = rows.map((row, i) => {
    if (!i) return writtenMatrix(row);
    const several = row.flat().length > 1 && rows[i - 1].flat().length > 1;
    return `${matrices ? "·" : several ? "⊙" : "×"} ${bracketed(writtenMatrix(row))}`;
  });
  return `${text.join(" ")} = ${writtenMatrix(down)}`;
}

// A product a line, entry by entry.
function productLines(get, factors, result) {
  const { rows, down } = productOf(get, factors, result), size = down[0].length;
  const columns = [...rows, down].map(([row]) => {
    const texts = Array.from({ length: size }, (_, i) => short(row[row.length > 1 ? i : 0]));
    const width = Math.max(...texts.map((text) => text.length));
    return texts.map((text) => text.padStart(width));
  });
  return columns[0].map((_, i) => {
    const line = columns.map((column) => column[i]);
    return `${line.slice(0, -1).join(" × ")} = ${line.at(-1)}`;
  });
}

function writtenFork(get, terms, result) {
  const text = terms.map((term) => bracketed(number(get(term)?.data[0] ?? 0))).join(" + ");
  return result ? `${text} = ${number(get(result).data[0])}` : text;
}

// A number, product or fork in a line of the panel, by its recipe (numbers.py).
function writtenAnew(get, recipe, exact) {
  if (Array.isArray(recipe)) {
    const [kind, parts, result] = recipe;
    return kind === "fork" ? writtenFork(get, parts, result) : writtenProduct(get, parts, result);
  }
  const a = get(recipe), gradient = "dxgo".includes(recipe[0]);
  if (a.data.length > EXACT) {
    const { summary, magnitude } = summaryOf(a);
    return `${summary}${gradient ? `, |g| = ${magnitude}` : ""}  (${a.shape.join("×")})`;
  }
  if (exact) {
    const list = a.data.map(exactly).join(", ");
    return a.shape.length ? `[${list}]` : list;
  }
  const matrix = a.shape.length === 2 && Math.min(...a.shape) > 1;
  return writtenMatrix(matrixOf(a, matrix ? a.shape[1] : a.data.length, false));
}

// The cells of a heat map: as the matrix is, a vector in lines.
function cellsOf({ shape, data }) {
  const last = shape.at(-1);
  if (data.length !== Math.max(...shape)) return { rows: data.length / last, columns: last };
  const side = Math.floor(Math.sqrt(data.length)), whole = side * side === data.length;
  const columns = whole && data.length <= 1024 ? side : Math.min(data.length, 2 * side);
  return { rows: Math.ceil(data.length / columns), columns };
}

function heatOf(a, gradient) {
  const { rows, columns } = cellsOf(a), canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), limit = Math.max(...a.data.map(Math.abs)) || 1;
  const [above, below] = gradient ? [[198, 40, 40], [33, 102, 172]] : [[27, 127, 59], [140, 81, 10]];
  for (let i = 0; i < rows * columns; i++) {
    const v = (a.data[i] ?? 0) / limit, end = v > 0 ? above : below;
    const colour = end.map((c) => Math.round(255 + (c - 255) * Math.sqrt(Math.abs(v))));
    context.fillStyle = `rgb(${colour})`;
    context.fillRect(i % columns, Math.floor(i / columns), 1, 1);
  }
  return canvas.toDataURL();
}
