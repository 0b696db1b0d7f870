// A live page: numbers to change by typing or dragging, and a step of gradient descent.
"use strict";

const HINT = "Drag an underlined number, or click it and type.";

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
    this.quiz = new Quiz(this);
    this.bar = this.root.querySelector(".live");
    this.bar.hidden = false;
    this.tell(HINT);
    this.root.classList.add("is-live");
    const listen = (action, act) => {
      this.root.querySelector(`[data-live=${action}]`).addEventListener("click", act);
    };
    listen("descend", () => this.descend());
    listen("reset", () => this.reset());
    this.changed = false;
    this.groups.forEach((g) => this.edit(g));
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
    const known = this.board.step >= this.board.order.length, from = now === undefined ? [] : [before];
    this.bar.querySelector(".loss").textContent = `${objective} = `
      + (known ? [...from, this.live.loss].map((v) => number(v)).join(" → ") : "?");
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
    this.history = [this.live.loss];
    this.update();
    this.quiz.restart();
  }

  // A field over the number; Tab goes to the next entry of the same array.
  type(element, reference, index, at) {
    this.field?.remove();
    const field = this.field = document.createElement("input"), data = this.get(reference).data;
    const box = at && element.matches("image") ? { left: at.clientX, top: at.clientY, height: 0 }
      : element.getBoundingClientRect();
    const close = (keep) => {
      if (this.field !== field) return true;
      const text = field.value.trim(), value = Number(text.replace("−", "-").replace(",", "."));
      const wrong = keep && text && !Number.isFinite(value);
      this.tell(wrong ? `“${text}” is not a number. Write one, such as −0.5.` : HINT);
      if (wrong && keep === "asked") {
        field.select();
        return false;
      }
      this.field = null;
      if (keep && text && !wrong) this.change(reference, index, value);
      field.remove();
      return true;
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
        if (close(event.key === "Enter" && "asked")) element.focus({ preventScroll: true });
      } else if (event.key === "Tab" && data[index + by] !== undefined) {
        const other = this.spans(reference)[index + by] ?? element;
        if (close("asked")) this.type(other, reference, index + by);
        event.preventDefault();
      }
    });
    (document.fullscreenElement ?? document.body).append(field);
    field.focus({ preventScroll: true });
    field.select();
  }

  // Beside the buttons: how to change a number, or what was wrong.
  tell(text) {
    const hint = this.bar.querySelector(".hint");
    hint.textContent = text;
    hint.classList.toggle("wrong", text !== HINT);
  }

  spans(reference) {
    const seen = this.groups.find((g) => g.dataset.n === reference && g.getBoundingClientRect().width);
    return [...(seen?.querySelectorAll("tspan") ?? [])];
  }

  descend() {
    const rate = Number(this.bar.querySelector(".rate").value);
    this.tell(rate > 0 ? HINT : "The rate has to be a number above 0.");
    if (!(rate > 0)) return;
    this.live.step(rate);
    this.history.push(this.live.loss);
    this.board.go(Infinity);
    this.update();
    this.quiz.restart();
  }

  reset() {
    this.live.reset();
    this.history = [this.live.loss];
    this.update();
    this.quiz.restart();
  }
}
