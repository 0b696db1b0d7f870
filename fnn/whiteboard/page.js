// Steps, folding and the panel of every whiteboard on the page.
"use strict";

const UNFOLD = ".folded > g > .toggle", FOLD = ".inside > .caption > .toggle";
const PAD = 16, TITLE = 26, EDGE = 12, LARGEST = 3;
const PAPER = { width: 1030, high: 490 }; // A4 across, with a heading above the figure

const part = (g, path) => g.querySelector(`:scope > ${path}`);

const onClick = (element, act) => element?.addEventListener("click", (event) => {
  event.stopPropagation();
  act();
});

const asButton = (element, label, act) => {
  element.setAttribute("tabindex", "0");
  element.setAttribute("role", "button");
  element.setAttribute("aria-label", label);
  onClick(element, act);
};

// The figures before, from which one has turned to this one, fill it no longer, either.
const leaveFullScreen = async () => {
  while (document.fullscreenElement) await document.exitFullscreen();
};

class Whiteboard {
  constructor(root) {
    this.root = root;
    this.data = JSON.parse(root.querySelector("script.data").textContent);
    this.open = new Set(this.data.open);
    this.svg = root.querySelector("svg.wb");
    this.scroller = root.querySelector(".board");
    this.panel = root.querySelector(".panel");
    this.elements = new Map();
    for (const g of root.querySelectorAll(".item[data-id]")) this.prepare(g);
    for (const button of root.querySelectorAll("button[data-do]")) {
      button.addEventListener("click", () => this.run(button.dataset.do));
    }
    const slider = root.querySelector("input.at");
    slider.addEventListener("input", () => {
      this.go(Number(slider.value));
    });
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("fullscreenchange", () => this.layout());
    this.step = 0;
    if (this.data.live) {
      const lesson = new Lesson(this, this.data.live);
      if (lesson.live.agrees) this.lesson = lesson;
    }
    this.about = this.data.about;
    this.refresh();
    this.foldToFit();
    if (this.data.film) this.film = new Film(this, this.data.film);
    new ResizeObserver(() => {
      if (!printing && this.scroller.clientWidth !== this.width) this.layout();
    }).observe(this.scroller);
    addEventListener("resize", () => this.layout());
  }

  prepare(g) {
    const id = g.dataset.id;
    this.elements.set(id, g);
    asButton(part(g, ".folded"), this.data.labels[id], () => this.show(id));
    onClick(part(g, ".inside > .frame"), () => this.show(id));
    this.prepareToggles(g, id);
  }

  prepareToggles(g, id, paths = [[UNFOLD, "unfold"], [FOLD, "fold"]]) {
    for (const [path, act] of paths) {
      const toggle = part(g, path);
      if (!toggle) continue;
      asButton(toggle, `${act} ${this.data.paths[id]}`, () => this.toggle(id));
      toggle.setAttribute("aria-expanded", String(act === "fold"));
    }
  }

  // The ids of what is drawn, in the order in which it runs.
  visible(net = this.data.net) {
    return net.items.filter((item) => item.id).sort((a, b) => a.id - b.id)
      .flatMap((item) => (this.open.has(item.id) ? this.visible(item.net) : [item.id]));
  }

  refresh() {
    this.order = this.visible();
    this.step = Math.min(this.step, 2 * this.order.length);
    for (const [id, g] of this.elements) g.classList.toggle("open", this.open.has(id));
    const folds = this.root.querySelector(".folds"), first = this.data.open;
    const asDrawn = first.length === this.open.size && first.every((id) => this.open.has(id));
    if (folds) folds.hidden = !asDrawn; // it says what was folded when the page was made
    this.layout();
    this.go(this.step);
  }

  // On a phone, frames in frames leave no room for letters: the innermost are closed.
  foldToFit() {
    const depth = (id) => this.data.paths[id].split("/").length;
    while (this.width < 600 && this.scale < 0.7 && this.open.size) {
      const deepest = Math.max(...[...this.open].map(depth));
      this.open = new Set([...this.open].filter((id) => depth(id) < deepest));
      this.refresh();
    }
  }

  toggle(id) {
    const ended = this.step === 2 * this.order.length;
    if (!this.open.delete(id)) this.open.add(id);
    if (ended) this.step = Infinity;
    this.refresh();
    const g = this.elements.get(id);
    part(g, this.open.has(id) ? FOLD : ".folded").focus({ preventScroll: true });
    if (this.shown === id) this.show(id);
  }

