// A quiz on a live page: the gradients are hidden, and an answer is right, or what is likely wrong.
"use strict";

const SLACK = 0.01; // relative error that a reader's rounding may have

class Quiz {
  constructor(lesson) {
    Object.assign(this, { board: lesson.board, root: lesson.root, live: lesson.live, get: lesson.get });
    this.asks = false;
    this.solved = new Set();
    this.form = this.root.querySelector(".quiz");
    this.button = this.root.querySelector("[data-live=quiz]");
    this.button.addEventListener("click", () => this.begin(!this.asks));
    this.root.querySelector("[data-live=show]").addEventListener("click", () => this.solve("", true));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.answer();
    });
    for (const g of this.root.querySelectorAll("g[data-b]")) {
      const chosen = (event) => {
        if (!this.hides(g) || (event.key ?? "Enter") !== "Enter") return;
        event.stopPropagation();
        event.preventDefault();
        this.ask(this.referenceOf(g));
      };
      g.addEventListener("click", chosen);
      g.addEventListener("keydown", chosen);
    }
  }

  referenceOf(g) {
    const inner = part(g, ".k").querySelector("[data-n], [data-q]");
    return inner ? this.sameAs(inner.dataset.n ?? JSON.parse(inner.dataset.q)[3]) : "";
  }

  // The gradient at a port is that of its wire, unless the wire forks.
  sameAs(reference) {
    return this.live.program.same[reference] ?? reference;
  }

  // Whether the quiz hides what the group shows.
  hides(g) {
    return g.dataset.b !== undefined && this.unknown(this.referenceOf(g));
  }

  unknown(reference) {
    const same = this.sameAs(reference);
    return Boolean(this.asks && same && this.get(same)) && !this.solved.has(same)
      && !this.live.program.given.includes(same);
  }

  // Whether it hides a number, product or fork in the panel, by its recipe: what has an unknown
  // gradient in it, as a chain has that of its last local derivative.
  hidesLine(recipe) {
    if (!this.asks || !this.questions.length) return false;
    if (!Array.isArray(recipe)) return !recipe || this.unknown(recipe);
    const [, parts, result] = recipe, references = parts.flat().filter((v) => typeof v === "string");
    const downstream = result ?? references.at(-1).replace(/^l/, "x").replace(/^m/, "g");
    return [...references, downstream].some((v) => "dxg".includes(v[0]) && this.unknown(v));
  }

  // What is hidden can be chosen, by keyboard too.
  mark(g, hidden) {
    const name = hidden && this.live.program.names[this.referenceOf(g)];
    for (const [key, value] of [["tabindex", "0"], ["role", "button"], ["aria-label", name]]) {
      if (hidden) g.setAttribute(key, value);
      else g.removeAttribute(key);
    }
  }

  begin(on) {
    this.asks = on;
    this.form.hidden = !on;
    this.button.setAttribute("aria-pressed", String(on));
    this.board.go(Infinity);
    this.restart();
  }

  // After a value has changed, every gradient is another.
  restart() {
    this.solved.clear();
    if (this.asks) this.next();
    else this.board.go(this.board.step);
  }

  // The gradients in the order of backward, of what is drawn.
  get questions() {
    const order = [...this.board.order].reverse(), { paths } = this.board.data;
    // An open network has run when all in it has.
    const ran = (id) => Math.max(order.indexOf(id), ...order.map((inner, i) =>
      (paths[inner].startsWith(`${paths[id]}/`) ? i : -1)));
    const time = (g) => Math.max(...g.dataset.b.split(" ").map(ran))
      + (this.live.program.terms[this.referenceOf(g)]?.length > 1 ? 0.5 : 0); // parts before their sum
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
      this.enable(false);
    }
    if (!this.board.panel.hidden) this.board.show(this.board.shown);
  }

  enable(on) {
    for (const button of this.form.querySelectorAll("button")) button.disabled = !on;
  }

  ask(reference) {
    this.asked = reference;
    this.enable(true);
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
    if (!mistake) {
      this.solve("Right. ");
      return;
    }
    this.form.querySelector("output").textContent = mistake;
    this.form.querySelector(".answer").select(); // what is typed next replaces it
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
