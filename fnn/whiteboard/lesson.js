// A live page: numbers to change by typing or dragging, a step of gradient descent, a quiz.
"use strict";

const SLACK = 0.01; // relative error that a reader's rounding may have

class Lesson {
  constructor(whiteboard, program) {
    this.board = whiteboard;
    this.root = whiteboard.root;
    this.live = new Live(program);
    this.get = (reference) => this.live.get(reference);
    if (!this.live.agrees) {
      console.warn("fnn: the page's numbers are not those that were recorded; it is not live");
      return;
    }
    this.groups = [...this.root.querySelectorAll("[data-n]")];
    this.products = [...this.root.querySelectorAll("[data-q]")];
    this.history = [this.live.loss];
    this.solved = new Set();
    this.bar = this.root.querySelector(".live");
    this.form = this.root.querySelector(".quiz");
    this.bar.hidden = false;
    this.root.classList.add("is-live");
    const listen = (action, act) => {
      this.root.querySelector(`[data-live=${action}]`).addEventListener("click", act);
    };
    listen("descend", () => this.descend());
    listen("reset", () => this.reset());
    listen("quiz", () => this.quiz(!this.asks));
    listen("show", () => this.solve("", true));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.answer();
    });
    for (const g of this.root.querySelectorAll("g[data-b]")) {
      g.addEventListener("click", (event) => {
        const reference = this.asks && this.referenceOf(g);
        if (!reference || this.solved.has(reference)) return;
        event.stopPropagation();
        this.ask(reference);
      });
    }
    this.changed = false;
    this.groups.forEach((g) => this.edit(g));
    this.say();
  }

  // ---- what the page shows ---------------------------------------------------------------

  update() {
    this.changed = true;
    for (const g of this.groups) this.write(g);
    for (const g of this.products) {
      const [to, several, factors, result] = JSON.parse(g.dataset.q), texts = g.querySelectorAll("text");
      if (several) {
        productLines(this.get, factors, result).forEach((line, i) => this.set(texts[i + 1], line));
      } else this.set(texts[0], to + writtenProduct(this.get, factors, result));
    }
    if (!this.board.panel.hidden && this.board.shown) this.board.show(this.board.shown);
    this.say();
  }

  // Text in the room that there is for it: what is longer is set narrower.
  set(text, written) {
    text.textContent = written;
    this.fit(text);
  }

  fit(text) {
    const room = Number(text.closest("[data-room]").dataset.room);
    const size = parseFloat(text.getAttribute("font-size") ?? 12) * 0.602;
    if (text.textContent.length > room) {
      text.setAttribute("textLength", (room * size).toFixed(1));
      text.setAttribute("lengthAdjust", "spacingAndGlyphs");
    } else text.removeAttribute("textLength");
  }

  write(g) {
    const a = this.get(g.dataset.n), kind = g.dataset.n[0];
    if (!a) return;
    const gradient = "dxg".includes(kind), sign = "lm".includes(kind) ? "∂" : gradient ? "◂" : "▸";
    const texts = [...g.querySelectorAll("text")], image = g.querySelector("image");
    if (a.data.length > EXACT) {
      const { summary, magnitude } = summaryOf(a), first = image ? 1 : 0;
      image?.setAttribute("href", heatOf(a, gradient));
      texts[first].textContent = `${sign} ${summary}`;
      if (gradient) texts[first + 1].textContent = `  |g| ${magnitude}`;
      return;
    }
    const editable = this.live.editable(g.dataset.n);
    let index = 0;
    rowsOf(a).forEach((row, i) => {
      if (!editable) {
        this.set(texts[i], `${i ? " " : sign} ${row.join("  ")}`);
        return;
      }
      const spans = texts[i].querySelectorAll("tspan");
      row.forEach((text, k) => {
        // Spaces before a number stay outside of what is clicked.
        const number = text.trimStart(), span = spans[k] ?? this.span(g.dataset.n, index);
        index += 1;
        span.textContent = number;
        span.setAttribute("aria-valuenow", a.data[index - 1]);
        const before = (k ? "  " : `${i ? " " : sign} `) + " ".repeat(text.length - number.length);
        if (spans[k]) span.previousSibling.textContent = before;
        else {
          if (!k) texts[i].textContent = "";
          texts[i].append(before, span);
        }
      });
      this.fit(texts[i]);
    });
    if (g.dataset.fork) {
      const total = writtenFork(this.get, JSON.parse(g.dataset.fork));
      texts.at(-1).textContent = a.data.length === 1 && total.length < 28 ? `  = ${total}` : "  (a sum)";
    }
  }

  say() {
    const { objective } = this.live.program, [before, now] = this.history.slice(-2);
    this.bar.querySelector(".loss").textContent = now === undefined
      ? `${objective} = ${number(this.live.loss)}`
      : `${objective} = ${number(before)} → ${number(this.live.loss)}`;
    const past = this.history.filter(Number.isFinite), last = past.length - 1;
    const low = Math.min(...past), high = Math.max(...past);
    const points = past.map((v, i) =>
      `${(98 * i) / Math.max(last, 1) + 1},${29 - (28 * (v - low)) / (high - low || 1)}`);
    this.bar.querySelector("polyline").setAttribute("points", last > 0 ? points.join(" ") : "");
  }

  // ---- changing numbers ------------------------------------------------------------------

  edit(g) {
    if (!this.live.editable(g.dataset.n)) return;
    g.classList.add("editable");
    const a = this.get(g.dataset.n);
    if (a.data.length <= EXACT) {
      this.write(g);
      return;
    }
    const image = g.querySelector("image"), { rows, columns } = cellsOf(a);
    this.handle(image, g.dataset.n, (event) => {
      if (!event?.clientX) return 0;
      const box = image.getBoundingClientRect();
      const at = (part, size, cells) => Math.min(Math.floor((part / size) * cells), cells - 1);
      const row = at(event.clientY - box.top, box.height, rows);
      return Math.min(row * columns + at(event.clientX - box.left, box.width, columns), a.data.length - 1);
    });
  }

  span(reference, index) {
    const span = document.createElementNS("http://www.w3.org/2000/svg", "tspan");
    this.handle(span, reference, () => index);
    return span;
  }

  // A number, or the cells of a heat map: drag, arrow up and down, or Enter and type.
  handle(element, reference, indexAt) {
    const label = `${this.live.program.names[reference]}, entry ${indexAt() + 1}: change`;
    for (const [key, value] of [["tabindex", "0"], ["role", "spinbutton"], ["aria-label", label]]) {
      element.setAttribute(key, value);
    }
    element.addEventListener("click", (event) => event.stopPropagation());
    element.addEventListener("pointerdown", (event) => {
      const index = indexAt(event), start = this.get(reference).data[index], x = event.clientX;
      const scale = this.stepFor(reference, start);
      let moved = false;
      element.setPointerCapture(event.pointerId);
      element.onpointermove = (move) => {
        moved ||= Math.abs(move.clientX - x) > 3;
        if (moved) this.change(reference, index, start + scale * Math.round((move.clientX - x) / 4));
      };
      element.onpointerup = () => {
        element.onpointermove = element.onpointerup = null;
        if (!moved) this.type(element, reference, index, event);
      };
      event.preventDefault();
      element.focus({ preventScroll: true });
    });
    element.addEventListener("keydown", (event) => {
      const index = indexAt(), by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (by) {
        const old = this.get(reference).data[index];
        this.change(reference, index, old + by * this.stepFor(reference, old));
      } else if (event.key === "Enter") this.type(element, reference, index);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  stepFor(reference, value) {
    if (this.live.editable(reference).label) return 1;
    return 10 ** Math.max(Math.floor(Math.log10(Math.abs(value) || 1)) - 1, -2);
  }

  change(reference, index, value) {
    const { label, most } = this.live.editable(reference);
    if (!Number.isFinite(value)) return;
    const whole = label ? Math.min(Math.max(Math.round(value), 0), most) : Number(value.toPrecision(12));
    this.live.set(reference, index, whole);
    this.solved.clear();
    this.history = [this.live.loss];
    this.update();
    if (this.asks) this.next();
  }

  // A field over the number; Tab goes to the next entry of the same array.
  type(element, reference, index, at) {
    this.field?.remove();
    const field = this.field = document.createElement("input"), data = this.get(reference).data;
    const box = at && element.matches("image") ? { left: at.clientX, top: at.clientY, height: 0 }
      : element.getBoundingClientRect();
    const close = (keep) => {
      if (this.field !== field) return;
      this.field = null;
      if (keep && field.value.trim()) {
        this.change(reference, index, Number(field.value.replace("−", "-").replace(",", ".")));
      }
      field.remove();
    };
    field.className = "field";
    field.inputMode = "decimal";
    field.value = data[index];
    field.setAttribute("aria-label", `${this.live.program.names[reference]}, entry ${index + 1}`);
    field.style.left = `${box.left + scrollX - 6}px`;
    field.style.top = `${box.top + scrollY - 8}px`;
    field.addEventListener("blur", () => close(true));
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      const by = event.shiftKey ? -1 : 1;
      if (event.key === "Enter" || event.key === "Escape") {
        close(event.key === "Enter");
        element.focus({ preventScroll: true });
      } else if (event.key === "Tab" && data[index + by] !== undefined) {
        close(true);
        const other = this.spans(reference)[index + by] ?? element;
        this.type(other, reference, index + by);
        event.preventDefault();
      }
    });
    (document.fullscreenElement ?? document.body).append(field);
    field.focus({ preventScroll: true });
    field.select();
  }

  spans(reference) {
    const seen = this.groups.find((g) => g.dataset.n === reference && g.getBoundingClientRect().width);
    return [...(seen?.querySelectorAll("tspan") ?? [])];
  }

  descend() {
    const rate = Number(this.bar.querySelector(".rate").value);
    if (!(rate > 0)) return;
    this.live.step(rate);
    this.history.push(this.live.loss);
    this.solved.clear();
    if (!this.asks) this.board.go(Infinity);
    this.update();
    if (this.asks) this.next();
  }

  reset() {
    this.live.reset();
    this.history = [this.live.loss];
    this.solved.clear();
    this.update();
    if (this.asks) this.next();
  }

  // ---- quiz ------------------------------------------------------------------------------

  referenceOf(g) {
    const inner = part(g, ".k").querySelector("[data-n], [data-q]");
    if (!inner) return "";
    return inner.dataset.n ?? this.sameAs(JSON.parse(inner.dataset.q)[3]);
  }

  // The gradient at a port is that of its wire, unless the wire forks.
  sameAs(reference) {
    return this.live.program.same[reference] ?? reference;
  }

  // Whether the quiz hides what the group shows.
  hides(g) {
    const reference = this.asks && g.dataset.b !== undefined && this.referenceOf(g);
    return Boolean(reference && this.get(reference)) && !this.solved.has(reference)
      && !this.live.program.given.includes(reference);
  }

  quiz(on) {
    this.asks = on;
    this.solved.clear();
    this.form.hidden = !on;
    this.root.querySelector("[data-live=quiz]").setAttribute("aria-pressed", String(on));
    this.board.go(Infinity);
    if (on) this.next();
  }

  // The gradients in the order of backward, of what is drawn.
  get questions() {
    const order = [...this.board.order].reverse();
    const time = (g) => Math.max(...g.dataset.b.split(" ").map((id) => order.indexOf(id)));
    const seen = [...this.root.querySelectorAll("g[data-b]")].filter((g) => this.hides(g)
      && part(g, ".u").getBoundingClientRect().width && part(g, ".k").querySelector("[data-n]"));
    const references = seen.sort((a, b) => time(a) - time(b)).map((g) => this.referenceOf(g));
    return [...new Set(references)].filter((reference) => this.get(reference));
  }

  next() {
    this.board.go(this.board.step);
    const [first] = this.questions;
    if (first) this.ask(first);
    else {
      this.asked = null;
      this.form.querySelector(".ask").textContent = "All gradients are known.";
    }
  }

  ask(reference) {
    this.asked = reference;
    const { shape, data } = this.get(reference), { names } = this.live.program;
    const form = shape.filter((n) => n > 1).join("×"), many = data.length > 1 ? ` (${form} numbers)` : "";
    this.form.querySelector(".ask").textContent = `${names[reference]}${many} =`;
    this.form.querySelector(".answer").value = "";
    this.form.querySelector("output").textContent = "";
    this.form.querySelector(".answer").focus({ preventScroll: true });
  }

  answer() {
    if (!this.asked) return;
    const text = this.form.querySelector(".answer").value.replaceAll("−", "-");
    const numbers = (text.match(/[^\s,;()[\]]+/g) ?? []).map(Number);
    const mistake = this.mistake(this.asked, numbers);
    if (mistake) this.form.querySelector("output").textContent = mistake;
    else this.solve("Right. ");
  }

  solve(said, shown) {
    if (!this.asked) return;
    const { names } = this.live.program, solved = this.asked;
    this.solved.add(solved);
    this.next();
    const values = rowsOf(this.get(solved)).map((row) => row.map((v) => v.trim()).join(", ")).join("; ");
    this.form.querySelector("output").textContent =
      `${said}${names[solved]} = ${values}${shown ? ". Why? Click its block." : ""}`;
  }

  // What is likely wrong with an answer; "" where it is right.
  mistake(reference, answer) {
    const truth = this.get(reference), { data, shape } = truth, size = data.length;
    if (answer.some((v) => !Number.isFinite(v))) return "Write numbers, such as -0.5, 2";
    if (answer.length !== size) return `It has ${size} number${size > 1 ? "s" : ""}, you gave ${answer.length}.`;
    const largest = Math.max(...data.map(Math.abs));
    const near = (mine, theirs) => mine.every((v, i) =>
      Math.abs(v - theirs[i]) <= SLACK * Math.max(Math.abs(theirs[i]), 0.1 * largest) + 1e-12);
    const scaled = (by) => near(answer, data.map((v) => v * by));
    if (scaled(1)) return "";
    if (scaled(-1)) return "The sign is the wrong way around.";
    const { terms = {}, local = {}, examples } = this.live.program;
    const summands = (terms[reference] ?? []).map(([name, term]) => [name, this.get(term)]);
    for (const [name, term] of summands.length > 1 ? summands : []) {
      if (term && near(answer, term.data)) {
        return `That is what comes back from ${name} alone. The value forks: add all ${summands.length}.`;
      }
    }
    const [rows, columns] = shape.length === 2 ? shape : [1, 1];
    const turned = data.map((_, i) => data[(i % rows) * columns + Math.floor(i / rows)]);
    if (rows > 1 && columns > 1 && near(answer, turned)) return "It is transposed: rows and columns are swapped.";
    for (const n of new Set([examples, summands.length, ...shape])) {
      if (n > 1 && scaled(1 / n)) return `That is the mean of ${n}: it needs the sum.`;
      if (n > 1 && scaled(n)) return `That is ${n} times too much: the loss is a mean over ${n}.`;
    }
    for (const [upstream, slope] of local[reference] ?? []) {
      const [up, by] = [this.get(upstream), this.get(slope)];
      if (by && by.data.length === size && near(answer, by.data)) return "That is the local derivative: multiply it by upstream.";
      if (up && up.data.length === size && near(answer, up.data)) return "That is upstream: multiply it by the local derivative.";
    }
    const right = answer.filter((v, i) => near([v], [data[i]])).length;
    return right ? `${right} of ${size} are right.` : "Not yet: upstream times local; at a fork the sum.";
  }
}