  // How high a picture is that can be seen whole: below the heading or, where this takes much of the
  // window, below the controls.
  get high() {
    const full = document.fullscreenElement === this.root;
    const begin = full ? this.root : this.root.closest("article") ?? document.body;
    const above = this.scroller.getBoundingClientRect().top - begin.getBoundingClientRect().top;
    const bars = this.root.querySelectorAll(":scope > :is(.controls, .live, .quiz, .film)");
    const least = [...bars].reduce((s, bar) => s + bar.offsetHeight, 0);
    return innerHeight - 12 - (above < innerHeight / 2 ? above : least);
  }

  layout({ width, high } = { width: this.scroller.clientWidth, high: this.high }) {
    this.width = width;
    const group = part(this.svg, ".net");
    const attempt = (share, stack = false) => {
      this.stack = stack;
      const edge = stack ? 4 : EDGE;
      this.room = Math.max((width - 2 * edge) / share, 200);
      const { size, rows } = this.placeNet(this.data.net, group, this.room);
      const w = Math.ceil(size.width + 2 * edge), h = Math.ceil(size.up + size.down + 2 * edge);
      return { share, stack, edge, size, w, h, rows, scale: Math.min(width / w, high / h) };
    };
    // One row where it fits; else as many rows as make the letters largest. What is higher than the window is scrolled. In a narrow window, where that
    // were a maze of small letters, one item a row.
    const first = attempt(1), least = first.scale * (first.rows > 1 ? 1.05 : 1.15);
    let best = first;
    const fits = first.rows === 1 && width / first.w >= 1; // with letters as large as they are drawn
    if (width < 600 && (first.rows > 1 || width / first.w < 0.95)) best = { share: 0.9, stack: true };
    else if (!fits) {
      for (const other of [1.1, 1.25, 1.4, 1.6, 1.8, 2.2, 2.7].map((share) => attempt(share))) {
        if (other.scale > Math.max(least, best.scale)) best = other;
      }
    }
    best = attempt(best.share, best.stack);
    const { size, w, h, edge } = best;
    const most = best.stack ? 1.3 : Math.min(Math.max(best.scale, 1), LARGEST);
    const scale = this.scale = Math.min(width / w, most);
    this.svg.setAttribute("width", Math.floor(w * scale));
    this.svg.setAttribute("height", Math.ceil(h * scale));
    this.svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
    group.setAttribute("transform", `translate(${edge},${tenth(edge + size.up)})`);
  }

  // The size of a folded item, in the form that the room needs.
  sizeOf(item, room) {
    if (!item.tall) return item.size;
    const size = this.stack && item.size.width > room ? tallSize(item) : item.size;
    const folded = part(this.elements.get(item.id), ".folded"), { tall } = size;
    const [out, captions] = ["out", "captions"].map((name) => part(folded, `.${name}`));
    let drop = part(folded, ".drop");
    if (!tall && !drop) return size; // as it was drawn
    if (!drop) {
      drop = document.createElementNS("http://www.w3.org/2000/svg", "path");
      drop.setAttribute("class", "wire drop");
      folded.append(drop);
      out.dataset.at = out.getAttribute("transform");
      captions.dataset.at = captions.getAttribute("transform");
      out.dataset.end = out.lastElementChild.getAttribute("d");
    }
    drop.setAttribute("d", tall ? `M${tall.x},${tall.from}V${tenth(size.out)}` : "");
    out.setAttribute("transform", tall ? `translate(${tall.x},${tenth(size.out)})` : out.dataset.at);
    captions.setAttribute("transform", tall ? `translate(${tall.captions})` : captions.dataset.at);
    out.lastElementChild.setAttribute("d",
      tall ? `M0,0H${tenth(size.width - tall.x)}` : out.dataset.end);
    return size;
  }

  placeNet(net, group, room) {
    const starts = GAP + Math.max(...net.columns[0].map((k) => net.items[k]?.size.width ?? 0));
    const inside = this.stack ? room - 50 : room; // wires are beside the items
    const parts = [...group.children];
    const wires = parts.filter((p) => p.matches("path.wire:not(.exit)"));
    const groups = parts.filter((p) => p.matches("g"));
    const sizes = net.items.map((item, k) => {
      if (!this.open.has(item.id)) return this.sizeOf(item, inside);
      const g = this.elements.get(item.id);
      const within = part(g, ".inside > .within");
      const most = inside - item.stem - 2 * PAD;
      let inner = this.placeNet(item.net, within, this.stack ? most : most - starts).size;
      if (!this.stack && inner.width > most - starts) inner = this.placeNet(item.net, within, most).size;
      const size = {
        width: item.stem + 2 * PAD + inner.width, up: inner.up + TITLE, down: inner.down + PAD,
        ports: item.slots.map((i) => inner.ports[Math.min(i, inner.ports.length - 1)]), out: inner.out,
      };
      const frame = part(g, ".inside > .frame");
      frame.setAttribute("y", tenth(-size.up));
      frame.setAttribute("width", tenth(size.width - item.stem));
      frame.setAttribute("height", tenth(size.up + size.down));
      part(g, ".inside > .caption").setAttribute("transform", `translate(0,${tenth(-size.up)})`);
      return size;
    });
    const placed = this.stack ? stacked(net, sizes) : place(net, sizes, room);
    placed.paths.forEach((path, i) => wires[i].setAttribute("d", path));
    groups.forEach((g, i) => {
      const k = net.drawn[i], [x, y] = placed.at[k];
      g.setAttribute("transform", `translate(${tenth(x)},${tenth(y)})`);
      g.querySelectorAll(":scope > .port").forEach((port, j) =>
        port.setAttribute("transform", `translate(0,${tenth(sizes[k].ports[j])})`));
    });
    const exit = parts.find((p) => p.matches(".exit"));
    if (exit) {
      const [x, y] = placed.at[net.ends[0]];
      exit.setAttribute("d", `M${tenth(x + 8)},${tenth(y)}H${tenth(placed.size.width + PAD)}`);
    }
    return placed;
  }

  go(step) {
    const count = this.order.length, most = 2 * count;
    this.step = step = Math.max(0, Math.min(step, most));
    const forward = new Set(this.order.slice(0, step));
    const backward = new Set([...this.order].reverse().slice(0, Math.max(step - count, 0)));
    if (step > count) backward.add("out");
    this.finish(this.data.net, forward);
    this.finish(this.data.net, backward);
    for (const [data, done] of [["f", forward], ["b", backward]]) {
      for (const g of this.root.querySelectorAll(`[data-${data}]`)) {
        const needs = g.dataset[data].split(" ").filter(Boolean);
        const hidden = this.lesson?.quiz.hides(g) ?? false;
        if (data === "b") this.lesson?.quiz.mark(g, hidden);
        g.classList.toggle("pending", hidden || !needs.every((id) => done.has(id)));
      }
    }
    const way = step <= count ? "forward" : "backward";
    const ran = this.order[step <= count ? step - 1 : most - step];
    const now = step ? ran : "";
    for (const [id, g] of this.elements) g.classList.toggle("now", id === now);
    this.root.querySelector(".said").textContent = !step
      ? `step 0 of ${most}: only the inputs are known`
      : now ? `step ${step} of ${most}: ${way} through ${this.data.paths[now]}`
        : `all ${most} steps: forward, then backward`;
    const slider = this.root.querySelector("input.at");
    slider.max = most;
    slider.value = step;
    slider.setAttribute("aria-valuetext", this.root.querySelector(".said").textContent);
    const off = { first: !step, back: !step, next: step === most, last: step === most };
    for (const action in off) {
      this.root.querySelector(`[data-do=${action}]`).disabled = off[action];
    }
    this.lesson?.say();
  }

  // An open network has run when all that is drawn of it has.
  finish(net, done) {
    for (const item of net.items) {
      if (!this.open.has(item.id)) continue;
      this.finish(item.net, done);
      if (this.visible(item.net).every((id) => done.has(id))) done.add(item.id);
    }
  }

  run(action) {
    const most = 2 * this.order.length;
    const steps = { first: 0, back: this.step - 1, next: this.step + 1, last: most };
    if (action in steps) {
      this.go(steps[action]);
      this.reveal();
    } else if (action === "full") {
      if (document.fullscreenElement) leaveFullScreen();
      else this.root.requestFullscreen?.();
    } else if (action === "digits") {
      this.exact = !this.exact;
      this.root.querySelector("[data-do=digits]").setAttribute("aria-pressed", String(this.exact));
      if (!this.panel.hidden) this.show(this.shown);
    } else if (action === "close") {
      this.panel.hidden = true;
      if (this.shown) part(this.elements.get(this.shown), ".folded").focus();
    } else {
      const networks = [...this.elements.keys()].filter((id) => this.data.networks.includes(id));
      this.open = new Set(action === "unfold" ? networks : []);
      if (this.step === most) this.step = Infinity;
      this.refresh();
    }
  }

  // To the next figure of the page, or the previous one.
  async turn(by) {
    const other = boards[boards.indexOf(this) + by];
    if (!other) return;
    // Nothing outside of what fills the screen takes the focus: first the screen, then the focus.
    if (document.fullscreenElement) await other.root.requestFullscreen();
    (other.root.closest("article") || other.root).scrollIntoView();
    other.root.focus({ preventScroll: true });
  }

  // A step, and after the last the next figure.
  click(by) {
    const most = 2 * this.order.length;
    if (by > 0 ? this.step < most : this.step > 0) this.run(by > 0 ? "next" : "back");
    else this.turn(by);
  }

  reveal() {
    const now = this.root.querySelector(".item.now > .folded");
    now?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input")) return;
    const item = event.target.closest?.(".item[data-id]");
    const actions = {
      ArrowRight: "next", ArrowLeft: "back", Home: "first", End: "last", f: "full", d: "digits",
    };
    const full = document.fullscreenElement === this.root;
    if (event.key in actions) this.run(actions[event.key]);
    else if (event.key === "n" || event.key === "p") this.turn(event.key === "n" ? 1 : -1);
    else if (full && event.key === "PageDown") this.click(1); // as a presenter's remote sends them
    else if (full && event.key === "PageUp") this.click(-1);
    else if (event.key === "Escape") this.run("close");
    else if ((event.key === "Enter" || event.key === " ") && item) {
      if (event.target.matches(".toggle")) this.toggle(item.dataset.id);
      else this.show(item.dataset.id);
    } else if ((event.key === "+" || event.key === "-") && item &&
      this.data.networks.includes(item.dataset.id) &&
      this.open.has(item.dataset.id) === (event.key === "-")) this.toggle(item.dataset.id);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // A part of a line: text, or a number with four digits or with all.
  written(part, kind) {
    if (typeof part === "string") return part;
    const [short, full, recipe] = part, { quiz, changed, get } = this.lesson ?? {};
    if ((kind === "gradient" || kind === "chain") && quiz?.hidesLine(recipe)) return "?";
    if (changed) return recipe ? writtenAnew(get, recipe, this.exact) : "…";
    return this.exact ? full : short;
  }

  // The panel: all about a node, as text (never as markup).
  show(id) {
    this.shown = id;
    const titles = {
      value: "Forward", kept: "Kept for backward", gradient: "Backward: upstream times local",
      chain: "The whole product, from the output to here", check: "Compared with autodiff",
    };
    const body = this.panel.querySelector(".about");
    body.replaceChildren();
    let list = null, last = "";
    for (const [kind, ...parts] of this.about[id]) {
      if (kind === "check" && this.lesson?.changed) continue; // it is about what was recorded
      const text = parts.map((part) => this.written(part, kind)).join("");
      if (kind === "head") {
        this.panel.querySelector("h2").textContent = text;
        continue;
      }
      if (kind !== last) {
        const title = document.createElement("h3");
        title.textContent = titles[kind];
        list = document.createElement("ul");
        list.className = kind;
        body.append(title, list);
        last = kind;
      }
      const line = document.createElement("li");
      line.textContent = text;
      list.append(line);
    }
    this.panel.hidden = false;
    // The panel covers the lower part of the window: scroll its block out from under it.
    if (this.open.has(id)) return;
    const shape = part(this.elements.get(id), ".folded");
    const hidden = shape.getBoundingClientRect().bottom - this.panel.getBoundingClientRect().top;
    if (hidden > 0) scrollBy(0, hidden + 12);
    if (frameElement) this.panel.scrollIntoView({ block: "nearest" });
  }
}

const boards = [...document.querySelectorAll(".whiteboard")].map((root) => new Whiteboard(root));

// Keys that do nothing here are not named.
const works = { turn: boards.length > 1, fold: boards.some((b) => b.data.networks.length) };
for (const keys of document.querySelectorAll("[data-keys]")) keys.hidden = !works[keys.dataset.keys];

let printing = false; // in which no window counts
addEventListener("beforeprint", () => {
  printing = true;
  boards.forEach((board) => board.layout(PAPER));
});
addEventListener("afterprint", () => {
  printing = false;
  boards.forEach((board) => board.layout());
});

// In a notebook the frame becomes as high as the page.
if (frameElement) frameElement.style.height = `${document.documentElement.scrollHeight}px`;

// Arrow keys work without a click: on the whiteboard that fills the screen, or the first visible.
document.addEventListener("keydown", (event) => {
  if (event.target !== document.body) return;
  const full = boards.find(({ root }) => root === document.fullscreenElement);
  const seen = full ?? boards.find(({ root }) => {
    const box = root.getBoundingClientRect();
    return box.bottom > 120 && box.top < innerHeight - 120;
  });
  seen?.key(event);
});
